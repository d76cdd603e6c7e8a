"""Low-rank adaptation (LoRA) of a frozen model: section 4.1 and equation 3 of Hu et al. 2021, arXiv:2106.09685.

    h = W0 x + (alpha / r) B A x        W0 (d_out, d_in) frozen,  A (r, d_in) random,  B (d_out, r) zero at the start

The running example is `c_attn` of GPT-2 small, one matrix 768 -> 2304 that makes query, key and value at once. With
r = 4 and the targets query and value, each of these thirds gets a pair of its own, and the key's third is left alone:

    x (768) ──┬── W0 (2304, 768) ──┬─ query (768) ────────────────────────(+)─────── query
              │                    ├─ key   (768) ─────────────────────────│──────── key, the same to the last bit
              │                    └─ value (768) ─────────────────────────│──(+)─── value
              └── dropout ── A (8, 768) ──┬─ 4 ── alpha / r ── B (768, 4) ─┘   │
                                          └─ 4 ── alpha / r ── B (768, 4) ─────┘

    add_lora(model, LoRAConfig(rank=4))      freezes the model and adds pairs, which are trained
    merge_lora(model); remove_lora(model)    fold them in: the plain model's layers and speed again
    adapter_files.py                         saves and loads what was learnt; it needs this file only

The paper draws A from a Gaussian; the authors' DeBERTa has N(0, 0.02). This module follows loralib: uniform within
1 / sqrt(d_in), https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib/layers.py
"""

import re
from dataclasses import dataclass

import torch
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
WRAPPER = r"\b(module|_orig_mod|_(checkpoint|fsdp)_wrapped_module)(\.|$)"  # in the names of what torch wraps


@dataclass(frozen=True)
class LoRAConfig:
    """Rank of each projection's pair, its scale alpha / rank, dropout before A, and which of PROJECTIONS get a pair."""

    rank: int = 4
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank must be an int from 1, found {self.rank!r}; to train no pairs, leave out add_lora")
        for name, low, high in (("alpha", 1e-30, 1e30), ("dropout", 0, 1)):
            if not isinstance(value := getattr(self, name), int | float) or not low <= value < high:
                raise ValueError(f"{name} must be a number from {low} to below {high}, found {value!r}")
        targets = [*self.targets] if hasattr(self.targets, "__iter__") and not isinstance(self.targets, str) else []
        if not targets or any(target not in [*PROJECTIONS] for target in targets):
            raise ValueError(f"targets must be some of {', '.join(PROJECTIONS)}; found {self.targets!r}")
        object.__setattr__(self, "targets", tuple(target for target in PROJECTIONS if target in targets))


class LoRALinear(nn.Module):
    """A frozen linear map with a low-rank pair for each adapted part of its output: (..., d_in) -> (..., d_out).

    The base layer is an nn.Linear or transformers' Conv1D, whose weight is (d_in, d_out); `weight` is (d_out, d_in).
    `lora_A` (k r, d_in) and `lora_B` (k d_part, r) hold the k pairs one above the other, as loralib's MergedLinear.
    """

    def __init__(self, base_layer: nn.Module, parts: tuple[str, ...], config: LoRAConfig):
        super().__init__()
        weight = getattr(base_layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.itemsize == 1:
            raise ValueError(f"expected a weight of floating-point numbers, found a quantised or pruned {base_layer}")
        self.base_layer, self.transposed = base_layer, not isinstance(base_layer, nn.Linear)
        self.out_features, self.in_features = d_out, d_in = self.weight.shape
        n, r = d_out // len(parts), config.rank  # 768, 4
        if r > min(n, d_in):
            raise ValueError(f"rank {r} is larger than the matrix to adapt, ({n}, {d_in})")
        self.config, self.scaling, self.part_size = config, config.alpha / r, n
        adapted = [i for i, part in enumerate(parts) if part in config.targets]  # [0, 2]: query and value
        self.blocks = [(slice(p * n, (p + 1) * n), slice(i * r, (i + 1) * r)) for i, p in enumerate(adapted)]
        # float32 beside a bfloat16 W0 too, where small steps would round to nothing
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.lora_A = nn.Parameter(torch.zeros(len(adapted) * r, d_in, **like))  # (8, 768)
        self.lora_B = nn.Parameter(torch.zeros(len(adapted) * n, r, **like))  # (1536, 4)
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)  # the fan-in is d_in, so that std = 1 / sqrt(3 d_in)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.unmerged: Tensor | None = None  # W0 as it was, for as long as the update is merged into it
        self.apart = ""  # why the update has to stay beside W0, neither merged nor saved as plain LoRA, if it has
        self.register_state_dict_post_hook(LoRALinear.keep_W0)
        self.register_load_state_dict_pre_hook(LoRALinear.unmerge)
        self.train(base_layer.training)

    weight = property(lambda self: self.base_layer.weight.T if self.transposed else self.base_layer.weight)
    bias, nx, nf = (property(lambda self, n=n: getattr(self.base_layer, n)) for n in ("bias", "nx", "nf"))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.unmerge()  # a merged pair would get no gradient
        h = self.base_layer(x)
        if self.unmerged is not None:
            return h
        low = nn.functional.linear(self.dropout(x), self.lora_A.to(x.dtype)).view(-1, len(self.lora_A))  # (rows, 8)
        return torch.addmm(h.view(-1, h.shape[-1]), low, self.wide_B().to(x.dtype), alpha=self.scaling).view_as(h)

    def unmerge(self, *_: object) -> None:
        """Put W0 back to the last bit, if the update is merged into it; subtracting would round."""
        if self.unmerged is not None:
            self.base_layer.weight.data = self.unmerged.to(self.base_layer.weight)
            self.unmerged = None

    def keep_W0(self, state: dict[str, Tensor], prefix: str, _: object) -> None:
        """A state dict has W0 beside the pairs: merged, it would count them twice."""
        if self.unmerged is not None:
            state[f"{prefix}base_layer.weight"] = self.unmerged.to(self.base_layer.weight)

    def wide_B(self) -> Tensor:
        """B^T (k r, d_out) of one pair over all of W0 that computes what the k pairs do; zero outside `blocks`."""
        if self.part_size == self.out_features:
            return self.lora_B.T
        B = self.lora_B.new_zeros(len(self.lora_A), self.out_features)  # (8, 2304)
        for (rows, columns), own in zip(self.blocks, self.lora_B.split(self.part_size), strict=True):
            B[columns, rows] = own.T
        return B


def projections(name: str) -> tuple[str, ...]:
    """The projections of a matrix: ("query", "key", "value") for "transformer.h.0.attn.c_attn", () if it has none."""
    name_in_layer = re.sub(rf"^(.*\.)?\d+\.|{WRAPPER}|\.lora_.*$", "", name)  # also from a pair's parameter
    return tuple(target for target, names in PROJECTIONS.items() if name_in_layer in names)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def sound_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """`lora_layers`; ValueError if there is one that can be neither merged nor saved."""
    for name, layer in (layers := lora_layers(model) or require_plain(model, (".base_layer",)) or {}).items():
        if layer.apart or not (layer.scaling * layer.wide_B().T @ layer.lora_A).to(layer.weight.dtype).isfinite().all():
            reason = layer.apart or "NaN or infinity is in it, so its training diverged"
            raise ValueError(f"the pair of {name} can be neither merged nor saved: {reason}")
    return layers


def require_plain(model: nn.Module, changes: tuple[str, ...] = (".base_layer", ".adapters", ".prefix")) -> None:
    """Raise ValueError with a module's name if the model has one of the changes: LoRA, adapters or a prefix."""
    if changed := [n for n, _ in model.named_modules() if f".{n}".endswith(changes)]:
        raise ValueError(f"expected a plain model, found {changed[0]} in it; remove_lora, or load the model anew")


def add_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Give the target matrices their pairs, in place, and freeze all else; returns the names of the adapted modules.

    B is zero, so the model computes what it did before. A new classification head is frozen too: unfreeze it after.
    Raises ValueError if a target is not there or shares its weight, a rank exceeds a matrix, or the model is not plain.
    """
    require_plain(model)
    wanted = {n: module for n, module in model.named_modules() if set(projections(n)) & set(config.targets)}
    if missing := set(config.targets).difference(*map(projections, wanted)):
        expected = "expected GPT-2, BERT, RoBERTa, DeBERTa-v2 or Llama (which alone has mlp_gate)"
        raise ValueError(f"found no {', '.join(sorted(missing))} in {type(model).__name__}; {expected}")
    layers = {name: LoRALinear(module, projections(name), config) for name, module in wanted.items()}
    held = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    if shared := [name for name, layer in layers.items() if held.count(id(layer.base_layer.weight)) > 1]:
        raise ValueError(f"expected matrices of their own, found {shared[0]}, whose weight another module has too")
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return list(layers)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold W0 + (alpha / r) B A into W0, until training or `load_state_dict`; ValueError if it is not finite."""
    for layer in (layer for layer in sound_layers(model).values() if layer.unmerged is None):
        weight = layer.base_layer.weight  # a copy is merged: a state dict, or another process, may hold W0 itself
        layer.unmerged, weight.data = weight.data, weight.clone()
        with torch.autocast(weight.device.type, enabled=False):  # it would round the update
            for (rows, columns), B in zip(layer.blocks, layer.lora_B.split(layer.part_size), strict=True):
                layer.weight[rows].add_(B @ layer.lora_A[columns], alpha=layer.scaling)


def unmerge_lora(model: nn.Module) -> None:
    """Put W0 back to the last bit. This twice, or `merge_lora` twice, is the same as once."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def remove_lora(model: nn.Module) -> None:
    """Put the base layers back as they are now (adapted, if merged), and make all of the model trainable again."""
    for name, layer in (lora_layers(model) or require_plain(model, (".base_layer",)) or {}).items():
        model.set_submodule(name, layer.base_layer)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The numbers of trainable and of all parameters; shared ones count once, those on `meta` too."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())
