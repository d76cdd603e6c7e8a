"""A frozen base in bfloat16 and dropout in fewer random bits: faster, and what is computed stays the same."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

from adapter_files import load_lora, save_lora
from experiments.settings import Settings
from families import head_parameters, layers
from lora import LoRAConfig, add_lora, lora_layers
from methods.catalogue import apply_method, finish
from methods.stacked_lora import add_stacked_lora, stacked_layers
from tasks.e2e.evaluation import validation_loss
from test_training import some_rows, tiny_model
from tiny_models import CASES, LANGUAGE_MODELS, TOKENS, logits, settings, tiny
from training.precision import autocast, keep_frozen_in_bfloat16, uses_bfloat16

CPU, PAIRS = torch.device("cpu"), {"rank": 2, "alpha": 4.0, "targets": ("query", "value")}
FAMILIES = ("gpt2", "llama", "bert")
LORA_AND_OTHERS = [("lora", family) for family in FAMILIES] + CASES
TIED = LANGUAGE_MODELS  # whose output matrix is the word embeddings' too


def plain(family: str) -> nn.Module:
    return tiny(family, **{"tie_word_embeddings": True} if family in TIED else {})


def adapted(method: str = "lora", family: str = "gpt2", precision: str = "bfloat16") -> tuple[nn.Module, Settings]:
    """A new tiny model, changed as the method says, its pairs random; and the settings."""
    model, chosen = plain(family), settings(method, family, precision=precision, **PAIRS if method == "lora" else {})
    torch.manual_seed(1)
    apply_method(model, chosen)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model, chosen


def converted(method: str = "lora", family: str = "gpt2") -> tuple[nn.Module, Settings]:
    model, chosen = adapted(method, family)
    keep_frozen_in_bfloat16(model)
    return model, chosen


def loss(model: nn.Module) -> torch.Tensor:
    labels = TOKENS if model.config.model_type in LANGUAGE_MODELS else torch.tensor([0, 1])
    return model(TOKENS, labels=labels).loss


def loss_and_gradients(model: nn.Module, chosen: Settings) -> dict[str, torch.Tensor]:
    with autocast(chosen, CPU):
        value = loss(model)
    value.backward()
    return {"loss": value.detach()} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def distance(results: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The largest of the relative differences: of the loss, and of the gradient of each trained parameter."""
    assert results.keys() == others.keys()
    return max(((results[name] - others[name]).norm() / others[name].norm()).item() for name in results)


def steps(model: nn.Module, chosen: Settings, number: int, rate: float = 0.01) -> nn.Module:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(number):
        with autocast(chosen, CPU):
            value = loss(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def in_bfloat16(model: nn.Module, chosen: Settings) -> torch.Tensor:
    with autocast(chosen, CPU):
        return logits(model).float()


def close(results: torch.Tensor, others: torch.Tensor) -> bool:
    """Equal but for roundings to bfloat16 on the way through three layers."""
    return bool((results - others).norm() < 0.05 * others.norm())


# The frozen base --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "family"), LORA_AND_OTHERS)
def test_loss_and_gradients_are_those_of_float32_weights_under_autocast(method, family):
    ours, theirs = loss_and_gradients(*converted(method, family)), loss_and_gradients(*adapted(method, family))
    rounding = distance(loss_and_gradients(*adapted(method, family, "float32")), theirs)
    assert rounding > 0.01  # another precision would be noticed
    if family in TIED:  # the word embeddings are rounded
        assert distance(ours, theirs) < 3 * rounding
    else:
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_enters_the_first_layer_is_float32(family):
    model, chosen = converted(family=family)
    entered = []
    layers(model)[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].dtype))
    in_bfloat16(model, chosen)
    assert entered == [torch.float32]


@pytest.mark.parametrize(("method", "family"), LORA_AND_OTHERS)
def test_what_is_trained_stays_in_float32_and_frozen_matrices_do_not(method, family):
    model, _ = converted(method, family)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in head_parameters(model).values()} <= {torch.float32}
    frozen = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    assert {weight.dtype for weight in frozen} <= {torch.bfloat16}
    assert torch.bfloat16 in {p.dtype for p in model.parameters()}


def test_full_fine_tuning_has_nothing_to_convert():
    model, _ = converted("full")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_trained_beside_bfloat16_load_onto_the_float32_base(family, tmp_path):
    model, chosen = converted(family=family)
    steps(model, chosen, 3)
    save_lora(model, tmp_path)
    loaded = plain(family)
    before = logits(loaded)
    load_lora(loaded, tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, layer in lora_layers(model).items():
        assert torch.equal(lora_layers(loaded)[name].lora_A, layer.lora_A)
        assert torch.equal(lora_layers(loaded)[name].lora_B, layer.lora_B)
    assert close(in_bfloat16(model, chosen), logits(loaded))
    assert not close(before, logits(loaded))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_computes_what_the_pairs_do_beside_bfloat16(family):
    model, chosen = converted(family=family)
    before = in_bfloat16(model, chosen)
    finish(model)
    assert not lora_layers(model)
    assert close(in_bfloat16(model, chosen), before)
    assert not close(logits(plain(family)), before)


@pytest.mark.parametrize(("of_base", "of_pairs"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_pairs_added_later_have_at_least_float32(of_base, of_pairs):
    plain_lora, stacked = plain("gpt2").to(of_base), plain("gpt2").to(of_base)
    add_lora(plain_lora, LoRAConfig(2))
    add_stacked_lora(stacked, LoRAConfig(2))
    pairs = [layer.fresh_pair(2) for layer in stacked_layers(stacked).values()]
    pairs += [(layer.lora_A, layer.lora_B) for layer in lora_layers(plain_lora).values()]
    assert {matrix.dtype for pair in pairs for matrix in pair} == {of_pairs}


def moved(model: nn.Module, chosen: Settings) -> float:
    """The share of A's numbers that 20 small steps change."""
    before = [layer.lora_A.detach().clone() for layer in lora_layers(model).values()]
    steps(model, chosen, 20, rate=2e-5)
    after = [layer.lora_A for layer in lora_layers(model).values()]
    return torch.cat([(a != b).flatten() for a, b in zip(after, before, strict=True)]).float().mean().item()


def test_small_steps_move_all_of_a_beside_bfloat16_and_little_of_it_in_bfloat16():
    assert moved(*converted()) == 1
    model, chosen = converted()
    for layer in lora_layers(model).values():
        layer.lora_A.data = layer.lora_A.bfloat16()
    assert moved(model, chosen) < 0.2


def test_bfloat16_is_refused_on_a_gpu_that_only_emulates_it(monkeypatch):
    asked, auto = (Settings("mnli", "deberta-v2-xlarge", "full", 1e-4, 1, 4, precision=p) for p in ("bfloat16", "auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr("training.precision.has_fast_bfloat16", lambda: False)
    with pytest.raises(ValueError, match=r"expected a GPU with bfloat16 .*, found Tesla T4, .* or scale `cpu`"):
        uses_bfloat16(asked)
    assert not uses_bfloat16(auto)
    monkeypatch.setattr("training.precision.has_fast_bfloat16", lambda: True)
    assert uses_bfloat16(asked) and uses_bfloat16(auto)


def test_the_validation_loss_in_bfloat16_is_that_in_float32():
    model, rows = tiny_model(initializer_range=0.3), some_rows()
    apply_method(model, settings("lora", **PAIRS))
    exact = validation_loss(model, rows, settings("lora", precision="float32", **PAIRS))
    chosen = settings("lora", precision="bfloat16", **PAIRS)
    under_autocast = validation_loss(model, rows, chosen)
    assert under_autocast != exact  # it does compute in bfloat16
    assert math.isclose(under_autocast, exact, rel_tol=0.01)
    keep_frozen_in_bfloat16(model)
    assert math.isclose(validation_loss(model, rows, chosen), exact, rel_tol=0.01)


STACKED = {
    "sequential-lora": {"alpha": 4.0, "targets": ("query", "value"), "rank_stages": (2, 4), "stage_trigger": "fixed"},
    "adaptive-lora": {"alpha": 4.0, "targets": ("query", "value"), "rank_budget": 12, "schedule_every": 1},
}


@pytest.mark.parametrize("method", STACKED)
def test_stacked_pairs_stay_in_float32_too_and_learn_the_same(method):
    def loss_and_gradients_of_pairs(convert: bool) -> dict[str, torch.Tensor]:
        model, chosen = plain("bert"), settings(method, "bert", precision="bfloat16", **STACKED[method])
        torch.manual_seed(1)
        apply_method(model, chosen)
        if convert:
            keep_frozen_in_bfloat16(model)
        assert {p.dtype for n, p in model.named_parameters() if ".lora_" in n} == {torch.float32}
        return loss_and_gradients(model, chosen)

    ours, theirs = loss_and_gradients_of_pairs(True), loss_and_gradients_of_pairs(False)
    assert any(".lora_B" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_in_bfloat16_can_be_pickled():
    model, chosen = converted(family="llama")
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(in_bfloat16(again, chosen), in_bfloat16(model, chosen))
