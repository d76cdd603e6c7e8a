"""Low-rank adaptation (LoRA) of a frozen model: section 4.1 and equation 3 of Hu et al. 2021, arXiv:2106.09685.

    h = W0 x + (alpha / r) B A x        W0 (d_out, d_in) frozen,  A (r, d_in) random,  B (d_out, r) zero at the start

The running example is `c_attn` of GPT-2 small, one matrix 768 -> 2304 that makes query, key and value at once. With
r = 4 and the targets query and value, each of these thirds gets a pair of its own, and the key's third is left alone:

    x (768) ──┬── W0 (2304, 768) ──┬─ query (768) ────────────────────────(+)─────── query
              │                    ├─ key   (768) ─────────────────────────│──────── key, the same to the last bit
              │                    └─ value (768) ─────────────────────────│──(+)─── value
              └── dropout ── A (8, 768) ──┬─ 4 ── alpha / r ── B (768, 4) ─┘   │
                                          └─ 4 ── alpha / r ── B (768, 4) ─────┘
    add_lora(model, LoRAConfig(rank=4))      then train what still requires a gradient, and save_lora(model, folder)
    load_lora(model, folder)                 on the plain base model; merge_lora and remove_lora give its speed back

The paper draws A from a Gaussian, as the authors' DeBERTa does, N(0, 0.02); this module follows loralib, uniform within
1 / sqrt(d_in): https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib/layers.py
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PROJECTIONS = {  # the matrix that makes each, by its name inside a layer of GPT-2, BERT and RoBERTa, DeBERTa-v2
    "query": ("attn.c_attn", "attention.self.query", "attention.self.query_proj"),
    "key": ("attn.c_attn", "attention.self.key", "attention.self.key_proj"),
    "value": ("attn.c_attn", "attention.self.value", "attention.self.value_proj"),
    "output": ("attn.c_proj", "attention.output.dense"),
    "mlp_in": ("mlp.c_fc", "intermediate.dense"),
    "mlp_out": ("mlp.c_proj", "output.dense"),
}
WEIGHTS_FILE, CONFIG_FILE, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."  # PEFT's


@dataclass(frozen=True)
class LoRAConfig:
    """Rank of each projection's pair, its scale alpha / rank, dropout before A, and which of PROJECTIONS get a pair."""

    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, found {self.rank}; for a model without LoRA leave out add_lora")
        if not self.targets or not set(self.targets) <= PROJECTIONS.keys():
            raise ValueError(f"targets must be some of {', '.join(PROJECTIONS)}; found {self.targets!r}")


class LoRALinear(nn.Module):
    """A frozen linear map with a low-rank pair for each adapted part of its output: (..., d_in) -> (..., d_out).

    The base layer is an nn.Linear or transformers' Conv1D, which keeps its weight the other way round, (d_in, d_out).
    `lora_A` (k r, d_in) and `lora_B` (k d_part, r) hold the k pairs one above the other, as loralib's MergedLinear.
    """

    def __init__(self, base_layer: nn.Module, parts: tuple[str, ...], config: LoRAConfig):
        super().__init__()
        self.base_layer, self.transposed = base_layer, not isinstance(base_layer, nn.Linear)
        self.config, self.scaling = config, config.alpha / config.rank
        d_out, d_in = self.weight.shape
        self.part_size = d_out // len(parts)  # 768
        if config.rank > min(self.part_size, d_in):
            raise ValueError(f"rank {config.rank} is larger than the matrix to adapt, ({self.part_size}, {d_in})")
        adapted = [i for i, part in enumerate(parts) if part in config.targets]  # [0, 2]: query and value
        self.lora_A = nn.Parameter(self.weight.new_empty(len(adapted) * config.rank, d_in))  # (8, 768)
        self.lora_B = nn.Parameter(self.weight.new_zeros(len(adapted) * self.part_size, config.rank))  # (1536, 4)
        size, r = self.part_size, config.rank  # blocks: rows and columns of each pair in the one B (2304, 8) of wide_B
        self.blocks = [(slice(p * size, (p + 1) * size), slice(i * r, (i + 1) * r)) for i, p in enumerate(adapted)]
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # the fan-in is d_in, so that std = 1 / sqrt(3 d_in)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.unmerged: Tensor | None = None  # W0 as it was, for as long as the update is merged into it
        self.train(base_layer.training)

    @property
    def weight(self) -> Tensor:
        """W0 as (d_out, d_in): the base layer's own weight, or a view of it."""
        return self.base_layer.weight.T if self.transposed else self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.base_layer(x)
        if self.unmerged is not None:
            return h
        low = F.linear(self.dropout(x), self.lora_A)  # (..., 8)
        rows, low = h.view(-1, h.shape[-1]), low.view(-1, low.shape[-1])
        return torch.addmm(rows, low, self.wide_B(), alpha=self.scaling).view_as(h)  # to the key it adds 0

    def wide_B(self) -> Tensor:
        """B^T (k r, d_out) of the one pair over all of W0 that does what the k pairs do: zero outside their blocks."""
        B = self.lora_B.new_zeros(len(self.lora_A), len(self.weight))  # (8, 2304)
        for (rows, columns), own in zip(self.blocks, self.lora_B.split(self.part_size), strict=True):
            B[columns, rows] = own.T
        return B


def projections(name: str) -> tuple[str, ...]:
    """What a matrix makes: ("query", "key", "value") for "transformer.h.0.attn.c_attn", () if it is none of ours."""
    name_in_layer = re.sub(r"^(.*\.)?\d+\.|\.lora_.*$", "", name)  # also from the name of a pair's parameter
    return tuple(target for target, names in PROJECTIONS.items() if name_in_layer in names)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the pairs, by the names that they have in the plain model."""
    return {n.replace(".base_layer.", "."): p for n, p in model.named_parameters() if ".lora_" not in n}


def add_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Give the target matrices their pairs, in place, and freeze all else; returns the names of the adapted modules.

    B is zero, so the model computes what it did before. A new classification head is frozen too: unfreeze it after.
    Raises ValueError if a target is not in the model, a rank exceeds a matrix, or the model is not plain any more.
    """
    if any(name.endswith((".base_layer", ".adapters", ".prefix")) for name, _ in model.named_modules()):
        raise ValueError("expected a plain model, found LoRA, adapters or a prefix in it; remove_lora, or load it anew")
    wanted = {n: module for n, module in model.named_modules() if set(projections(n)) & set(config.targets)}
    missing = set(config.targets).difference(*map(projections, wanted))
    if missing:
        raise ValueError(f"found no {missing} in {type(model).__name__}; expected GPT-2, BERT, RoBERTa or DeBERTa-v2")
    layers = {name: LoRALinear(module, projections(name), config) for name, module in wanted.items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return list(layers)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold W0 + (alpha / r) B A into the weights, for the speed of the plain model. Twice is the same as once."""
    for layer in lora_layers(model).values():
        if layer.unmerged is None:
            layer.unmerged = layer.base_layer.weight.clone()
            for (rows, columns), B in zip(layer.blocks, layer.lora_B.split(layer.part_size), strict=True):
                layer.weight[rows].addmm_(B, layer.lora_A[columns], alpha=layer.scaling)


def unmerge_lora(model: nn.Module) -> None:
    """Put W0 back as it was, to the last bit, which subtracting would not do. Twice is the same as once."""
    for layer in lora_layers(model).values():
        if layer.unmerged is not None:
            layer.base_layer.weight.data.copy_(layer.unmerged)
            layer.unmerged = None


def remove_lora(model: nn.Module) -> None:
    """Put the base layers back as they are now (adapted, if merged), and make all of the model trainable again."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base_layer)
    model.requires_grad_(True)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers in the model's parameters, shared ones once; weights on `meta` count as well."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())


def base_fingerprint(model: nn.Module, without: dict | frozenset = frozenset()) -> str:
    """SHA-256 of names, shapes and values (as bfloat16, to know a bfloat16 copy again) of the base, less `without`."""
    digest = hashlib.sha256()
    for name, parameter in sorted(base_parameters(model).items()):
        if name not in without:
            digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_lora(model: nn.Module, folder: str | Path) -> None:
    """Write the pairs, and whole what other modules are trainable (a head), as a folder that PEFT can read as well.

    PEFT has one pair a matrix: over c_attn A (8, 768) and B (2304, 8), zero outside the blocks of query and value. The
    weights file's header keeps the targets and the fingerprint of the base weights. A merged model is unmerged first.
    """
    layers, base, folder = lora_layers(model), base_parameters(model), Path(folder)
    if not layers:
        raise ValueError("expected LoRA layers to save, found none in the model: add_lora(model, config) comes first")
    if packed := [n for n, layer in layers.items() if len(layer.weight) != layer.part_size * len(projections(n))]:
        raise ValueError(f"expected a pair for each projection, found one over all of {packed[0]}: use save_trained")
    unmerge_lora(model)
    heads = sorted({name.rpartition(".")[0] for name, parameter in base.items() if parameter.requires_grad})
    tensors = {name: parameter for name, parameter in base.items() if name.rpartition(".")[0] in heads}
    for name, layer in layers.items():
        tensors[f"{name}.lora_A.weight"] = layer.lora_A
        tensors[f"{name}.lora_B.weight"] = layer.wide_B().detach().T.contiguous()
    config = layer.config
    header = {"targets": config.targets, "base_sha256": base_fingerprint(model, without=tensors)}
    settings = dict(peft_type="LORA", r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout)
    settings |= dict(rank_pattern={name: len(layer.lora_A) for name, layer in layers.items()})  # k r; alpha / r is kept
    settings |= dict(alpha_pattern={name: layer.scaling * len(layer.lora_A) for name, layer in layers.items()})
    settings |= dict(target_modules=list(layers), modules_to_save=heads, inference_mode=True)
    settings |= dict(fan_in_fan_out=layer.transposed, base_model_name_or_path=getattr(model, "name_or_path", None))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + n: t for n, t in tensors.items()}, folder / WEIGHTS_FILE, {"lora": json.dumps(header)})
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def load_lora(model: nn.Module, folder: str | Path) -> list[str]:
    """Add the pairs in a folder to the plain base model they were trained on; returns the names of the adapted modules.

    The folder is save_lora's, or PEFT's with plain LoRA on matrices of one projection each. Raises ValueError if it is
    incomplete or not for this model, which then stays plain: another base, missing or further names, other shapes.
    """
    try:
        settings = json.loads((Path(folder) / CONFIG_FILE).read_text())
        with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as file:
            header, names = json.loads((file.metadata() or {}).get("lora", "{}")), file.keys()
            found = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        wanted = f"expected {CONFIG_FILE} and {WEIGHTS_FILE}, whole, in {folder}, found {error!r}"
        raise ValueError(f"{wanted}; save or copy them again (a pickle is never opened, it can run code)") from error
    odd = {k for k in ("use_rslora", "rank_pattern", "alpha_pattern", "alora_invocation_tokens") if settings.get(k)}
    odd |= {settings.get("init_lora_weights") or True} - {True, "gaussian"}  # such as "pissa", which changes the base
    if (kind := settings.get("peft_type")) != "LORA" or (odd and not header):
        raise ValueError(f"expected plain LoRA in {folder}, found {kind} with {odd or 'no option'}")
    targets = header["targets"] if header else sorted({t for name in found for t in projections(name)})
    heads = settings.get("modules_to_save") or []
    trained = {n: p for n, p in base_parameters(model).items() if any(f".{head}." in f".{n}" for head in heads)}
    fingerprint = base_fingerprint(model, without=trained)
    add_lora(model, LoRAConfig(settings["r"], settings["lora_alpha"], settings["lora_dropout"], tuple(targets)))
    layers = lora_layers(model)
    want = {(n, *p.shape) for n, p in trained.items()} | {("base weights", fingerprint)}
    want |= {(f"{n}.lora_A.weight", *layer.lora_A.shape) for n, layer in layers.items()}
    want |= {(f"{n}.lora_B.weight", len(layer.weight), len(layer.lora_A)) for n, layer in layers.items()}
    have = {(n, *t.shape) for n, t in found.items()} | {("base weights", header.get("base_sha256", fingerprint))}
    if have != want:
        remove_lora(model)
        differing = f"expected {sorted(want - have)[:3]}, found {sorted(have - want)[:3]}"
        remedy = "load the model it is for, in float32 or bfloat16"
        raise ValueError(f"{folder} is not for this {type(model).__name__}: {differing}; {remedy}")
    for name, layer in layers.items():
        layer.lora_A.data.copy_(found[f"{name}.lora_A.weight"])
        layer.lora_B.data.copy_(torch.cat([found[f"{name}.lora_B.weight"][block] for block in layer.blocks]))
    for name, parameter in trained.items():
        parameter.requires_grad_(True).data.copy_(found[name])
    return list(layers)
