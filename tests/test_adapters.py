"""Adapters: which weights decay, and that each of them has its part in the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer

from tiny_models import ADAPTER_CASES, INSIDE, LAYERS, adapted, expected_names, logits


@pytest.mark.parametrize(("method", "family"), ADAPTER_CASES)
def test_weight_decay_of_matrices_alone_falls_on_the_matrices_of_adapters(method, family):
    model = adapted(method, family)
    decayed = {name for name in Trainer.get_decay_parameter_names(None, model) if ".adapters." in name}
    assert decayed == {name for name in expected_names(method, family) if name.endswith(("down.weight", "up.weight"))}


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
