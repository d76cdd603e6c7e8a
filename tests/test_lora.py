"""What has to be true of LoRA layers on any model: counts, a start that changes nothing, a frozen base, exact merging,
files that come back as they were, and a clear refusal of everything else."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrizations, prune
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from adapter_files import base_fingerprint, load_lora, save_lora
from files import ROOT
from lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    count_parameters,
    lora_layers,
    merge_lora,
    remove_lora,
    require_plain,
    unmerge_lora,
)
from methods.stacked_lora import add_stacked_lora

WIDTH = 16
SIX = ("query", "key", "value", "output", "mlp_in", "mlp_out")
TOKENS = torch.arange(12).reshape(2, 6)


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": 24, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**shape, **no_dropout, bos_token_id=0, eos_token_id=0)).eval()


def encoder(model_class=BertForSequenceClassification, config_class=BertConfig, seed: int = 0, labels: int = 2):
    torch.manual_seed(seed)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    return model_class(config_class(**shape, vocab_size=24, max_position_embeddings=16, num_labels=labels)).eval()


def train(model, steps: int = 1) -> None:
    """Some steps on the sum of squared logits: every pair gets a gradient, and at the second step every A as well."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        model(TOKENS).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_gpt2(config: LoRAConfig | None = None) -> GPT2LMHeadModel:
    model = gpt2()
    add_lora(model, config or LoRAConfig())
    train(model, steps=3)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The float32 numbers as integers, so that even 0.0 and -0.0 differ."""
    return tensor.detach().contiguous().view(torch.int32)


# Counts -----------------------------------------------------------------------------------------------------------


def on_meta(name: str):
    with torch.device("meta"):
        if name.startswith("gpt2"):
            layers, width, heads = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20)}[
                name
            ]
            return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads))
        model_class, config_class, layers, width = {
            "roberta-base": (RobertaForSequenceClassification, RobertaConfig, 12, 768),
            "roberta-large": (RobertaForSequenceClassification, RobertaConfig, 24, 1024),
            "deberta-v2-xxlarge": (DebertaV2ForSequenceClassification, DebertaV2Config, 48, 1536),
        }[name]
        shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 64}
        return model_class(config_class(**shape, intermediate_size=4 * width))


@pytest.mark.parametrize(
    ("name", "rank", "trainable"),
    [
        ("gpt2", 2, 73_728),
        ("gpt2", 4, 147_456),
        ("gpt2", 8, 294_912),
        ("gpt2-medium", 4, 393_216),
        ("gpt2-large", 4, 737_280),
        ("roberta-base", 8, 294_912),
        ("roberta-large", 8, 786_432),
        ("deberta-v2-xxlarge", 16, 4_718_592),
    ],
)
def test_trainable_parameters_are_as_many_as_in_the_paper(name, rank, trainable):
    model = on_meta(name)
    before = count_parameters(model)[1]
    add_lora(model, LoRAConfig(rank=rank))
    assert count_parameters(model) == (trainable, before + trainable)


def test_gpt2_small_has_all_its_parameters_to_train_without_lora():
    assert count_parameters(on_meta("gpt2")) == (124_439_808, 124_439_808)


# The start --------------------------------------------------------------------------------------------------------


def test_a_model_computes_the_same_bits_right_after_add_lora():
    model = gpt2()
    before = logits(model)
    add_lora(model, LoRAConfig(targets=SIX))
    assert torch.equal(logits(model), before)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    assert not torch.allclose(logits(model), before, atol=1e-2)


def test_a_is_uniform_over_its_input_features_and_b_is_zero():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=768, n_head=12, vocab_size=8, bos_token_id=0, eos_token_id=0))
    add_lora(model, LoRAConfig(rank=16, targets=SIX))
    inputs = {"attn.c_attn": 768, "attn.c_proj": 768, "mlp.c_fc": 768, "mlp.c_proj": 3072}
    for name, d_in in inputs.items():
        layer = lora_layers(model)[f"transformer.h.0.{name}"]
        assert layer.lora_A.std().item() == pytest.approx(1 / math.sqrt(3 * d_in), rel=0.03)
        assert layer.lora_A.abs().max().item() == pytest.approx(1 / math.sqrt(d_in), rel=0.01)
        assert not layer.lora_B.any()


def test_the_packed_layer_holds_one_pair_for_each_target_one_above_the_other():
    model = gpt2()
    assert add_lora(model, LoRAConfig(rank=4)) == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    parameters = dict(model.named_parameters())
    assert parameters["transformer.h.0.attn.c_attn.lora_A"].shape == (8, WIDTH)
    assert parameters["transformer.h.0.attn.c_attn.lora_B"].shape == (2 * WIDTH, 4)


GPT2_NAMES = {
    "query": {"attn.c_attn"},
    "key": {"attn.c_attn"},
    "value": {"attn.c_attn"},
    "output": {"attn.c_proj"},
    "mlp_in": {"mlp.c_fc"},
    "mlp_out": {"mlp.c_proj"},
}
BERT_NAMES = {
    "query": {"attention.self.query"},
    "key": {"attention.self.key"},
    "value": {"attention.self.value"},
    "output": {"attention.output.dense"},
    "mlp_in": {"intermediate.dense"},
    "mlp_out": {"output.dense"},
}
DEBERTA_NAMES = BERT_NAMES | {t: {f"attention.self.{t}_proj"} for t in ("query", "key", "value")}


@pytest.mark.parametrize("target", SIX)
@pytest.mark.parametrize(
    ("make", "prefix", "names"),
    [
        (gpt2, "transformer.h", GPT2_NAMES),
        (encoder, "bert.encoder.layer", BERT_NAMES),
        (lambda: encoder(RobertaForSequenceClassification, RobertaConfig), "roberta.encoder.layer", BERT_NAMES),
        (lambda: encoder(DebertaV2ForSequenceClassification, DebertaV2Config), "deberta.encoder.layer", DEBERTA_NAMES),
    ],
    ids=["gpt2", "bert", "roberta", "deberta-v2"],
)
def test_each_target_is_exactly_its_matrix_in_every_layer(make, prefix, names, target):
    adapted = add_lora(make(), LoRAConfig(targets=(target,)))
    assert set(adapted) == {f"{prefix}.{layer}.{name}" for layer in (0, 1) for name in names[target]}


# Training ---------------------------------------------------------------------------------------------------------


def test_a_step_changes_the_pairs_and_leaves_the_base_as_it_was_to_the_last_bit():
    model = gpt2()
    add_lora(model, LoRAConfig(targets=SIX))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, steps=2)  # the first step moves B only: the gradient of A passes through B, which is zero
    for name, parameter in model.named_parameters():
        same = torch.equal(bits(parameter), bits(before[name]))
        assert same == (".lora_" not in name), name
        assert parameter.requires_grad == (".lora_" in name), name


@pytest.mark.parametrize("targets", [("query", "value"), ("query",), ("key",), ("value",), ("key", "value")])
def test_only_the_adapted_thirds_of_c_attn_change_in_the_forward_pass_and_in_the_merged_weight(targets):
    model = gpt2()
    plain = copy.deepcopy(model.transformer.h[0].attn.c_attn)
    with torch.no_grad():
        for matrix in (plain.weight, model.transformer.h[0].attn.c_attn.weight):
            matrix[0] = -0.0  # adding +0.0 would turn these into +0.0
    add_lora(model, LoRAConfig(targets=targets))
    train(model)
    layer, x = model.transformer.h[0].attn.c_attn, torch.randn(3, 5, WIDTH)
    merge_lora(copied := copy.deepcopy(model))
    outputs = zip(plain(x).split(WIDTH, -1), layer(x).split(WIDTH, -1), strict=True)
    weights = zip(
        plain.weight.split(WIDTH, 1), copied.transformer.h[0].attn.c_attn.weight.T.split(WIDTH, 1), strict=True
    )
    for third, (h, adapted_h), (w, merged_w) in zip(("query", "key", "value"), outputs, weights, strict=True):
        assert torch.equal(bits(h), bits(adapted_h)) == (third not in targets)
        assert torch.equal(bits(w), bits(merged_w)) == (third not in targets)


def test_query_and_value_share_one_dropout_mask_and_the_base_path_has_none():
    torch.manual_seed(0)
    model = gpt2().train()
    plain = copy.deepcopy(model.transformer.h[0].attn.c_attn)
    add_lora(model, LoRAConfig(dropout=0.5))
    layer, x = model.transformer.h[0].attn.c_attn, torch.randn(2, 5, WIDTH)
    assert torch.equal(layer(x), plain(x))  # B is zero: what is dropped can only be on the other path
    with torch.no_grad():
        layer.lora_A[4:] = layer.lora_A[:4]
        layer.lora_B.copy_(torch.randn(WIDTH, 4).repeat(2, 1))
    query, _, value = (layer(x) - plain(x)).split(WIDTH, dim=-1)
    assert torch.allclose(query, value, atol=1e-5)
    assert not torch.allclose(layer(x), layer(x))  # a new mask each time
    model.eval()
    assert torch.equal(layer(x), layer(x))


def test_lora_added_to_a_model_in_eval_mode_does_not_drop_anything():
    model = gpt2()
    add_lora(model, LoRAConfig(dropout=0.5))
    train(model)
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_runs_the_layers_twice_and_gives_the_same_gradients():
    gradients = []
    for forwards in (1, 2):
        model, calls = trained_gpt2(LoRAConfig(targets=SIX)).train(), []
        if forwards == 2:
            model.gradient_checkpointing_enable()
        model.transformer.h[0].attn.c_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(TOKENS, use_cache=False).logits.square().sum().backward()
        assert len(calls) == forwards
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(plain, checkpointed, rtol=1e-5)


def test_bfloat16_autocast_computes_in_bfloat16_and_gives_float32_gradients():
    model = trained_gpt2()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(TOKENS).logits
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output.float(), logits(model), rtol=0.05, atol=0.5)
    output.square().sum().backward()
    for layer in lora_layers(model).values():
        assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32
        assert layer.lora_A.grad.abs().max() > 0


def test_a_deep_copy_learns_on_its_own():
    model = trained_gpt2()
    before, copied = logits(model), copy.deepcopy(model)
    train(copied)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(copied), before)


# Merging ----------------------------------------------------------------------------------------------------------


def test_a_merged_model_computes_what_the_adapted_one_does_and_the_base_does_not():
    model = trained_gpt2(LoRAConfig(targets=SIX))
    adapted, base = logits(model), logits(gpt2())
    merge_lora(model)
    assert torch.allclose(logits(model), adapted, atol=1e-5)
    assert not torch.allclose(base, adapted, atol=1e-2)


def test_a_loss_measured_after_merging_is_measured_on_the_merged_weights():
    model = trained_gpt2()
    before = model(TOKENS, labels=TOKENS).loss.item()
    merge_lora(model)
    for layer in lora_layers(model).values():
        layer.lora_B.data.zero_()  # whoever still reads the pairs gets the base model's loss
    assert model(TOKENS, labels=TOKENS).loss.item() == pytest.approx(before, abs=1e-6)
    assert gpt2()(TOKENS, labels=TOKENS).loss.item() != pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("change", [merge_lora, remove_lora])
def test_pairs_of_another_kind_are_not_passed_over(change):
    model = gpt2()
    add_stacked_lora(model, LoRAConfig())
    with pytest.raises(ValueError, match="expected a plain model, found"):
        change(model)


def test_merging_twice_is_the_same_as_once_and_unmerging_gives_back_the_bits():
    model = trained_gpt2(LoRAConfig(targets=SIX))
    plain, adapted = {name: bits(p) for name, p in gpt2().named_parameters()}, logits(model)
    merge_lora(model)
    once = logits(model)
    merge_lora(model)
    assert torch.equal(logits(model), once)
    for _ in range(2):
        unmerge_lora(model)
        for name, parameter in model.named_parameters():
            if ".lora_" not in name:
                assert torch.equal(bits(parameter), plain[name.replace(".base_layer", "")]), name
        assert torch.equal(logits(model), adapted)
    merge_lora(model)
    assert torch.equal(logits(model), once)


def test_merging_within_autocast_rounds_nothing():
    model, other = trained_gpt2(), trained_gpt2()
    merge_lora(model)
    with torch.autocast("cpu", torch.bfloat16):
        merge_lora(other)
    assert torch.equal(logits(model), logits(other))


def test_a_merged_and_removed_model_is_plain_again_and_keeps_what_was_learnt():
    model, plain = trained_gpt2(LoRAConfig(targets=SIX)), gpt2()
    merge_lora(model)
    merged = logits(model)
    remove_lora(model)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert count_parameters(model) == count_parameters(plain)
    assert torch.equal(logits(model), merged)
    assert not torch.allclose(logits(plain), merged, atol=1e-2)


def test_removing_without_merging_gives_the_base_model_back():
    model = trained_gpt2()
    remove_lora(model)
    assert torch.equal(logits(model), logits(gpt2()))


# Files ------------------------------------------------------------------------------------------------------------


def test_a_saved_adapter_comes_back_exactly(tmp_path):
    model = trained_gpt2(LoRAConfig(rank=3, alpha=5.0, dropout=0.25, targets=("value", "key", "mlp_out")))
    save_lora(model, tmp_path / "new" / "folder")
    loaded = gpt2()
    assert load_lora(loaded, tmp_path / "new" / "folder") == list(lora_layers(model))
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for (name, parameter), (other_name, other) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(bits(parameter), bits(other))
        assert parameter.requires_grad == other.requires_grad
    for layer, other in zip(lora_layers(model).values(), lora_layers(loaded).values(), strict=True):
        assert layer.config == other.config
    assert torch.equal(logits(loaded), logits(model))


def test_the_trained_head_is_saved_loaded_and_saved_again(tmp_path):
    model = encoder(RobertaForSequenceClassification, RobertaConfig)
    add_lora(model, LoRAConfig(rank=2))
    model.classifier.requires_grad_(True)
    train(model, steps=2)
    save_lora(model, tmp_path)
    loaded = encoder(RobertaForSequenceClassification, RobertaConfig)
    torch.nn.init.normal_(loaded.classifier.dense.weight)  # every new model has another random head
    load_lora(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert count_parameters(loaded) == count_parameters(model)
    save_lora(loaded, tmp_path / "again")
    first, second = (load_file(path / "adapter_model.safetensors") for path in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert {n for n in first if "lora" not in n} == {
        f"base_model.model.classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")
    }


def test_saving_a_merged_model_writes_the_same_adapter(tmp_path):
    model = trained_gpt2()
    save_lora(model, tmp_path / "unmerged")
    merge_lora(model)
    save_lora(model, tmp_path / "merged")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "unmerged" / name).read_bytes()


def test_the_fingerprint_knows_the_base_with_or_without_lora_and_in_bfloat16():
    model = gpt2()
    plain = base_fingerprint(model)
    assert base_fingerprint(trained_gpt2()) == plain
    assert base_fingerprint(gpt2().bfloat16()) == plain
    assert base_fingerprint(gpt2().half()) != plain  # rounded twice
    assert base_fingerprint(gpt2(seed=1)) != plain
    model.transformer.h[1].mlp.c_fc.bias.data[0] += 1e-3
    assert base_fingerprint(model) != plain
    reshaped = gpt2()
    reshaped.transformer.wpe.weight.data = reshaped.transformer.wpe.weight.data.reshape(WIDTH, 8)
    assert base_fingerprint(reshaped) != plain


def test_the_fingerprint_leaves_out_the_names_that_it_is_told_to():
    model = gpt2()
    before = base_fingerprint(model), base_fingerprint(model, without=frozenset({"transformer.ln_f.bias"}))
    model.transformer.ln_f.bias.data += 1.0
    assert base_fingerprint(model) != before[0]
    assert base_fingerprint(model, without=frozenset({"transformer.ln_f.bias"})) == before[1]


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, -1, True, 4.0, "4"])
def test_a_rank_that_is_no_int_from_one_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be an int from 1, found {rank!r}"):
        LoRAConfig(rank=rank)


@pytest.mark.parametrize("alpha", [0, -1.0, 1e-320, 1e300, 10**400, math.inf, "8", None], ids=lambda a: str(a)[:9])
def test_an_alpha_that_would_be_nothing_or_infinity_in_float32_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha must be a number from 1e-30 to below 1e\+30, found"):
        LoRAConfig(alpha=alpha)


def test_a_rank_larger_than_the_matrix_is_refused_and_the_model_stays_plain():
    model = gpt2()
    with pytest.raises(ValueError, match=r"rank 17 is larger than the matrix to adapt, \(16, 16\)"):
        add_lora(model, LoRAConfig(rank=17))
    assert not lora_layers(model)
    assert count_parameters(model) == count_parameters(gpt2())
    add_lora(model, LoRAConfig(rank=16))


def test_the_rank_is_held_against_the_part_that_it_adapts_and_not_against_the_packed_matrix():
    base, parts = Conv1D(3 * 4, WIDTH), ("query", "key", "value")
    LoRALinear(base, parts, LoRAConfig(rank=4))
    with pytest.raises(ValueError, match=r"rank 5 is larger than the matrix to adapt, \(4, 16\)"):
        LoRALinear(base, parts, LoRAConfig(rank=5))


@pytest.mark.parametrize("holder", [set, list, iter, dict.fromkeys, np.array])
def test_targets_come_in_whatever_holds_them_and_once_each(holder):
    assert LoRAConfig(targets=holder(["value", "query", "value"])).targets == ("query", "value")


@pytest.mark.parametrize("targets", [("query", "values"), ("c_attn",), (), "query", [["query"]], None, 5])
def test_an_unknown_target_is_refused_with_the_known_ones(targets):
    with pytest.raises(ValueError, match="targets must be some of query, key, value, output, mlp_gate, mlp_in"):
        LoRAConfig(targets=targets)


def test_a_target_that_the_model_does_not_have_is_refused():
    model = DistilBertModel(DistilBertConfig(dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=WIDTH, vocab_size=24))
    with pytest.raises(ValueError, match=r"found no query in DistilBertModel; expected GPT-2, BERT.* or Llama"):
        add_lora(model, LoRAConfig(targets=("query",)))


def test_gpt2_has_no_gate_to_adapt_and_says_who_has():
    model = gpt2()
    with pytest.raises(ValueError, match=r"found no mlp_gate in GPT2LMHeadModel; .*Llama \(which alone has mlp_g"):
        add_lora(model, LoRAConfig(targets=("query", "mlp_gate")))
    assert not lora_layers(model)


def in_int8(layer: torch.nn.Linear) -> None:
    layer.weight = torch.nn.Parameter(torch.zeros(WIDTH, WIDTH, dtype=torch.int8), requires_grad=False)


def in_float8(layer: torch.nn.Linear) -> None:
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(
    "change",
    [in_int8, in_float8, lambda layer: prune.l1_unstructured(layer, "weight", 0.3), parametrizations.weight_norm],
    ids=["int8", "float8", "pruned", "computed from others"],
)
def test_a_weight_that_could_not_be_merged_into_is_refused_and_the_model_stays_plain(change):
    model = encoder()
    change(model.bert.encoder.layer[1].attention.self.value)
    with pytest.raises(ValueError, match="expected a weight of floating-point numbers, found a quantised or pruned"):
        add_lora(model, LoRAConfig())
    assert not lora_layers(model)


def test_what_is_quantised_elsewhere_does_not_matter():
    model = encoder()
    in_int8(model.bert.pooler.dense)
    add_lora(model, LoRAConfig())
    remove_lora(model)
    assert all(parameter.requires_grad == parameter.is_floating_point() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["bias", "in_features", "out_features", "nf", "nx"])
def test_a_layer_has_the_facts_of_the_one_inside_it_for_those_who_ask(name):
    bert, conv1d = encoder().bert.encoder.layer[0].attention.self.query, gpt2().transformer.h[0].attn.c_attn
    for base in (bert, conv1d):
        layer = LoRALinear(base, ("query",), LoRAConfig(targets=("query",)))
        if hasattr(base, name):
            assert getattr(layer, name) is getattr(base, name)
        else:
            assert name in ("in_features", "out_features") or not hasattr(layer, name)
    assert (layer.in_features, layer.out_features) == (conv1d.nx, conv1d.nf)


def test_lora_on_top_of_lora_is_refused():
    with pytest.raises(ValueError, match=r"plain model, found transformer.h.0.attn.c_attn.base_layer in it; remove_lo"):
        add_lora(trained_gpt2(), LoRAConfig())


@pytest.mark.parametrize("name", ["base_layer", "adapters", "prefix"])
def test_what_any_method_puts_into_a_model_makes_it_no_longer_plain(name):
    model = gpt2()
    require_plain(model)
    setattr(model.transformer, name, torch.nn.Identity())
    with pytest.raises(ValueError, match=f"expected a plain model, found transformer.{name} in it"):
        require_plain(model)


def test_saving_a_model_without_lora_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected LoRA layers to save, found none"):
        save_lora(gpt2(), tmp_path)


def test_one_pair_over_all_of_a_packed_matrix_is_not_saved_as_if_it_were_of_its_projections(tmp_path):
    model = trained_gpt2()
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, LoRALinear(layer.base_layer, ("query",), layer.config))
    with pytest.raises(ValueError, match=r"found one over all of transformer.h.0.attn.c_attn: use save_trained"):
        save_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", ["scale", "config"])
def test_pairs_with_settings_of_their_own_are_not_saved_as_if_all_had_the_first_ones(tmp_path, own):
    model = gpt2()
    for layer, alpha in zip(model.transformer.h, (8.0, 8.0 if own == "scale" else 32.0), strict=True):
        add_lora(layer, LoRAConfig(alpha=alpha))
    if own == "scale":
        lora_layers(model)["transformer.h.1.attn.c_attn"].scaling *= 0.5
    with pytest.raises(ValueError, match=r"found another config or scale at transformer.h.1.attn.c_attn"):
        save_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def refused(folder, match: str, model=None) -> None:
    model = model or gpt2()
    before = logits(model)
    with pytest.raises(ValueError, match=match):
        load_lora(model, folder)
    assert not lora_layers(model)
    assert count_parameters(model)[0] == count_parameters(model)[1]
    assert torch.equal(logits(model), before)


def test_an_adapter_for_another_base_is_refused_and_the_model_stays_plain(tmp_path):
    save_lora(trained_gpt2(), tmp_path)
    match = (
        r"not for this GPT2LMHeadModel: expected \[\(.base weights.*found \[\(.base weights.*load the model it is for"
    )
    refused(tmp_path, match, gpt2(seed=1))
    load_lora(gpt2(), tmp_path)


def test_an_adapter_for_another_architecture_is_refused(tmp_path):
    save_lora(trained_gpt2(), tmp_path)
    refused(tmp_path, "not for this BertForSequenceClassification", encoder())


def test_a_truncated_weights_file_is_refused(tmp_path):
    save_lora(trained_gpt2(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(
            tmp_path,
            "expected a whole adapter_model.safetensors of finite numbers in .*Safetensor.*; save or copy it again",
        )
    file.write_bytes(whole)
    load_lora(gpt2(), tmp_path)


def test_a_folder_without_the_two_files_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "expected a whole adapter_config.json in .*nowhere, found FileNotFoundError")
    save_lora(trained_gpt2(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    refused(tmp_path, "expected a whole adapter_config.json in .*JSONDecodeError")


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickle_is_never_opened_whatever_its_name(tmp_path, name):
    save_lora(trained_gpt2(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Boom()))
    refused(tmp_path, "a pickle is never opened")


def test_a_head_for_another_number_of_labels_is_refused(tmp_path):
    model = encoder(labels=3)
    add_lora(model, LoRAConfig())
    model.classifier.requires_grad_(True)
    save_lora(model, tmp_path)
    refused(tmp_path, r"expected .*classifier.weight', 2, 16.*found.*classifier.weight', 3, 16", encoder(labels=2))


# Two files for another project ------------------------------------------------------------------------------------

ANOTHER_PROJECT = """
import torch
from adapter_files import load_lora, save_lora
from lora import LoRAConfig, add_lora, lora_layers

def model():
    torch.manual_seed(0)
    attention = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8), "v_proj": torch.nn.Linear(8, 4)})
    return torch.nn.ModuleDict({"0": torch.nn.ModuleDict({"self_attn": attention})})

trained, loaded = model(), model()
add_lora(trained, LoRAConfig(rank=2))
for layer in lora_layers(trained).values():
    torch.nn.init.normal_(layer.lora_B)
save_lora(trained, "adapter")
load_lora(loaded, "adapter")
x = torch.ones(8)
for name, layer in lora_layers(trained).items():
    assert torch.equal(layer(x), loaded.get_submodule(name)(x)) and not torch.allclose(layer(x), layer.base_layer(x))
print(*lora_layers(loaded))
"""


def run_alone(folder, *files: str) -> subprocess.CompletedProcess:
    """ANOTHER_PROJECT in a folder with copies of those files of `code/` and nothing else."""
    for file in files:
        shutil.copy(ROOT / "code" / file, folder)
    (folder / "project.py").write_text(ANOTHER_PROJECT)
    return subprocess.run([sys.executable, "-E", "project.py"], cwd=folder, capture_output=True, text=True)


def test_the_two_files_work_where_nothing_else_of_ours_is(tmp_path):
    ran = run_alone(tmp_path, "lora.py", "adapter_files.py")
    assert (ran.stdout, ran.returncode) == ("0.self_attn.q_proj 0.self_attn.v_proj\n", 0), ran.stderr


def test_one_of_them_without_the_other_would_be_noticed(tmp_path):
    ran = run_alone(tmp_path, "adapter_files.py")
    assert ran.returncode == 1 and "No module named 'lora'" in ran.stderr


def test_the_method_is_read_in_one_sitting():
    assert len((ROOT / "code" / "lora.py").read_text(encoding="utf-8").splitlines()) <= 200
