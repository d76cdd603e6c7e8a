"""Adapters: which weights decay, and that each of them has its part in the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer

from methods.catalogue import apply_method
from tiny_models import ADAPTER_CASES, INSIDE, LAYERS, adapted, expected_names, logits, settings, step, tiny


@pytest.mark.parametrize(("method", "family"), ADAPTER_CASES)
def test_weight_decay_of_matrices_alone_falls_on_the_matrices_of_adapters(method, family):
    model = adapted(method, family)
    decayed = {name for name in Trainer.get_decay_parameter_names(None, model) if ".adapters." in name}
    assert decayed == {name for name in expected_names(method, family) if name.endswith(("down.weight", "up.weight"))}


@pytest.mark.parametrize(("method", "family"), [("adapter-h", "gpt2"), ("adapter-l", "llama"), ("adapter-p", "bert")])
def test_adapters_of_a_bfloat16_model_are_trained_in_float32(method, family):
    model = tiny(family).bfloat16()
    apply_method(model, settings(method, family))
    assert torch.equal(logits(model), logits(tiny(family).bfloat16()))
    adapters = [parameter for name, parameter in model.named_parameters() if ".adapters." in name]
    step(model, 2)
    assert logits(model).dtype == torch.bfloat16
    assert all(adapter.dtype == torch.float32 and adapter.grad is None for adapter in adapters)
    assert not torch.equal(logits(model), logits(tiny(family).bfloat16()))


@pytest.mark.parametrize(("method", "family"), ADAPTER_CASES)
def test_every_adapter_has_a_part_in_the_output_and_the_dropped_layers_have_none(method, family):
    model = adapted(method, family)
    before, layers = logits(model), model.get_submodule(INSIDE[family][0])
    adapters = [adapter for layer in layers if hasattr(layer, "adapters") for adapter in layer.adapters]
    assert len(adapters) == {"adapter-h": 2 * LAYERS, "adapter-l": LAYERS, "adapter-p": 1}[method]
    for adapter in adapters:
        nn.init.normal_(adapter.up.weight)
        assert not torch.allclose(logits(model), before, atol=1e-3)
        nn.init.zeros_(adapter.up.weight)
    assert torch.equal(logits(model), before)
