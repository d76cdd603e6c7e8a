"""Adaptive rank: which pairs are pruned, who gets what they free, and that the budget is kept at every step."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from adapter_files import load_lora, save_lora
from experiments.settings import Settings
from lora import lora_layers
from methods.catalogue import apply_method, count_trained, schedule_of
from methods.rank_budget import ROUNDS, AdaptiveRank, importances, reallocate
from methods.rank_changes import conclude
from methods.stacked_lora import adapted_projections, fold, ranks
from tasks.e2e.evaluation import validation_loss
from tasks.e2e.loss import completion_loss
from test_training import run_training, some_rows, stop_at_call, tiny_model
from tiny_models import tiny
from training import trainer
from training.checkpoints import TrainingInterrupted

# 37 rows in batches of 4, two epochs: 20 steps. Four projections, so that each starts with rank 4.
SETTINGS = Settings(
    task="e2e", model="gpt2-mini", method="adaptive-lora", learning_rate=3e-2, epochs=2, batch_size=4, keep="last",
    alpha=16.0, lora_dropout=0.1, targets=("query", "value"), rank_budget=16, schedule_every=4,
)  # fmt: skip
DEV = some_rows(8, seed=1)


def adapted(budget=8, **changes):
    model = tiny_model(**changes)
    apply_method(model, replace(SETTINGS, rank_budget=budget))
    return model


def pair(model, place, i):
    layer, target = adapted_projections(model)[place]
    return layer.pairs(target)[i]


def run(folder, settings=SETTINGS, **others):
    smoothed = partial(completion_loss, label_smoothing=settings.label_smoothing)
    schedule = schedule_of(settings, lambda m, rows: validation_loss(m, rows, settings), DEV)
    return run_training(folder, settings, **{"loss": smoothed, "schedule": schedule} | others)


def rank_log(result):
    return {entry["step"]: entry["ranks"] for entry in result.history if "ranks" in entry}


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_matrices_of_two_widths_get_ranks_that_both_can_take_at_the_end(monkeypatch):
    model = tiny("llama")  # value is half as wide as the query
    apply_method(model, replace(SETTINGS, model="smollm2-135m", rank_budget=48))
    assert set(ranks(model).values()) == {8}  # as wide as a value is
    scores = {(place, i): float(place.endswith("query")) for place in ranks(model) for i in range(8)}
    reallocate(model, scores, 8)
    fold(model)
    assert sum(layer.lora_A.shape[0] for layer in lora_layers(model).values()) == 48


# the start


@pytest.mark.parametrize(("budget", "expected"), [(16, [4, 4, 4, 4]), (18, [5, 5, 4, 4]), (4, [1, 1, 1, 1])])
def test_the_budget_is_spread_evenly_at_the_start(budget, expected):
    model = adapted(budget)
    assert list(ranks(model).values()) == expected
    assert count_trained(model)[0] == budget * (32 + 32)
    layer, _ = adapted_projections(model)["0.query"]
    assert layer.scaling == 16.0 / (budget // 4)  # of plain LoRA with the rank that all have


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank_budget": 3}, "each of the 4 adapted projections 1 to 32 pairs of rank 1; found 3, expected 4 to 128"),
        ({"rank_budget": 4 * 32 + 1}, "1 to 32 pairs of rank 1; found 129"),
        ({"rank_budget": None}, "found None"),
        ({"schedule_every": None}, "the steps between two reallocations, must be at least 1; found None"),
        ({"schedule_every": 0}, "found 0"),
        ({"targets": ()}, r"targets must name matrices of the model, as \('query', 'value'\); found \(\)"),
        ({"targets": ("qeury",)}, r"targets must name matrices of the model, .* found \('qeury',\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_training(wrong, message):
    with pytest.raises(ValueError, match=message):
        apply_method(tiny_model(), replace(SETTINGS, **wrong))


# importance


def test_the_pair_that_does_harm_is_the_least_important_and_the_one_that_helps_most_the_most():
    model, tokens = adapted().eval(), torch.arange(32).reshape(2, 16)
    torch.manual_seed(0)
    for layer, target in adapted_projections(model).values():
        for _, B in layer.pairs(target):
            nn.init.normal_(B, std=0.02)
    nn.init.normal_(pair(model, "0.value", 0)[1], std=1.0)
    wanted = model(tokens).logits.detach()
    nn.init.normal_(pair(model, "1.value", 1)[1], std=1.0)  # what nobody asked for
    before = values(model)
    scores = importances(model, lambda m: (m(tokens).logits - wanted).square().mean().item())
    assert scores.keys() == {(place, i) for place in ranks(model) for i in (0, 1)}
    assert min(scores, key=scores.get) == ("1.value", 1)
    assert max(scores, key=scores.get) == ("0.value", 0)
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())  # and it changes nothing


def test_importance_is_the_loss_without_a_pair_less_the_loss_with_it_alone():
    model = adapted()
    for i, (layer, target) in enumerate(adapted_projections(model).values()):
        for j, (_, B) in enumerate(layer.pairs(target)):
            nn.init.constant_(B, 1 + 2 * i + j)

    def loss(m):  # 100 less what the pairs that are on are worth: 1 for the first, 2 for the second, to 8
        return 100 - sum(B.max().item() for layer, t in adapted_projections(m).values() for _, B in layer.pairs(t))

    worth = dict(zip(importances(model, loss), range(1, 9), strict=True))
    assert importances(model, loss) == {name: (100 - 36 + w) - (100 - w) for name, w in worth.items()}


def test_two_pairs_that_do_the_same_are_not_both_pruned_though_neither_is_missed_alone():
    model = adapted()
    for layer, target in adapted_projections(model).values():
        for _, B in layer.pairs(target):
            nn.init.ones_(B)

    def loss(m):  # 1 nat for having either of the first two pairs, 0.1 for the third, nothing for the others
        twins = any(pair(m, "0.query", i)[1].any() for i in (0, 1))
        return 2 - 1.0 * bool(twins) - 0.1 * bool(pair(m, "0.value", 0)[1].any())

    scores = importances(model, loss)
    twin, third, idle = scores["0.query", 0], scores["0.value", 0], scores["1.query", 0]
    assert twin == scores["0.query", 1] > third > idle


# pruning and giving


SCORES = {("0.query", 0): 1.0, ("0.query", 1): 5.0, ("0.value", 0): 3.0, ("0.value", 1): 3.0,
          ("1.query", 0): 9.0, ("1.query", 1): 9.0, ("1.value", 0): 2.0, ("1.value", 1): 8.0}  # fmt: skip


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, [1, 2, 3, 2]),  # "1.query" has the highest mean
        (2, [1, 3, 3, 1]),  # then "0.value"
        (3, [1, 1, 5, 1]),
        (4, [1, 0, 6, 1]),  # both pairs of "0.value"
    ],
)
def test_the_least_important_pairs_are_pruned_and_the_projections_that_kept_all_get_theirs(number, expected):
    model = adapted()
    held = {name: pair(model, *name) for name in SCORES}
    reallocate(model, SCORES, number)
    assert list(ranks(model).values()) == expected
    left = {id(A) for layer, target in adapted_projections(model).values() for A, _ in layer.pairs(target)}
    pruned = {name for name, (A, _) in held.items() if id(A) not in left}
    assert pruned == set(sorted(SCORES, key=SCORES.get)[:number])


def test_what_is_given_is_new_and_what_is_kept_stays_as_it_was():
    model = adapted()
    for layer, target in adapted_projections(model).values():
        for _, B in layer.pairs(target):
            nn.init.ones_(B)
    kept = pair(model, "0.query", 1)
    reallocate(model, SCORES, 1)
    assert all(ours is theirs for ours, theirs in zip(pair(model, "0.query", 0), kept, strict=True))
    A, B = pair(model, "1.query", 2)
    assert A.any() and not B.any()
    assert A.requires_grad and B.requires_grad
    assert not any(torch.equal(A, other) for i in (0, 1) for other in pair(model, "1.query", i)[:1])


def test_a_projection_without_a_pair_gets_none():
    model = adapted()
    reallocate(model, SCORES, 4)
    assert ranks(model)["0.value"] == 0
    scores = {("0.query", 0): 0.0, ("1.value", 0): 1.0} | {("1.query", i): 5.0 for i in range(6)}
    reallocate(model, scores, 2)
    assert list(ranks(model).values()) == [0, 0, 8, 0]


def test_the_projection_in_need_is_that_of_the_highest_mean_whatever_its_number_of_pairs():
    model = adapted()
    for place, number in (("1.query", 1), ("1.value", 3)):
        layer, target = adapted_projections(model)[place]
        layer.set_pairs(target, [layer.fresh_pair(1) for _ in range(number)])
    scores = {("1.query", 0): 5.0} | {("1.value", i): 4.0 for i in range(3)}  # a mean of 5 and of 4, sums of 5 and 12
    scores |= {(place, i): 1.0 for place in ("0.query", "0.value") for i in (0, 1)}
    reallocate(model, scores, 1)
    assert list(ranks(model).values()) == [1, 2, 2, 3]


def test_a_round_in_which_every_projection_would_lose_a_pair_spares_the_one_that_is_to_take_them():
    model = adapted()
    reallocate(model, SCORES, 7)
    assert list(ranks(model).values()) == [0, 0, 8, 0]
    reallocate(model, {("1.query", i): 0.0 for i in range(8)}, 7)  # nobody else is left
    assert list(ranks(model).values()) == [0, 0, 8, 0]


def of_width_8(*held):
    """A model whose projections, of width 8, have so many pairs, those of later projections more important."""
    model = tiny_model(n_embd=8)
    apply_method(model, replace(SETTINGS, rank_budget=4))
    for (layer, target), number in zip(adapted_projections(model).values(), held, strict=True):
        layer.set_pairs(target, [layer.fresh_pair(1) for _ in range(number)])
    return model, {(name, i): float(n) for n, (name, rank) in enumerate(ranks(model).items()) for i in range(rank)}


@pytest.mark.parametrize(
    ("held", "number", "expected"),
    [
        ((4, 4, 1, 7), 4, [0, 5, 3, 8]),  # in turn to the last, which is full then, and to the two before it
        ((8, 8, 8, 7), 3, [7, 8, 8, 8]),  # one pair is all that can be taken
        ((8, 8, 8, 8), 3, [8, 8, 8, 8]),
    ],
)
def test_a_projection_whose_rank_is_that_of_its_matrix_gets_no_more(held, number, expected):
    model, scores = of_width_8(*held)
    reallocate(model, scores, number)
    assert list(ranks(model).values()) == expected
    fold(model)  # which refuses a rank that is larger than the matrix


# a run


def test_the_budget_is_kept_at_every_step_and_an_eighth_of_it_moves_at_a_time(tmp_path, monkeypatch):
    counted, after_step = [], AdaptiveRank.after_step

    def watched(schedule, model, state, control):
        before = ranks(model)
        changed = after_step(schedule, model, state, control)
        counted.append((state.global_step, sum(ranks(model).values())))
        given = sum(max(0, rank - before[place]) for place, rank in ranks(model).items())
        assert given <= 2 and changed == (state.global_step in (4, 8, 12, 16))
        return changed

    monkeypatch.setattr(AdaptiveRank, "after_step", watched)
    model, result = run(tmp_path)
    assert counted == [(step, 16) for step in range(1, 21)]
    log = rank_log(result)
    assert list(log) == [0, 4, 8, 12, 16]  # no more at the last step
    assert set(log[0].values()) == {4}
    assert log[16] == ranks(model) != log[0]


def test_ranks_settle_after_eight_rounds(tmp_path):
    settings = replace(SETTINGS, schedule_every=1)
    _, result = run(tmp_path, settings, schedule=AdaptiveRank(settings, lambda model: 0.0))
    assert list(rank_log(result)) == list(range(ROUNDS + 1)) == list(range(9))


def test_the_budget_stays_whole_when_one_projection_has_come_to_have_all_of_it(tmp_path):
    settings = replace(SETTINGS, targets=("query",), schedule_every=1)
    _, result = run(tmp_path, settings, schedule=AdaptiveRank(settings, lambda model: 0.0))
    assert [list(held.values()) for held in rank_log(result).values()] == [
        [8, 8], [6, 10], [4, 12], [2, 14], *[[0, 16]] * 5,
    ]  # fmt: skip


def at_step_4(budget, model):
    """One round of a schedule with that budget, on four projections."""
    schedule = AdaptiveRank(replace(SETTINGS, rank_budget=budget), lambda model: 0.0)
    schedule.after_step(model, SimpleNamespace(global_step=4, max_steps=20), None)


def test_of_a_budget_below_eight_one_pair_moves():
    model = adapted(4)
    at_step_4(4, model)
    assert list(ranks(model).values()) == [0, 2, 1, 1]


@pytest.mark.parametrize("number", [3, 5])
def test_more_or_fewer_pairs_than_the_budget_end_the_run(number):
    with pytest.raises(RuntimeError, match=f"expected the budget of 4 pairs of rank 1 after step 4, found {number}: "):
        at_step_4(4, of_width_8(1, 1, 1, number - 3)[0])


def test_the_optimizer_forgets_a_pruned_pair_and_knows_nothing_of_a_new_one(tmp_path, monkeypatch):
    seen, regroup = [], trainer.ProtocolTrainer.regroup

    def watched(trainer):
        before = dict(trainer.optimizer.state.items())
        states = {p: copy.deepcopy(state) for p, state in before.items()}
        regroup(trainer)
        now = {p for group in trainer.optimizer.param_groups for p in group["params"]}
        assert now == {p for p in trainer.model.parameters() if p.requires_grad}
        kept = set(trainer.optimizer.state)
        assert kept < now and kept < set(before)
        for p in kept:
            assert all(torch.equal(trainer.optimizer.state[p][key], value) for key, value in states[p].items())
        seen.append((len(now - kept), len(set(before) - kept)))

    monkeypatch.setattr(trainer.ProtocolTrainer, "regroup", watched)
    run(tmp_path, schedule=AdaptiveRank(SETTINGS, lambda model: 0.0))
    assert seen == [(2 * 2, 2 * 2)] * 4  # A and B of two pairs


def test_a_run_stopped_between_two_rounds_ends_in_the_same_weights_and_ranks(tmp_path):
    whole, result = run(tmp_path / "whole")
    smoothed = partial(completion_loss, label_smoothing=SETTINGS.label_smoothing)
    for stop in (9, 13):
        with pytest.raises(TrainingInterrupted, match=f"after step {stop}"):
            run(tmp_path / "cut", loss=stop_at_call(stop if stop == 9 else 4, smoothed))
    again, continued = run(tmp_path / "cut")
    assert rank_log(continued) == rank_log(result)
    assert len({tuple(entry.values()) for entry in rank_log(result).values()}) > 2
    for name, value in values(whole).items():
        assert torch.equal(values(again)[name], value), name


def test_a_trained_run_is_folded_to_its_highest_rank_and_counted_without_the_padding(tmp_path):
    model, result = run(tmp_path / "run")
    model.eval()
    tokens = torch.arange(24).reshape(2, 12)
    before = model(tokens).logits.detach()
    reached = conclude(model)
    assert reached["ranks"] == rank_log(result)[16]
    assert reached["parameters"]["trainable"] == 16 * (32 + 32)
    assert {layer.config.rank for layer in lora_layers(model).values()} == {max(reached["ranks"].values())}
    torch.testing.assert_close(model(tokens).logits, before, atol=1e-5, rtol=0)
    save_lora(model, tmp_path / "adapter")
    loaded = tiny_model().eval()
    load_lora(loaded, tmp_path / "adapter")
    torch.testing.assert_close(loaded(tokens).logits, before, atol=1e-5, rtol=0)
