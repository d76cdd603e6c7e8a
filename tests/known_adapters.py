"""Adapters whose directions are known: what the tests of subspaces compare."""

from __future__ import annotations

import torch
from torch import nn

from adapter_files import save_lora
from lora import LoRAConfig, add_lora, lora_layers, remove_lora
from runs.run import Run


def save_known_adapter(model: nn.Module, run: Run) -> None:
    """Keep as the run's adapter pairs of its rank on query and value; the model is plain again afterwards.

    Direction k of seed s is axis k + 4 s: of their first eight directions, neighbouring seeds share four. B is random.
    """
    rank, width = run.experiment.settings.rank, model.config.hidden_size
    add_lora(model, LoRAConfig(rank))
    torch.manual_seed(run.seed)
    for layer in lora_layers(model).values():
        axes = torch.eye(width)[4 * run.seed : 4 * run.seed + rank]
        A = torch.arange(rank, 0, -1)[:, None] * axes
        layer.lora_A.data.copy_(A.repeat(len(layer.lora_A) // rank, 1))
        nn.init.normal_(layer.lora_B)
    save_lora(model, run.adapter)
    remove_lora(model)
