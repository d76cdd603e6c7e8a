"""Sequential LoRA: when a stage begins, what becomes of the earlier ones, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from adapter_files import load_lora, save_lora
from experiments.settings import Job, Settings
from lora import LoRAConfig, add_lora, lora_layers
from methods.catalogue import METHODS, apply_method, count_trained, finish, schedule_of
from methods.rank_budget import AdaptiveRank
from methods.rank_changes import conclude, ended
from methods.rank_stages import StagedRank, decide
from methods.stacked_lora import ranks, stacked_layers
from models import architecture, load_tokenizer
from runs import e2e as e2e_run
from runs import glue as glue_run
from tasks.catalogue import TASKS
from tasks.e2e.beam_search import Generation
from tasks.e2e.evaluation import validation_loss
from tasks.e2e.loss import completion_loss
from tasks.glue import data as glue_data
from test_training import run_training, some_rows, stop_at_call, tiny_model
from training import trainer
from training.checkpoints import TrainingInterrupted
from training.optimizer import trained_state
from training.trainer import WEIGHTS_FILE, train

# 37 rows in batches of 4, two epochs: 20 steps.
SETTINGS = Settings(
    task="e2e", model="gpt2-mini", method="sequential-lora", learning_rate=1e-2, epochs=2, batch_size=4, warmup_steps=3,
    keep="last", alpha=16.0, lora_dropout=0.1, targets=("query", "value"), rank_stages=(2, 4, 6, 8),
    stage_trigger="fixed",
)  # fmt: skip
PLATEAU = replace(SETTINGS, stage_trigger="plateau", schedule_every=2, patience=2)
DEV = some_rows(8, seed=1)


def run(folder, settings=SETTINGS, schedule=None, **others):
    schedule = schedule or schedule_of(settings, lambda m, rows: validation_loss(m, rows, settings), DEV)
    smoothed = partial(completion_loss, label_smoothing=settings.label_smoothing)
    return run_training(folder, settings, **{"loss": smoothed, "schedule": schedule} | others)


def scripted(settings, losses):
    """The plateau schedule with made-up validation losses."""
    losses = iter(losses)
    return StagedRank(settings, lambda model: next(losses))


def changes(result):
    """Step -> the rank that every projection has from there on."""
    entries = [entry for entry in result.history if "ranks" in entry]
    assert all(len(set(entry["ranks"].values())) == 1 for entry in entries)
    return {entry["step"]: next(iter(entry["ranks"].values())) for entry in entries}


def decisions(result):
    return [entry["decision"] for entry in result.history if "decision" in entry]


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def stage(name):
    return int(name.rpartition(".")[2])


@pytest.fixture
def at_boundaries(monkeypatch):
    """What the optimizer and the model are just before and just after it follows a new stage."""
    seen, regroup = [], trainer.ProtocolTrainer.regroup

    def watched(trainer):
        def now():
            names = {p: n for n, p in trainer.model.named_parameters()}
            state = {names[p]: copy.deepcopy(s) for p, s in trainer.optimizer.state.items()}
            return state, values(trainer.model)

        before = now()
        regroup(trainer)
        seen.append((before, now()))

    monkeypatch.setattr(trainer.ProtocolTrainer, "regroup", watched)
    return seen


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every parameter that has a gradient, by the shape-free identity of it, step by step."""
    seen = []

    class Watched(trainer.OfficialAdamW):
        def step(self, closure=None):
            seen.append({p: g["lr"] for g in self.param_groups for p in g["params"] if p.grad is not None})
            return super().step(closure)

    monkeypatch.setattr(trainer, "OfficialAdamW", Watched)
    return seen


# when a stage begins


def test_fixed_boundaries_divide_the_steps_evenly(tmp_path):
    _, result = run(tmp_path)
    assert changes(result) == {0: 2, 5: 4, 10: 6, 15: 8}
    _, result = run(tmp_path / "three", replace(SETTINGS, rank_stages=(1, 5, 6)))
    assert changes(result) == {0: 1, 7: 5, 14: 6}  # 20 / 3 and 40 / 3, rounded up


S = replace(PLATEAU, patience=2, min_improvement=0.1, grace=0)


@pytest.mark.parametrize(
    ("losses", "settings", "decision"),
    [
        ([[3.0]], S, "stay"),
        ([[3.0, 3.0]], S, "stay"),  # nothing before the last two to compare with
        ([[3.0, 3.0, 3.0]], S, "next"),
        ([[3.0, 2.95, 2.91]], S, "next"),  # lower, but not by 0.1
        ([[3.0, 2.95, 2.89]], S, "stay"),
        ([[3.0, 2.8, 2.9]], S, "stay"),
        ([[3.0, 2.8, 2.9, 2.85]], S, "next"),
        ([[3.0, 2.8, 2.9, 2.85]], replace(S, patience=3), "stay"),
        ([[3.0, 3.0, 3.0]], replace(S, grace=1), "next"),
        ([[3.0, 3.0, 3.0]], replace(S, grace=2), "stay"),  # the first two cannot end it
        ([[3.0, 2.99, 2.98]], replace(S, min_improvement=0.0), "stay"),
        ([[3.0, 3.0, 3.0]], replace(S, min_improvement=0.0), "next"),
        ([[3.0, 3.0, 3.0], [2.5]], S, "stay"),
        ([[3.0, 3.0, 3.0], [2.5, 2.5]], S, "stay"),  # better than all before
        ([[3.0, 3.0, 3.0], [2.5, 2.5, 2.5]], S, "next"),
        ([[3.0, 3.0, 3.0], [3.1, 2.95]], S, "stop"),  # a stage that brought nothing
        ([[3.0, 3.0, 3.0], [3.1, 2.95]], replace(S, grace=1), "stay"),
        ([[3.0, 3.0, 2.0], [2.5, 2.5]], S, "stop"),  # the best before counts, not the last
        ([[3.0] * 3, [2.5] * 3, [2.0] * 3, [1.5] * 2], S, "stay"),
        ([[3.0] * 3, [2.5] * 3, [2.0] * 3, [1.5] * 3], S, "stop"),  # the cap, at its plateau
    ],
)
def test_decisions_on_hand_written_losses(losses, settings, decision):
    assert decide(losses, settings) == decision


def test_a_plateau_begins_the_next_stage_and_ends_training_at_the_caps_own(tmp_path):
    settings = replace(PLATEAU, rank_stages=(2, 4), epochs=3, patience=1)
    model, result = run(tmp_path, settings, scripted(settings, [5.0, 4.0, 4.0, 3.0, 2.0, 2.0]))
    assert decisions(result) == ["stay", "stay", "next", "stay", "stay", "stop"]
    assert changes(result) == {0: 2, 6: 4}
    assert result.steps == result.kept_step == 12  # of 30
    last = result.history[-1]
    assert last["step"] == 12 and "eval_loss" in last  # where it ends is validated, for the record
    assert set(ranks(model).values()) == {4}


def test_a_stage_that_brings_nothing_ends_training_below_the_cap(tmp_path):
    model, result = run(tmp_path, PLATEAU, scripted(PLATEAU, [5.0, 5.0, 5.0, 5.0, 5.0]))
    assert decisions(result) == ["stay", "stay", "next", "stay", "stop"]
    assert set(ranks(model).values()) == {4}


def test_training_that_never_comes_to_a_plateau_takes_all_its_steps(tmp_path):
    _, result = run(tmp_path, PLATEAU, scripted(PLATEAU, range(100, 0, -1)))
    assert decisions(result) == ["stay"] * 9
    assert changes(result) == {0: 2}
    assert result.steps == 20


def test_no_stage_begins_at_the_last_step(tmp_path):
    settings = replace(PLATEAU, schedule_every=5, patience=1)
    _, result = run(tmp_path, settings, scripted(settings, [5.0, 4.0, 3.0, 3.0]))  # a plateau at step 20
    assert changes(result) == {0: 2}
    settings = replace(SETTINGS, rank_stages=tuple(range(1, 25)))  # more stages than steps
    _, result = run(tmp_path / "fixed", settings)
    assert list(changes(result)) == list(range(20))


# what a new stage changes


@pytest.mark.parametrize("old_stages", [0.0, 0.25, 1.0], ids=["frozen", "hybrid", "unfrozen"])
def test_moments_and_weights_of_earlier_stages_survive_a_boundary_and_new_ones_start_fresh(
    old_stages, tmp_path, at_boundaries
):
    run(tmp_path, replace(SETTINGS, old_stages=old_stages))
    assert len(at_boundaries) == 3
    for number, ((state, weights), (state_after, weights_after)) in enumerate(at_boundaries, start=1):
        assert {stage(name) for name in state} == set(range(number))
        assert state.keys() == state_after.keys()  # a pair that has not been trained has no moments
        for name, moments in state.items():
            assert all(torch.equal(moments[key], state_after[name][key]) for key in moments)
            assert moments["exp_avg"].any()
        assert all(torch.equal(weights_after[name], value) for name, value in weights.items())
        assert all(not p.any() for n, p in weights_after.items() if ".lora_B" in n and stage(n) == number)


def test_a_frozen_stage_keeps_every_bit_while_the_next_is_trained(tmp_path, at_boundaries):
    model, _ = run(tmp_path, replace(SETTINGS, rank_stages=(2, 4)))
    (_, (state, at_boundary)), now = at_boundaries[0], values(model)
    moved = {name for name, value in now.items() if not torch.equal(value, at_boundary[name])}
    assert moved == {name for name in now if ".lora_" in name and stage(name) == 1}
    assert all(p.grad is None for n, p in model.named_parameters() if n not in moved)  # nor a part in clipping
    assert state


@pytest.mark.parametrize(("old_stages", "share"), [(0.25, 0.25), (1.0, 1.0)], ids=["hybrid", "unfrozen"])
def test_earlier_stages_go_on_at_their_share_of_the_learning_rate(old_stages, share, tmp_path, rates, at_boundaries):
    model, _ = run(tmp_path, replace(SETTINGS, rank_stages=(2, 4), old_stages=old_stages))
    at_boundary, now = at_boundaries[0][1][1], values(model)
    pairs = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    assert all(not torch.equal(now[name], at_boundary[name]) for name in pairs)
    course = [1e-2 * (min(step / 3, 1) if step < 3 else (20 - step) / 17) for step in range(20)]
    for step, rate in enumerate(course):
        expected = {n: rate * (share if step >= 10 and stage(n) == 0 else 1) for n in pairs}
        expected = {n: r for n, r in expected.items() if step >= 10 or stage(n) == 0}
        assert {n: rates[step][p] for n, p in pairs.items() if p in rates[step]} == pytest.approx(expected)


def test_a_frozen_stage_has_no_gradient_and_so_no_step(tmp_path, rates):
    model, _ = run(tmp_path, replace(SETTINGS, rank_stages=(2, 4)))
    names = {p: n for n, p in model.named_parameters()}
    assert {stage(names[p]) for p in rates[9]} == {0}
    assert {stage(names[p]) for p in rates[10]} == {1}


def test_the_rate_that_is_logged_is_that_of_the_newest_stage(tmp_path):
    _, result = run(tmp_path)
    logged = {e["step"]: e["learning_rate"] for e in result.history if "loss" in e}
    assert logged[11] == pytest.approx(1e-2 * 10 / 17)


# interruption


@pytest.mark.parametrize("old_stages", [0.0, 0.25, 1.0], ids=["frozen", "hybrid", "unfrozen"])
@pytest.mark.parametrize(
    "settings", [SETTINGS, replace(PLATEAU, patience=1, min_improvement=0.02)], ids=["fixed", "plateau"]
)
@pytest.mark.parametrize("later", [0, 1], ids=["at its beginning", "inside it"])
def test_a_run_stopped_in_the_second_stage_ends_in_the_same_weights(tmp_path, settings, old_stages, later):
    settings = replace(settings, old_stages=old_stages)
    whole, result = run(tmp_path / "whole", settings)
    _, second, third, *_ = [*changes(result), result.steps]
    assert second + later < third
    smoothed = partial(completion_loss, label_smoothing=settings.label_smoothing)
    with pytest.raises(TrainingInterrupted, match=f"after step {second + later};"):
        run(tmp_path / "cut", settings, loss=stop_at_call(second + later, smoothed))
    again, continued = run(tmp_path / "cut", settings)
    assert values(again).keys() == values(whole).keys()
    for name, value in values(whole).items():
        assert torch.equal(values(again)[name], value), name
    ours, theirs = ([e for e in r.history if "ranks" in e or "decision" in e] for r in (continued, result))
    assert ours == theirs


def test_a_run_that_its_schedule_has_ended_is_not_trained_on_when_continued(tmp_path):
    settings = replace(PLATEAU, patience=1)
    model, result = run(tmp_path, settings, scripted(settings, [5.0, 5.0, 5.0]))
    assert result.steps == 6  # within the first epoch

    def unexpected(model, batch):
        raise AssertionError("trained on")

    again, continued = run(tmp_path, settings, scripted(settings, []), loss=unexpected)
    assert continued.steps == continued.kept_step == 6
    assert decisions(continued) == decisions(result)
    assert [e for e in continued.history if "eval_loss" in e] == [e for e in result.history if "eval_loss" in e]
    for name, value in values(model).items():
        assert torch.equal(values(again)[name], value), name


def test_a_signal_at_the_very_step_that_ends_training_loses_nothing(tmp_path):
    settings = replace(PLATEAU, patience=1)
    with pytest.raises(TrainingInterrupted, match="after step 6"):
        run(tmp_path, settings, scripted(settings, [5.0, 5.0, 5.0]), loss=stop_at_call(6))
    _, continued = run(tmp_path, settings, scripted(settings, []))
    assert continued.steps == 6
    assert continued.history[-1]["step"] == 6 and "eval_loss" in continued.history[-1]


def test_checkpoints_hold_frozen_stages_too(tmp_path):
    model, _ = run(tmp_path)
    saved = load_file(next(tmp_path.glob(f"checkpoint-20/{WEIGHTS_FILE}")))
    assert saved.keys() == trained_state(model).keys() == {n for n in values(model) if ".lora_" in n}
    assert {stage(name) for name in saved} == {0, 1, 2, 3}


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_epoch_comes_back_with_the_stages_it_had(best, tmp_path):
    settings = replace(SETTINGS, rank_stages=(2, 4, 6, 8), epochs=3, keep="best-epoch")  # from steps 8, 15 and 23
    model, states, scores = tiny_model(), [], iter([0.2 if epoch == best else 0.9 for epoch in range(3)])
    apply_method(model, settings)

    def validate(m, epoch):
        states.append(values(m))
        return {"loss": next(scores)}

    schedule = schedule_of(settings, lambda m, rows: validation_loss(m, rows, settings), DEV)
    result = train(model, some_rows(), Job(settings, 0, tmp_path), completion_loss, validate, schedule=schedule)
    assert result.kept_step == 10 * (best + 1)
    assert set(ranks(model).values()) == {(4, 6, 8)[best]}
    assert values(model).keys() == states[best].keys()
    assert all(torch.equal(value, states[best][name]) for name, value in values(model).items())


# what is left in the end


def test_a_trained_run_is_folded_counted_and_saved_as_plain_lora(tmp_path):
    model, _ = run(tmp_path / "run")
    model.eval()
    tokens = torch.arange(24).reshape(2, 12)
    before = model(tokens).logits.detach()
    reached = conclude(model)
    assert reached["ranks"] == {"0.query": 8, "0.value": 8, "1.query": 8, "1.value": 8}
    assert reached["parameters"]["trainable"] == 2 * 2 * 8 * (32 + 32)  # frozen stages count
    plain = tiny_model()
    add_lora(plain, LoRAConfig(rank=8))
    assert reached["parameters"]["total"] == sum(p.numel() for p in plain.parameters())
    torch.testing.assert_close(model(tokens).logits, before, atol=1e-5, rtol=0)
    assert next(iter(lora_layers(model).values())).scaling == 16.0 / 8
    save_lora(model, tmp_path / "adapter")
    loaded = tiny_model().eval()
    load_lora(loaded, tmp_path / "adapter")
    torch.testing.assert_close(loaded(tokens).logits, before, atol=1e-5, rtol=0)
    finish(model)
    assert type(model.transformer.h[0].attn.c_attn) is type(tiny_model().transformer.h[0].attn.c_attn)
    torch.testing.assert_close(model(tokens).logits, before, atol=1e-5, rtol=0)


VARIANTS = {
    f"{trigger}-{name}": replace(base, old_stages=share)
    for trigger, base in {"fixed": SETTINGS, "plateau": replace(PLATEAU, patience=1)}.items()
    for name, share in {"frozen": 0.0, "hybrid": 0.25, "unfrozen": 1.0}.items()
}
METHODS_OVER_TIME = VARIANTS | {
    "adaptive": replace(
        SETTINGS, method="adaptive-lora", rank_stages=(), stage_trigger=None, rank_budget=8, schedule_every=2
    )
}


@pytest.mark.parametrize("name", METHODS_OVER_TIME)
def test_every_variant_runs_on_e2e_from_training_to_record(name, tmp_path, monkeypatch):
    tokenizer, task = load_tokenizer("gpt2-mini"), TASKS["e2e-builtin"]
    few = replace(
        task,
        load=lambda split, *others: task.load(split, *others)[: 16 if split == "train" else 4],
        score=lambda inputs, texts, settings: ({}, [{} for _ in texts]),
    )
    monkeypatch.setitem(TASKS, "e2e-builtin", few)
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(tokenizer), "n_positions": 256}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **none, pad_token_id=0))
    settings = replace(METHODS_OVER_TIME[name], task="e2e-builtin")
    apply_method(model, settings)
    decoded = []

    def decode(model, tokenizer, contexts, *_):
        decoded.append(not lora_layers(model) and not stacked_layers(model))
        return [Generation("a text", 3, ended=True) for _ in contexts]

    monkeypatch.setattr(e2e_run, "generate", decode)
    keep = partial(save_lora, folder=tmp_path / "adapter")
    record, _ = e2e_run.train_and_score(model, tokenizer, Job(settings, 0, tmp_path), keep)
    assert decoded == [True]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    rank_log = [entry["ranks"] for entry in record["history"] if "ranks" in entry]
    assert len(rank_log) > 1 or name.startswith("plateau")
    assert record["ranks"] == rank_log[-1]
    assert record["dev_loss"] > 0
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("name", METHODS_OVER_TIME)
def test_every_variant_runs_on_glue_from_training_to_record(name, tmp_path, monkeypatch):
    examples = [glue_data.Example((str(i),), i % 2) for i in range(40)]
    rows = {e: {"input_ids": [2 + i % 7, 3 + i % 5, 4], "token_type_ids": [0] * 3} for i, e in enumerate(examples)}
    monkeypatch.setattr(glue_data, "load_glue", lambda *_: glue_data.GlueSplit(list(examples), False))
    monkeypatch.setattr(
        glue_data, "encode", lambda es, *_: glue_data.Encoded([rows[e] | {"label": e.label} for e in es], 0)
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(**shape, vocab_size=20, max_position_embeddings=8, num_labels=2))
    settings = replace(
        METHODS_OVER_TIME[name], task="sst2", model="minilm", keep="best-epoch", max_length=8, max_grad_norm=1.0,
        decay="matrices",
    )  # fmt: skip
    apply_method(model, settings)
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0})()
    adapter, judged_on = tmp_path / "adapter", []

    def watched(settings, loss_on, rows):
        judged_on.extend(rows)
        return schedule_of(settings, loss_on, rows)

    monkeypatch.setattr(glue_run, "schedule_of", watched)
    record, predictions = glue_run.train_and_score(
        model, tokenizer, Job(settings, 0, tmp_path / "run"), partial(save_lora, folder=adapter)
    )
    assert len(predictions) == 40
    assert len(judged_on) == 4  # the held-out tenth of the training rows, not the 40 that are reported
    assert len(record["epochs"]) == sum("eval_loss" in entry for entry in record["history"])
    if record["steps"] < 18:  # 36 of the 40 rows, in batches of 4, twice
        assert ended(record["history"])
    assert record["parameters"]["trainable"] == sum(record["ranks"].values()) * (16 + 16)
    assert record["parameters"]["head"] == 16 * 16 + 16 + 2 * 16 + 2
    assert json.loads(json.dumps(record)) == record


def test_an_epoch_that_a_plateau_cuts_short_is_validated_under_a_number_of_its_own(tmp_path):
    settings = replace(PLATEAU, epochs=5, schedule_every=4, patience=1)
    model, epochs = tiny_model(), []
    apply_method(model, settings)

    def validate(m, epoch):
        epochs.append(epoch)
        return {"loss": 1.0}

    schedule = scripted(settings, [5.0, 5.0, 5.0])
    result = train(model, some_rows(), Job(settings, 0, tmp_path), completion_loss, validate, schedule=schedule)
    assert result.steps == 12  # of 50, ten an epoch
    assert epochs == [1, 2]


# settings


@pytest.mark.parametrize("name", ["gpt2-medium", "roberta-base", "deberta-v2-xxlarge"])
def test_the_methods_find_their_places_in_models_without_weights(name):
    glue = {"task": "sst2"} if name != "gpt2-medium" else {}
    places = 2 * {"gpt2-medium": 24, "roberta-base": 12, "deberta-v2-xxlarge": 48}[name]
    for settings in (SETTINGS, replace(METHODS_OVER_TIME["adaptive"], rank_budget=2 * places)):
        model = architecture(name, 2 if glue else None)
        apply_method(model, replace(settings, model=name, **glue))
        assert len(ranks(model)) == places and set(ranks(model).values()) == {2}
        width = model.config.hidden_size
        assert count_trained(model)[0] == places * 2 * (width + width)


def test_a_method_whose_rank_is_constant_has_no_schedule():
    for method in METHODS.keys() - {"sequential-lora", "adaptive-lora"}:
        assert schedule_of(replace(SETTINGS, method=method), validation_loss, DEV) is None


@pytest.mark.parametrize("length", [20, 366, 700, 4_672])  # few; the held-out rows of MRPC; E2E's development set
@pytest.mark.parametrize(
    ("settings", "most"),
    [(PLATEAU, StagedRank.validation_rows), (METHODS_OVER_TIME["adaptive"], AdaptiveRank.validation_rows)],
    ids=["plateau", "importance"],
)
def test_a_schedule_judges_by_so_many_rows_at_most_from_all_over_the_split(settings, most, length):
    assert (StagedRank.validation_rows, AdaptiveRank.validation_rows) == (512, 32)
    judged = schedule_of(settings, lambda model, rows: rows, list(range(length))).validation(None)
    assert len(judged) == min(most, length)
    steps = {later - earlier for earlier, later in pairwise(judged)}
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1
    assert judged[0] == 0 and judged[-1] >= length - max(steps)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank_stages": ()}, "rank_stages must be the total ranks of one or more stages, .* found none"),
        ({"rank_stages": (2, 4, 4)}, r"increase .* found \(2, 4, 4\)"),
        ({"rank_stages": (4, 2)}, r"from stage to stage.* found \(4, 2\)"),
        ({"rank_stages": (0, 2)}, r"found \(0, 2\)"),
        ({"stage_trigger": "sometimes"}, "stage_trigger must be one of fixed, plateau, found 'sometimes'"),
        ({"stage_trigger": None}, "stage_trigger must be 'fixed' or 'plateau', found None"),
        ({"stage_trigger": "plateau"}, "a plateau needs schedule_every, the steps between two .*; found None"),
        ({"alpha": None}, "sequential-lora takes a rank and an alpha above 0; found rank 8 and alpha None"),
        ({"rank_stages": (2, 64)}, "rank 64 is larger than the matrix"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_training(wrong, message):
    with pytest.raises(ValueError, match=message):
        apply_method(tiny_model(), replace(SETTINGS, **wrong))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"takes one process, found 2: .* Start it without `accelerate launch`"):
        run(tmp_path)
