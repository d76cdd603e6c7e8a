"""Adapters: small bottlenecks between the frozen parts of each layer. Section 5.1, rows of Tables 2 and 3.

    Adapter^H   after attention and after the feed-forward map                add_adapters(model, "houlsby", 64)
    Adapter^L   after the layer, with a LayerNorm of its own                  add_adapters(model, "lin", 64)
    Adapter^P   after the feed-forward map and its LayerNorm                  add_adapters(model, "pfeiffer", 64)
    Adapter^D   any of these, but none in the first layers (AdapterDrop)      add_adapters(model, "pfeiffer", 64, 5)

Their places (norms in brackets are an encoder's; a language model has its norms before the two maps):

    x -> attention -> dropout -[H]-> + x -> (norm) -> feed-forward -> dropout -[H]-> + -[P]-> (norm) -[L]->

All else is frozen, a new classification head too: unfreeze it after. No parameter of the base model is renamed.
An adapter's update is zero at the start, so the model computes what it did before, to the last bit.

`adapter_parameters` is the paper's count; tests/test_method_counts.py compares it and these layers with Tables 2 and 3.
It has a term for trained LayerNorms. Here only Adapter^L trains any, its own: the official code freezes the base
model's in all adapter runs. Adapter^H and Adapter^P follow that code:
https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLU/src/transformers/models/roberta/modeling_roberta.py
Adapter^L follows its authors, Lin et al. 2020:
https://github.com/zlinao/VGLM/blob/866cd112e2ef414f2ac7a278af38fc8dc1ce0f80/pytorch_transformers/modeling_vlm.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import family_of, layers
from lora import require_plain

KINDS = {  # kind -> the parts of a layer it follows (fields of `models.Family`), activation, whether it has a LayerNorm
    "houlsby": (("attention_end", "mlp_end"), F.silu, False),
    "lin": (("layer_end",), F.relu, True),
    "pfeiffer": (("mlp_norm",), F.relu, False),
}
INITIAL_STD = 0.02  # of an adapter's first matrix; the official code draws the second with it too


def adapter_parameters(adapters: int, width: int, bottleneck: int, layer_norms: int = 0) -> int:
    """The paper's count (section 5.1): two matrices and two biases an adapter, and `layer_norms` trained LayerNorms."""
    return adapters * (2 * width * bottleneck + bottleneck + width) + 2 * layer_norms * width


class Adapter(nn.Module):
    """The update W_up act(W_down norm(x)) that an adapter adds: (..., width) -> (..., width), zero at the start."""

    def __init__(self, like: Tensor, width: int, bottleneck: int, activation: Callable, norm: bool):
        super().__init__()
        # float32 in a bfloat16 model too, where small steps would round to nothing
        place = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        self.norm = nn.LayerNorm(width, **place) if norm else nn.Identity()
        self.down, self.up = nn.Linear(width, bottleneck, **place), nn.Linear(bottleneck, width, **place)
        self.activation = activation
        nn.init.normal_(self.down.weight, std=INITIAL_STD)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(self.norm(x.to(self.down.weight.dtype))))).to(x.dtype)

    def after(self, part: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """Forward hook that adds the update to a part's output."""
        return output + self(output)

    def before_norm(self, norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Forward pre-hook that adds to a LayerNorm's input the update of its output."""
        return inputs[0] + self(norm.forward(inputs[0]))


def add_adapters(model: nn.Module, kind: str, bottleneck: int | None, dropped_layers: int = 0) -> None:
    """Add adapters of a kind in KINDS to every layer but the first `dropped_layers`; they alone are trained.

    "pfeiffer" reads the output of the encoder's LayerNorm and adds to its input. A language model has no LayerNorm
    there; Table 3 has no such row. Raises ValueError for an architecture without the place, or a number out of range.
    """
    require_plain(model)
    fields, activation, norm = KINDS[kind]
    parts, stack = [getattr(family_of(model), field) for field in fields], layers(model)
    if None in parts:
        raise ValueError(f"a {kind} adapter needs an encoder (BERT, RoBERTa, DeBERTa), found {type(model).__name__}")
    if not bottleneck or bottleneck < 1:
        raise ValueError(f"bottleneck, the width of an adapter, must be at least 1, found {bottleneck}")
    if dropped_layers not in range(len(stack)):
        raise ValueError(f"dropped_layers must leave some of the {len(stack)} layers, found {dropped_layers}")
    model.requires_grad_(False)
    width, like = model.config.hidden_size, next(model.parameters())
    for layer in stack[dropped_layers:]:
        layer.adapters = nn.ModuleList(Adapter(like, width, bottleneck, activation, norm) for _ in parts)
        for adapter, name in zip(layer.adapters, parts, strict=True):
            part = layer.get_submodule(name)
            if kind == "pfeiffer":
                part.register_forward_pre_hook(adapter.before_norm)
            else:
                part.register_forward_hook(adapter.after)
