"""Quick layers compute what the usual ones do: dropout, Llama's norm, attention as matrix products."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import combinations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lora import LoRAConfig, add_lora, lora_layers
from methods.catalogue import apply_method
from test_precision import PAIRS, adapted, plain
from tiny_models import LANGUAGE_MODELS, TOKENS, settings, tiny
from training.quick_layers import ATTENTION, QuickDropout, QuickRMSNorm, use_quick_layers

# Dropout ----------------------------------------------------------------------------------------------------------

NUMBERS = 1_000_000
share = pytest.mark.parametrize("p", [0.1, 0.5, 0.9])


def mask(p: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return QuickDropout(p)(torch.ones(NUMBERS))


def sigmas(events: torch.Tensor, probability: float) -> float:
    """How many standard deviations the number of events is from what is expected of independent ones."""
    spread = math.sqrt(probability * (1 - probability) * len(events))
    return abs(events.sum().item() - probability * len(events)) / spread


def test_nearly_all_numbers_may_be_dropped():
    assert (mask(1 - 1e-6) == 0).float().mean() > 0.99


@share
def test_a_number_is_zero_with_the_probability_p_and_else_divided_by_one_minus_p(p):
    ones = mask(p)
    assert sigmas(ones == 0, p) < 4
    assert sigmas(ones == 0, p + 0.01) > 4
    assert torch.equal(ones[ones != 0].unique(), torch.ones(1) / (1 - p))


@share
def test_numbers_that_share_a_draw_are_independent(p):
    zero = (mask(p) == 0).view(-1, 4)
    for i, j in combinations(range(4), 2):
        assert sigmas(zero[:, i] & zero[:, j], p * p) < 4


def test_the_seed_determines_the_mask_and_every_call_draws_anew():
    assert torch.equal(mask(0.5), mask(0.5))
    assert not torch.equal(mask(0.5), mask(0.5, seed=1))
    dropout, ones = QuickDropout(0.5), torch.ones(1000)
    assert not torch.equal(dropout(ones), dropout(ones.clone()))
    assert dropout(ones) is dropout(ones)  # for two layers that read the same tensor


def test_layers_of_one_part_share_their_masks_and_other_parts_have_their_own():
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, vocab_size=8,
                                         num_attention_heads=2))  # fmt: skip
    add_lora(model, LoRAConfig(rank=2, dropout=0.5))
    use_quick_layers(model)
    query, value, other, _ = (layer.dropout for layer in lora_layers(model).values())
    assert query is value and query is not other


def test_a_model_in_training_can_be_copied_and_pickled():
    model = plain("gpt2").train()
    apply_method(model, settings("lora", **PAIRS, lora_dropout=0.1))
    use_quick_layers(model)
    model(TOKENS, labels=TOKENS).loss.backward()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again.eval()(TOKENS).logits, model.eval()(TOKENS).logits)


def test_in_eval_mode_it_is_the_identity():
    x = torch.randn(7)
    assert QuickDropout(0.5).eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7), (4, 4)])
def test_any_size_order_and_precision_of_numbers_is_kept(shape, dtype):
    x = torch.rand(shape).to(dtype).T.add(1) if len(shape) == 2 else torch.rand(shape).to(dtype).add(1)
    x = x.requires_grad_(True)
    dropped = QuickDropout(0.5)(x)
    assert dropped.shape == x.shape and dropped.dtype == dtype
    kept = dropped != 0
    assert torch.equal(dropped, torch.where(kept, 2 * x, 0))
    dropped.sum().backward()
    assert torch.equal(x.grad, 2 * kept.to(dtype))


def test_lora_layers_get_it_in_place_of_torchs_and_nothing_else_does():
    model, _ = adapted()
    use_quick_layers(model)
    assert not any(isinstance(module, QuickDropout) for module in model.modules())  # no dropout, no mask
    model = plain("gpt2")
    apply_method(model, settings("lora", **PAIRS, lora_dropout=0.1))
    use_quick_layers(model)
    for layer in lora_layers(model).values():
        assert isinstance(layer.dropout, QuickDropout) and layer.dropout.p == 0.1
        assert layer.dropout.training == layer.training
    with_dropout = {name for name, module in model.named_modules() if isinstance(module, QuickDropout)}
    assert with_dropout == {f"{name}.dropout" for name in lora_layers(model)}


# Norm and attention -----------------------------------------------------------------------------------------------


def loss_and_gradients(model: nn.Module, mask: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(TOKENS, attention_mask=mask, labels=TOKENS).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()}


def error(of: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all numbers, relative to theirs."""
    difference, whole = (torch.cat([v.flatten() for v in values.values()]) for values in (
        {name: of[name] - exact[name] for name in exact}, exact))  # fmt: skip
    return (difference.norm() / whole.norm()).item()


MASKS = {"all": torch.ones_like(TOKENS), "padded left": (TOKENS > 4).long(), "padded right": (TOKENS < 13).long()}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_the_loss_and_every_gradient_are_those_of_the_usual_layers(family, mask):
    usual = tiny(family, attn_implementation="eager")
    quick, rounded, quick_rounded = (copy.deepcopy(usual) for _ in range(3))
    use_quick_layers(quick), use_quick_layers(quick_rounded)
    exact = loss_and_gradients(usual, MASKS[mask], torch.float32)
    assert error(loss_and_gradients(quick, MASKS[mask], torch.float32), exact) < 1e-5
    usual_error = error(loss_and_gradients(rounded, MASKS[mask], torch.bfloat16), exact)
    assert 1e-4 < error(loss_and_gradients(quick_rounded, MASKS[mask], torch.bfloat16), exact) < 2 * usual_error


def test_the_norm_is_llamas_to_the_last_digits_of_float64_too():
    usual, quick = LlamaRMSNorm(5, eps=1e-3).double(), QuickRMSNorm(5, eps=1e-3).double()
    nn.init.normal_(usual.weight)
    quick.load_state_dict(usual.state_dict())
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(quick(x).float(), usual(x).float())
    assert torch.autograd.gradcheck(quick, x)


def test_language_models_get_both_and_others_and_prefixes_keep_their_attention():
    llama = tiny("llama", attn_implementation="eager")
    use_quick_layers(llama)
    assert {type(m) for m in llama.modules() if isinstance(m, LlamaRMSNorm)} == {QuickRMSNorm}
    assert llama.config._attn_implementation == ATTENTION
    encoder = tiny("bert", attn_implementation="eager")
    use_quick_layers(encoder)
    assert encoder.config._attn_implementation == "eager"
    prefixed = tiny("llama", attn_implementation="eager")
    apply_method(prefixed, settings("prelayer", "llama"))
    before = prefixed.config._attn_implementation
    use_quick_layers(prefixed)
    assert prefixed.config._attn_implementation == before != ATTENTION


def test_attention_with_dropout_is_refused_and_not_left_without():
    model = tiny("gpt2", attn_implementation="eager", attn_pdrop=0.1).train()
    use_quick_layers(model)
    with pytest.raises(ValueError, match=r"expected a model without dropout in its attention, found 0\.1"):
        model(TOKENS)
