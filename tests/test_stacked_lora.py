"""The layer whose pairs come and go: what it computes, what a new pair changes (nothing), and plain LoRA in the end."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from adapter_files import load_lora, save_lora
from lora import LoRAConfig, add_lora, lora_layers, merge_lora, remove_lora
from methods.rank_stages import begin_stage
from methods.stacked_lora import adapted_projections, add_stacked_lora, fold, ranks, resize, stacked_layers

# PEFT asks transformers for a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WIDTH = 16
TOKENS = torch.arange(12).reshape(2, 6)
CONFIG = LoRAConfig(rank=8, alpha=32.0)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": 24, "n_positions": 8, "initializer_range": 0.3}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **none)).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**shape, **none, vocab_size=24, max_position_embeddings=16, initializer_range=0.3)
    return BertForSequenceClassification(config).eval()


MODELS = pytest.mark.parametrize("build", [gpt2, bert])


def stacked(build=gpt2, stages=(2, 2), config=CONFIG) -> nn.Module:
    """A model whose pairs of these ranks are all random, as if trained."""
    model = build()
    add_stacked_lora(model, config)
    for rank in stages:
        begin_stage(model, rank)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_the_output_is_the_base_layers_and_every_pairs_and_the_key_is_left_alone():
    layer = stacked().transformer.h[0].attn.c_attn
    x = torch.randn(3, WIDTH)
    expected = list((x @ layer.base_layer.weight + layer.base_layer.bias).split(WIDTH, dim=-1))
    untouched = layer.base_layer(x)[:, WIDTH : 2 * WIDTH]
    for target, part in (("query", 0), ("value", 2)):
        for A, B in zip(layer.lora_A[target], layer.lora_B[target], strict=True):
            expected[part] = expected[part] + 32 / 8 * x @ A.T @ B.T
    output = layer(x)
    torch.testing.assert_close(output, torch.cat(expected, dim=-1), atol=1e-5, rtol=0)
    assert torch.equal(output[:, WIDTH : 2 * WIDTH], untouched)


@MODELS
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_new_stage_changes_no_bit_of_the_output_until_its_b_moves(build, train):
    model = stacked(build).train(train)
    before = logits(model)
    begin_stage(model, 3)
    assert set(ranks(model).values()) == {7}
    assert torch.equal(logits(model), before)
    layer, target = adapted_projections(model)["0.query"]
    layer.pairs(target)[-1][1].data += 1e-3
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pairs_in_float32_are_computed_in_the_type_of_the_base(dtype):
    model = stacked(lambda: bert().to(dtype))
    assert logits(model).dtype == dtype
    assert {p.dtype for name, p in model.named_parameters() if ".lora_" in name} == {torch.float32}
    model(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".lora_B" in name)


def test_a_new_pairs_a_is_drawn_as_loralib_draws_it():
    wide = nn.Module()  # a layer with the name that GPT-2 gives it
    wide.h = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"c_attn": nn.Linear(400, 1200)})})])
    model = nn.ModuleDict({"transformer": wide})
    add_stacked_lora(model, CONFIG)
    begin_stage(model, 50)
    A, B = stacked_layers(model)["transformer.h.0.attn.c_attn"].pairs("query")[0]
    assert A.shape == (50, 400) and B.shape == (400, 50)
    assert A.std().item() == pytest.approx(1 / (3 * 400) ** 0.5, rel=0.02)  # of the fan-in, whatever the rank
    assert not B.any()


def test_all_pairs_see_the_same_dropped_inputs():
    model = stacked(stages=(4,), config=LoRAConfig(rank=8, alpha=32.0, dropout=0.5)).train()
    layer = model.transformer.h[0].attn.c_attn
    for target in layer.places:
        A, B = layer.pairs(target)[0]
        layer.set_pairs(target, [(A, B), (A, nn.Parameter(-B.detach()))])  # two that take each other back
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(layer(x), layer.base_layer(x), atol=1e-5, rtol=0)


def test_the_stack_starts_as_the_plain_model_and_trains_nothing_but_its_pairs():
    model = gpt2()
    add_stacked_lora(model, CONFIG)
    begin_stage(model, 2)
    assert torch.equal(logits(model), logits(gpt2()))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"transformer.h.{layer}.attn.c_attn.lora_{matrix}.{target}.0"
        for layer in (0, 1) for matrix in "AB" for target in ("query", "value")
    }  # fmt: skip


def test_a_model_that_has_lora_already_is_refused():
    model = gpt2()
    add_lora(model, CONFIG)
    with pytest.raises(ValueError, match=r"expected a plain model, found .*c_attn.base_layer in it"):
        add_stacked_lora(model, CONFIG)


@MODELS
def test_projections_are_named_by_layer_and_what_they_make(build):
    model = stacked(build, stages=(2, 1))
    assert ranks(model) == {"0.query": 3, "0.value": 3, "1.query": 3, "1.value": 3}


@MODELS
def test_a_folded_model_is_plain_lora_of_the_total_rank_with_the_same_outputs(build):
    model = stacked(build, stages=(2, 1, 3))
    before = logits(model)
    assert not torch.allclose(before, logits(build()), atol=1e-2)
    fold(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    assert not stacked_layers(model)
    for layer in lora_layers(model).values():
        assert (layer.config.rank, layer.scaling) == (6, 32 / 8)  # the scale is that of the cap, 8, not reached here
    merge_lora(model)
    remove_lora(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


def uneven(build=gpt2) -> nn.Module:
    """Three pairs here, one there, none in one place: what adaptive rank leaves."""
    model = stacked(build, stages=(1, 1, 1))
    for place, kept in (("0.value", 1), ("1.query", 0)):
        layer, target = adapted_projections(model)[place]
        layer.set_pairs(target, layer.pairs(target)[:kept])
    return model


@MODELS
def test_where_ranks_differ_the_folded_pairs_are_padded_with_zeros(build):
    model = uneven(build)
    before = logits(model)
    assert ranks(model) == {"0.query": 3, "0.value": 1, "1.query": 0, "1.value": 3}
    fold(model)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    rows = [A for layer in lora_layers(model).values() for A in layer.lora_A.split(3)]
    assert [int(A.any(dim=1).sum()) for A in rows] == [3, 1, 0, 3]


@MODELS
def test_a_folded_model_is_saved_loaded_and_read_by_peft(build, tmp_path):
    model = uneven(build)
    before = logits(model)
    fold(model)
    save_lora(model, tmp_path)
    ours = build()
    load_lora(ours, tmp_path)
    torch.testing.assert_close(logits(ours), before, atol=1e-5, rtol=0)
    theirs = PeftModel.from_pretrained(build(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), before, atol=1e-5, rtol=0)


def test_a_checkpoints_pairs_find_their_places_in_a_model_with_others():
    model = uneven()
    begin_stage(model, 2)  # ranks 1, 1, 1, 2 of single pairs
    saved = model.state_dict()
    other = stacked(stages=(4,) * 12)
    resize(other, saved)
    assert ranks(other) == ranks(model) == {"0.query": 5, "0.value": 3, "1.query": 2, "1.value": 5}
    other.load_state_dict(saved)
    assert torch.equal(logits(other), logits(model))


def test_more_than_ten_pairs_keep_their_order_in_a_checkpoint():
    model = stacked(stages=(1,) * 10 + (2, 3))
    other = stacked(stages=(1,))
    resize(other, dict(model.named_parameters()))
    layer, target = adapted_projections(other)["0.query"]
    assert [len(A) for A, _ in layer.pairs(target)] == [1] * 10 + [2, 3]


@pytest.mark.parametrize("build", [gpt2, bert])
def test_a_layer_shows_the_size_and_the_numbers_of_its_base(build):
    layer = next(iter(stacked_layers(stacked(build)).values()))
    base = layer.base_layer
    weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
    assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape) == tuple(weight.shape)
    assert layer.bias is base.bias
    if not isinstance(base, nn.Linear):
        assert (layer.nx, layer.nf) == (base.nx, base.nf)
