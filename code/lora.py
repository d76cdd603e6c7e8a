"""Low-rank adaptation (LoRA) of a frozen model: section 4.1 and equation 3 of Hu et al. 2021, arXiv:2106.09685.

    h = W0 x + (alpha / r) B A x        W0 (d_out, d_in) frozen,  A (r, d_in) random,  B (d_out, r) zero at the start

The running example is `c_attn` of GPT-2 small, one matrix 768 -> 2304 that makes query, key and value at once. With
r = 4 and the targets query and value, each of these thirds gets a pair of its own, and the key's third is left alone:

    x (768) ──┬── W0 (2304, 768) ──┬─ query (768) ────────────────────────(+)─────── query
              │                    ├─ key   (768) ─────────────────────────│──────── key, the same to the last bit
              │                    └─ value (768) ─────────────────────────│──(+)─── value
              └── dropout ── A (8, 768) ──┬─ 4 ── alpha / r ── B (768, 4) ─┘   │
                                          └─ 4 ── alpha / r ── B (768, 4) ─────┘
A matrix that makes one projection gets one pair, of its own shape. (Llama's value can be narrower than its query.)

    add_lora(model, LoRAConfig(rank=4))      freezes the model and adds pairs, which are trained
    merge_lora(model); remove_lora(model)    fold them in: the plain model's layers and speed again
    adapter_files.py                         saves and loads what was learnt; it needs this file only

The paper draws A from a Gaussian; the authors' DeBERTa has N(0, 0.02). This module follows loralib: uniform within
1 / sqrt(d_in), https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib/layers.py
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = {  # projection -> the names of its matrix in a layer of GPT-2, BERT and RoBERTa, DeBERTa-v2, Llama
    "query": ("attn.c_attn", "attention.self.query", "attention.self.query_proj", "self_attn.q_proj"),
    "key": ("attn.c_attn", "attention.self.key", "attention.self.key_proj", "self_attn.k_proj"),
    "value": ("attn.c_attn", "attention.self.value", "attention.self.value_proj", "self_attn.v_proj"),
    "output": ("attn.c_proj", "attention.output.dense", "self_attn.o_proj"),
    "mlp_gate": ("mlp.gate_proj",),
    "mlp_in": ("mlp.c_fc", "intermediate.dense", "mlp.up_proj"),
    "mlp_out": ("mlp.c_proj", "output.dense", "mlp.down_proj"),
}


@dataclass(frozen=True)
class LoRAConfig:
    """Rank of each projection's pair, its scale alpha / rank, dropout before A, and which of PROJECTIONS get a pair."""

    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank must be at least 1, found {self.rank!r}; to train no pairs, leave out add_lora")
        for name, low, high in (("alpha", math.nextafter(0, 1), math.inf), ("dropout", 0, 1)):
            if not isinstance(value := getattr(self, name), int | float) or not low <= value < high:
                raise ValueError(f"{name} must be {'from 0 to below 1' if high == 1 else 'above 0'}, found {value!r}")
        if isinstance(self.targets, str) or not self.targets or not set(self.targets) <= PROJECTIONS.keys():
            raise ValueError(f"targets must be some of {', '.join(PROJECTIONS)}; found {self.targets!r}")
        object.__setattr__(self, "targets", tuple(target for target in PROJECTIONS if target in self.targets))


class LoRALinear(nn.Module):
    """A frozen linear map with a low-rank pair for each adapted part of its output: (..., d_in) -> (..., d_out).

    The base layer is an nn.Linear or transformers' Conv1D, which keeps its weight the other way round, (d_in, d_out).
    `lora_A` (k r, d_in) and `lora_B` (k d_part, r) hold the k pairs one above the other, as loralib's MergedLinear.
    """

    def __init__(self, base_layer: nn.Module, parts: tuple[str, ...], config: LoRAConfig):
        super().__init__()
        if not isinstance(base_layer.weight, Tensor) or not base_layer.weight.is_floating_point():
            raise ValueError(f"expected weights that are floating-point numbers, found a quantised {base_layer}")
        self.base_layer, self.transposed = base_layer, not isinstance(base_layer, nn.Linear)
        self.config, self.scaling = config, config.alpha / config.rank
        self.out_features, self.in_features = d_out, d_in = self.weight.shape
        self.part_size = d_out // len(parts)  # 768
        if config.rank > min(self.part_size, d_in):
            raise ValueError(f"rank {config.rank} is larger than the matrix to adapt, ({self.part_size}, {d_in})")
        adapted = [i for i, part in enumerate(parts) if part in config.targets]  # [0, 2]: query and value
        # float32 beside a bfloat16 W0 too, where small steps would round to nothing
        new = partial(self.weight.new_zeros, dtype=torch.promote_types(self.weight.dtype, torch.float32))
        self.lora_A = nn.Parameter(new(len(adapted) * config.rank, d_in))  # (8, 768)
        self.lora_B = nn.Parameter(new(len(adapted) * self.part_size, config.rank))  # (1536, 4)
        n, r = self.part_size, config.rank  # blocks: rows and columns of each pair in the one B (2304, 8) of wide_B
        self.blocks = [(slice(p * n, (p + 1) * n), slice(i * r, (i + 1) * r)) for i, p in enumerate(adapted)]
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # the fan-in is d_in, so that std = 1 / sqrt(3 d_in)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.unmerged: Tensor | None = None  # W0 as it was, for as long as the update is merged into it
        self.apart = ""  # why the update has to stay beside W0, neither merged nor saved as plain LoRA, if it has
        for register in (self.register_state_dict_pre_hook, self.register_load_state_dict_pre_hook):
            register(LoRALinear.unmerge)  # a state dict has W0 beside the pairs: merged, it would count them twice
        self.train(base_layer.training)

    @property
    def weight(self) -> Tensor:
        """W0 as (d_out, d_in): the base layer's own weight, or a view of it."""
        return self.base_layer.weight.T if self.transposed else self.base_layer.weight

    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.unmerge()  # a merged pair would get no gradient
        h = self.base_layer(x)
        if self.unmerged is not None:
            return h
        low = F.linear(self.dropout(x), self.lora_A.to(x.dtype)).view(-1, len(self.lora_A))  # (rows, 8)
        update = torch.addmm(h.view(-1, h.shape[-1]), low, self.wide_B().to(x.dtype), alpha=self.scaling)
        return update.view_as(h)  # with 0 added to the key

    @torch.no_grad()
    def unmerge(self, *_: object) -> None:
        """Put W0 back to the last bit, if the update is merged into it; subtracting would round."""
        if self.unmerged is not None:
            self.base_layer.weight.copy_(self.unmerged)
            self.unmerged = None

    def wide_B(self) -> Tensor:
        """B^T (k r, d_out) of one pair over all of W0 that computes what the k pairs do; zero outside their blocks."""
        if self.part_size == len(self.weight):
            return self.lora_B.T
        B = self.lora_B.new_zeros(len(self.lora_A), len(self.weight))  # (8, 2304)
        for (rows, columns), own in zip(self.blocks, self.lora_B.split(self.part_size), strict=True):
            B[columns, rows] = own.T
        return B


def projections(name: str) -> tuple[str, ...]:
    """The projections of a matrix: ("query", "key", "value") for "transformer.h.0.attn.c_attn", () if it has none."""
    name_in_layer = re.sub(r"^(.*\.)?\d+\.|\.lora_.*$", "", name)  # also from the name of a pair's parameter
    return tuple(target for target, names in PROJECTIONS.items() if name_in_layer in names)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def sound_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """`lora_layers`; ValueError if there is one that can be neither merged nor saved."""
    for name, layer in (layers := lora_layers(model)).items():
        if layer.apart or not (layer.lora_A.isfinite().all() and layer.lora_B.isfinite().all()):
            reason = layer.apart or "NaN or infinity is in it, so its training diverged"
            raise ValueError(f"the pair of {name} can be neither merged nor saved: {reason}")
    return layers


def require_plain(model: nn.Module) -> None:
    """Raise ValueError with a module's name if LoRA, adapters or a prefix has changed the model."""
    if changed := [n for n, _ in model.named_modules() if n.endswith((".base_layer", ".adapters", ".prefix"))]:
        raise ValueError(f"expected a plain model, found {changed[0]} in it; remove_lora, or load the model anew")


def add_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Give the target matrices their pairs, in place, and freeze all else; returns the names of the adapted modules.

    B is zero, so the model computes what it did before. A new classification head is frozen too: unfreeze it after.
    Raises ValueError if a target is not in the model, a rank exceeds a matrix, or the model is not plain.
    """
    require_plain(model)
    wanted = {n: module for n, module in model.named_modules() if set(projections(n)) & set(config.targets)}
    if missing := set(config.targets).difference(*map(projections, wanted)):
        expected = "expected GPT-2, BERT, RoBERTa, DeBERTa-v2 or Llama (which alone has mlp_gate)"
        raise ValueError(f"found no {', '.join(sorted(missing))} in {type(model).__name__}; {expected}")
    layers = {name: LoRALinear(module, projections(name), config) for name, module in wanted.items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return list(layers)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold W0 + (alpha / r) B A into W0, until training or a state dict unmerges it; ValueError if it is not finite."""
    for layer in sound_layers(model).values():
        if layer.unmerged is None:
            layer.unmerged = layer.base_layer.weight.clone()
            for (rows, columns), B in zip(layer.blocks, layer.lora_B.split(layer.part_size), strict=True):
                layer.weight[rows].add_(B @ layer.lora_A[columns], alpha=layer.scaling)


def unmerge_lora(model: nn.Module) -> None:
    """Put W0 back to the last bit. This twice, or `merge_lora` twice, is the same as once."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def remove_lora(model: nn.Module) -> None:
    """Put the base layers back as they are now (adapted, if merged), and make all of the model trainable again."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base_layer)
    model.requires_grad_(True)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The numbers of trainable and of all parameters; shared ones count once, those on `meta` too."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())
