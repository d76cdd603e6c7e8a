"""What all methods share: they change a plain model only, refuse settings that make no sense, and what was saved comes
back with its settings."""

from __future__ import annotations

import math

import pytest
import torch

from baselines import PreLayer, add_adapters, add_prefix, train_biases, train_top_layers
from lora import load_lora, lora_layers, save_lora
from methods import METHODS, apply_method, finish, load_trained, save_trained
from stacked_lora import add_stacked_lora
from test_baselines import FACTS, settings, tiny

LORA = {"rank": 2, "alpha": 4.0, "targets": ("query", "value")}  # six projections
OVER_TIME = {
    "sequential-lora": {"rank": None, "rank_stages": (1, 2), "stage_trigger": "fixed"},
    "adaptive-lora": {"rank": None, "rank_budget": 12, "schedule_every": 1},
}
OWN = FACTS | {"lora": LORA} | {method: LORA | facts for method, facts in OVER_TIME.items()}
PUT_SOMETHING_IN = ("lora", *OVER_TIME, "adapter-h", "adapter-l", "preembed", "prelayer")


def changed(method: str, **facts):
    model = tiny()
    apply_method(model, of(method, **facts))
    return model


def of(method: str, family: str = "gpt2", **facts):
    return settings(method, family, **OWN.get(method, {}) | facts)


def state(model):
    return [(name, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()]


def unchanged(model, before) -> bool:
    after = state(model)
    return [(n, g) for n, _, g in after] == [(n, g) for n, _, g in before] and all(
        torch.equal(ours, theirs) for (_, ours, _), (_, theirs, _) in zip(after, before, strict=True)
    )


# one method a model


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", PUT_SOMETHING_IN)
def test_no_method_is_put_on_top_of_another(first, second):
    model = changed(first)
    before = state(model)
    with pytest.raises(ValueError, match=r"expected a plain model, found .*"):
        apply_method(model, of(second))
    assert unchanged(model, before)


@pytest.mark.parametrize("first", PUT_SOMETHING_IN)
def test_what_was_saved_is_loaded_into_a_plain_model_only(first, tmp_path):
    save_lora(changed("lora"), tmp_path)
    save_trained(changed("bitfit"), of("bitfit"), tmp_path)
    model = changed(first)
    before = state(model)
    for load in (load_lora, load_trained):
        with pytest.raises(ValueError, match=r"expected a plain model, found .*"):
            load(model, tmp_path)
        assert unchanged(model, before)


@pytest.mark.parametrize(
    "change",
    [
        train_biases,
        lambda model: train_top_layers(model, 1),
        lambda model: add_adapters(model, "houlsby", 2),
        lambda model: add_prefix(model, PreLayer, 2),
        lambda model: add_stacked_lora(model, lora_layers(changed("lora"))["transformer.h.0.attn.c_attn"].config),
    ],
    ids=["biases", "top layers", "adapters", "prefix", "stack"],
)
@pytest.mark.parametrize("first", ["lora", "sequential-lora"])
def test_nor_by_the_functions_that_the_methods_are_made_of(first, change):
    with pytest.raises(ValueError, match="expected a plain model"):
        change(changed(first))


def test_a_model_whose_lora_was_folded_is_plain_again():
    model = changed("lora")
    finish(model)
    apply_method(model, of("adapter-h"))


# settings


@pytest.mark.parametrize("method", OWN)
def test_settings_come_back_equal_to_those_that_were_saved(method, tmp_path):
    family = "bert" if method == "adapter-p" else "gpt2"
    model = tiny(family)
    apply_method(model, of(method, family))
    save_trained(model, of(method, family), tmp_path)
    assert {load_trained(tiny(family), tmp_path)} == {of(method, family)}  # with the same hash


@pytest.mark.parametrize(
    ("method", "family", "facts", "message"),
    [
        ("lora", "gpt2", {"alpha": 0.0}, "lora takes a rank and an alpha above 0; found rank 2 and alpha 0.0"),
        ("adaptive-lora", "bert", {"alpha": -1.0}, "an alpha above 0; found rank 2 and alpha -1.0"),
        ("lora", "gpt2", {"b_learning_rate_ratio": 0.0}, "ratio is the learning rate of B .* above 0 .*; found 0.0"),
        ("sequential-lora", "gpt2", {"b_learning_rate_ratio": -16.0}, "above 0 .*; found -16.0"),
        ("lora", "gpt2", {"b_learning_rate_ratio": math.nan}, "above 0 .*; found nan"),
        ("lora", "bert", {"rank": 2.5}, r"rank is to be of type int \| None; found 2.5"),
        ("sequential-lora", "gpt2", {"rank_stages": (2.5, 4)}, r"rank_stages is to be .*int, .*; found \(2.5, 4\)"),
        ("sequential-lora", "gpt2", {"old_stages": None}, "old_stages is to be of type float; found None"),
        ("adaptive-lora", "gpt2", {"rank_budget": 12.0}, "rank_budget is to be .*; found 12.0"),
        ("adapter-h", "bert", {"bottleneck": 2.5}, r"bottleneck is to be of type int \| None; found 2.5"),
        ("adapter-l", "gpt2", {"dropped_layers": 1.0}, "dropped_layers is to be of type int; found 1.0"),
        ("top-layers", "gpt2", {"top_layers": 2.0}, r"top_layers is to be of type int \| None; found 2.0"),
        ("prelayer", "gpt2", {"prefix_tokens": 4.0}, r"prefix_tokens is to be of type int \| None; found 4.0"),
        ("lora", "bert", {"packed_pair": True}, "packed_pair is one pair over .* GPT-2's c_attn, .* found BertFor"),
        ("lora", "gpt2", {"packed_pair": True, "targets": ("output",)}, r"found GPT2.* with targets \('output',\)"),
        ("sequential-lora", "gpt2", {"packed_pair": True}, "packed_pair: method 'sequential-lora' has no such setting"),
        (
            "adaptive-lora",
            "gpt2",
            {"transposed_init": True},
            "transposed_init: method 'adaptive-lora' has no such setting",
        ),
        (
            "full",
            "gpt2",
            {"packed_pair": True, "transposed_init": True},
            "packed_pair and transposed_init: method 'full'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_the_model_stays_plain(method, family, facts, message):
    model = tiny(family)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        apply_method(model, of(method, family, **facts))
    assert unchanged(model, before)


def test_a_packed_pair_is_over_all_of_c_attn_whichever_third_is_a_target_and_leaves_other_matrices_theirs():
    model = changed("lora", packed_pair=True, targets=("value", "mlp_out"))
    shapes = {
        name: (tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)) for name, layer in lora_layers(model).items()
    }
    assert shapes["transformer.h.0.attn.c_attn"] == ((2, 16), (48, 2))
    assert shapes["transformer.h.0.mlp.c_proj"] == ((2, 64), (16, 2))
