"""Low-rank pairs that come and go while they are trained: the layer of Sequential LoRA and of adaptive rank.

    h = W0 x + s B1 A1 x + s B2 A2 x + ...        over the pairs that a projection has now

Each pair is computed and added on its own. A pair whose B is zero changes no bit of h in any dtype, so it can be added
during training without a jump. All pairs see the same x after one dropout. They share one scale, s = alpha / r, with
the rank r of the `LoRAConfig`. A stack of total rank r computes what plain LoRA of rank r does. At the end of training
`fold` turns the stacks into plain LoRA (`lora.py`).

    add_stacked_lora(model, config)   frozen matrices, no pairs; rank_stages.py and rank_budget.py add them
    fold(model)                       plain LoRA, which save_lora, merge_lora and PEFT understand

Checkpoints name a pair by its place, `transformer.h.0.attn.c_attn.lora_A.query.2`; `resize` makes room for them.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from itertools import count, takewhile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora import LoRAConfig, LoRALinear, add_lora, lora_layers, projections

Pair = tuple[nn.Parameter, nn.Parameter]  # A (r, d_in) and B (d_part, r)


class StackedLoRALinear(nn.Module):
    """A frozen linear map with any number of pairs for each adapted part of its output: (..., d_in) -> (..., d_out)."""

    def __init__(self, base_layer: nn.Module, parts: tuple[str, ...], config: LoRAConfig):
        super().__init__()
        self.base_layer, self.config, self.scaling = base_layer, config, config.alpha / config.rank
        self.places = {part: i for i, part in enumerate(parts) if part in config.targets}  # {"query": 0, "value": 2}
        self.transposed = not isinstance(base_layer, nn.Linear)
        self.out_features, self.in_features = self.weight.shape
        self.part_size = self.out_features // len(parts)
        self.highest_rank = min(self.part_size, self.in_features)  # of a projection's pairs together
        self.lora_A = nn.ModuleDict({target: nn.ParameterList() for target in self.places})
        self.lora_B = nn.ModuleDict({target: nn.ParameterList() for target in self.places})
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.train(base_layer.training)

    weight, bias, nx, nf = LoRALinear.weight, LoRALinear.bias, LoRALinear.nx, LoRALinear.nf  # of the base layer

    def pairs(self, target: str) -> list[Pair]:
        return list(zip(self.lora_A[target], self.lora_B[target], strict=True))

    def set_pairs(self, target: str, pairs: list[Pair]) -> None:
        self.lora_A[target] = nn.ParameterList(A for A, _ in pairs)
        self.lora_B[target] = nn.ParameterList(B for _, B in pairs)

    def fresh_pair(self, rank: int) -> Pair:
        """A new pair: A drawn as in loralib, B zero."""
        weight = self.base_layer.weight
        new = partial(weight.new_zeros, dtype=torch.promote_types(weight.dtype, torch.float32))
        A, B = nn.Parameter(new(rank, self.in_features)), nn.Parameter(new(self.part_size, rank))
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        return A, B

    def forward(self, x: Tensor) -> Tensor:
        outputs = list(self.base_layer(x).split(self.part_size, dim=-1))
        x = self.dropout(x)
        for target, place in self.places.items():
            for A, B in self.pairs(target):
                outputs[place] = outputs[place] + F.linear(F.linear(x, A.to(x.dtype)) * self.scaling, B.to(x.dtype))
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]


def add_stacked_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Make the target matrices ready for pairs, in place, and freeze all else; raises ValueError as `add_lora`."""
    add_lora(model, config)
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, StackedLoRALinear(layer.base_layer, projections(name), config))


def stacked_layers(model: nn.Module) -> dict[str, StackedLoRALinear]:
    """The model's layers with stacked pairs, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, StackedLoRALinear)}


def adapted_projections(model: nn.Module) -> dict[str, tuple[StackedLoRALinear, str]]:
    """The places for pairs, by layer number and projection: {"0.query": (the layer, "query"), "0.value": ...}."""
    return {
        f"{re.search('[.]([0-9]+)[.]', name)[1]}.{target}": (layer, target)
        for name, layer in stacked_layers(model).items()
        for target in layer.places
    }


def ranks(model: nn.Module) -> dict[str, int]:
    """The rank that each adapted projection has now, over all its pairs: {"0.query": 4, "0.value": 2, ...}."""
    return {
        place: sum(len(A) for A, _ in layer.pairs(target))
        for place, (layer, target) in adapted_projections(model).items()
    }


def resize(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Give every projection the number and ranks of pairs that it has in a checkpoint, so that this can be loaded."""
    for name, layer in stacked_layers(model).items():
        for target in layer.places:
            keys = takewhile(saved.__contains__, (f"{name}.lora_A.{target}.{i}" for i in count()))
            layer.set_pairs(target, [layer.fresh_pair(len(saved[key])) for key in keys])


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Replace the stacks by plain LoRA that computes the same, in place.

    A projection's pairs become one, of their total rank. Plain LoRA has one rank for the whole model: the highest,
    with zero rows and columns wherever a projection has less.
    """
    rank = max(1, *ranks(model).values())
    for name, layer in stacked_layers(model).items():
        config = replace(layer.config, rank=rank, alpha=layer.scaling * rank)
        plain = LoRALinear(layer.base_layer, projections(name), config)
        plain.lora_A.zero_()
        As, Bs = plain.lora_A.split(rank), plain.lora_B.split(layer.part_size)
        for i, target in enumerate(layer.places):
            if pairs := layer.pairs(target):
                A, B = torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], dim=1)
                As[i][: len(A)], Bs[i][:, : len(A)] = A, B
        model.set_submodule(name, plain)
