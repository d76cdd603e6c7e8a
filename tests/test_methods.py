"""What all methods share: exactly what each trains, where it starts, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from adapter_files import load_lora, save_lora
from families import FAMILIES
from lora import lora_layers
from methods.adapters import add_adapters
from methods.catalogue import METHODS, apply_method, finish
from methods.partial import train_biases, train_top_layers
from methods.prefixes import PreLayer, add_prefix
from methods.saved import load_trained, save_trained
from methods.stacked_lora import add_stacked_lora
from tiny_models import (
    CASES,
    FACTS,
    PREFIXES,
    SOME_CASES,
    TOKENS,
    WIDTH,
    WORDS,
    adapted,
    expected_names,
    logits,
    settings,
    step,
    tiny,
)

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


# what is trained, and from where


@pytest.mark.parametrize(("method", "family"), CASES)
def test_exactly_what_the_method_trains_requires_a_gradient_and_has_changed_after_three_steps(method, family):
    model = adapted(method, family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected_names(method, family)
    step(model, 3)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == expected_names(method, family)


@pytest.mark.parametrize(("method", "family"), CASES)
def test_no_parameter_of_the_base_model_is_renamed(method, family):
    names = [name for name, _ in adapted(method, family).named_parameters()]
    new = [name for name in names if ".adapters." in name or ".prefix." in name]
    assert [name for name in names if name not in new] == [name for name, _ in tiny(family).named_parameters()]
    assert bool(new) == (method not in ("top-layers", "bitfit"))


@pytest.mark.parametrize(("method", "family"), [case for case in CASES if case[0] not in PREFIXES])
def test_a_model_computes_the_same_bits_right_after_it_is_changed(method, family):
    before, model = logits(tiny(family)), adapted(method, family)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(step(model, 3)), before, atol=1e-3)


@pytest.mark.parametrize(("method", "family"), SOME_CASES)
def test_a_deep_copy_learns_on_its_own(method, family):
    model = adapted(method, family)
    before, copied = logits(model), step(copy.deepcopy(model), 3)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(copied), before, atol=1e-3)


@pytest.mark.parametrize(("method", "family"), SOME_CASES)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(method, family):
    gradients = []
    for checkpointing in (False, True):
        model = step(adapted(method, family), 2)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()(TOKENS).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_trains_every_parameter(family):
    model = adapted("full", family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, 3)
    unmoved = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert unmoved == set()


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
        ("lora", "gpt2", {"alpha": 0.0}, "alpha must be above 0 .*, found 0.0"),
        ("adaptive-lora", "bert", {"alpha": -1.0}, "alpha must be above 0 .*, found -1.0"),
        ("lora", "gpt2", {"b_learning_rate_ratio": 0.0}, "b_learning_rate_ratio must be above 0 .*, found 0.0"),
        (
            "sequential-lora",
            "gpt2",
            {"b_learning_rate_ratio": -16.0},
            "b_learning_rate_ratio must be above 0 .*, found -16.0",
        ),
        ("lora", "gpt2", {"b_learning_rate_ratio": math.nan}, "b_learning_rate_ratio must be above 0 .*, found nan"),
        ("lora", "bert", {"rank": 2.5}, r"rank must be of type int \| None; found 2.5"),
        ("sequential-lora", "gpt2", {"rank_stages": (2.5, 4)}, r"rank_stages must be .*int, .*; found \(2.5, 4\)"),
        ("sequential-lora", "gpt2", {"old_stages": None}, "old_stages must be of type float; found None"),
        ("adaptive-lora", "gpt2", {"rank_budget": 12.0}, "rank_budget must be .*; found 12.0"),
        ("adapter-h", "bert", {"bottleneck": 2.5}, r"bottleneck must be of type int \| None; found 2.5"),
        ("adapter-l", "gpt2", {"dropped_layers": 1.0}, "dropped_layers must be of type int; found 1.0"),
        ("top-layers", "gpt2", {"top_layers": 2.0}, r"top_layers must be of type int \| None; found 2.0"),
        ("prelayer", "gpt2", {"prefix_tokens": 4.0}, r"prefix_tokens must be of type int \| None; found 4.0"),
        ("lora", "bert", {"packed_pair": True}, "packed_pair needs GPT-2's c_attn .* found BertFor"),
        ("lora", "gpt2", {"packed_pair": True, "targets": ("output",)}, r"found GPT2.* with targets \('output',\)"),
        (
            "sequential-lora",
            "gpt2",
            {"packed_pair": True},
            "packed_pair=True: method 'sequential-lora' has no",
        ),
        (
            "adaptive-lora",
            "gpt2",
            {"transposed_init": True},
            "transposed_init=True: method 'adaptive-lora' has no such setting",
        ),
        ("lora", "gpt2", {"alpha": None}, "lora takes a rank and an alpha above 0; found rank 2 and alpha None"),
        (
            "full",
            "gpt2",
            {"packed_pair": True, "transposed_init": True},
            "transposed_init=True: method 'full' has no such setting",
        ),
        ("top-layers", "gpt2", {"top_layers": 4}, "top_layers must be 1 to 3, the layers of GPT2LMHeadModel; found 4"),
        ("top-layers", "llama", {"top_layers": 4}, "top_layers must be 1 to 3, the layers of LlamaFor.*; found 4"),
        ("top-layers", "bert", {"top_layers": 0}, "top_layers must be above 0 .*, found 0"),
        ("top-layers", "bert", {"top_layers": None}, "top_layers must be 1 to 3, .*; found None"),
        ("lora", "gpt2", {"rank": None}, "lora takes a rank and an alpha above 0; found rank None and alpha 4.0"),
        ("bitfit", "llama", {}, "BitFit trains biases, and the layers of LlamaForCausalLM have none"),
        ("adapter-h", "bert", {"bottleneck": 0}, "bottleneck must be above 0 .*, found 0"),
        ("adapter-l", "gpt2", {"bottleneck": None}, "bottleneck, .* must be at least 1, found None"),
        ("adapter-p", "bert", {"bottleneck": -1}, "bottleneck must be above 0 .*, found -1"),
        ("adapter-p", "bert", {"dropped_layers": 3}, "dropped_layers must leave some of the 3 layers, found 3"),
        ("adapter-p", "bert", {"dropped_layers": -1}, "dropped_layers must be 0 or above .*, found -1"),
        ("adapter-p", "gpt2", {}, "a pfeiffer adapter needs an encoder .*, found GPT2LMHeadModel"),
        ("adapter-p", "llama", {}, "a pfeiffer adapter needs an encoder .*, found LlamaForCausalLM"),
        ("preembed", "gpt2", {"prefix_tokens": 0}, "prefix_tokens must be above 0 .*, found 0"),
        ("prelayer", "gpt2", {"prefix_tokens": None}, "prefix_tokens must be at least 1 .*, found None"),
        ("prelayer", "gpt2", {"prefix_tokens": 16}, "prefix_tokens must .* leave some of 16 positions, found 16"),
        ("prelayer", "deberta-v2", {}, "PreLayer needs a GPT-2 or a Llama, a BERT or a RoBERTa, found DebertaV2For"),
        ("preembed", "bert", {}, "PreEmbed needs a GPT-2 or a Llama, found BertForSequenceClassification"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_the_model_stays_plain(method, family, facts, message):
    model = tiny(family)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        apply_method(model, of(method, family, **facts))
    assert unchanged(model, before)


@pytest.mark.filterwarnings("ignore:torch.*quantiz:DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "adapter-h"])
def test_a_quantised_model_is_refused(method):
    model = torch.ao.quantization.quantize_dynamic(tiny("bert"), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"floating-point numbers, found \S+ quantised"):
        apply_method(model, of(method, "bert"))


def test_a_packed_pair_is_over_all_of_c_attn_whichever_third_is_a_target_and_leaves_other_matrices_theirs():
    model = changed("lora", packed_pair=True, targets=("value", "mlp_out"))
    shapes = {
        name: (tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)) for name, layer in lora_layers(model).items()
    }
    assert shapes["transformer.h.0.attn.c_attn"] == ((2, 16), (48, 2))
    assert shapes["transformer.h.0.mlp.c_proj"] == ((2, 64), (16, 2))


@pytest.mark.parametrize("method", ["top-layers", "bitfit", "adapter-h", "prelayer"])
def test_an_architecture_that_is_not_the_papers_is_refused(method):
    shape = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": WORDS}
    model = DistilBertForSequenceClassification(DistilBertConfig(**shape))
    with pytest.raises(ValueError, match=r"expected a model of the kinds gpt2, .*; found DistilBertForSequence"):
        METHODS[method].apply(model, settings(method))
