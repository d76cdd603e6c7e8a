"""The methods that LoRA is compared with in Tables 2 and 3: section 5.1 of Hu et al. 2021, arXiv:2106.09685.

    FT^Top k    the last k layers are trained                                 train_top_layers(model, 2)
    BitFit      the biases are trained (Zaken et al. 2021)                    train_biases(model)
    Adapter^H   bottlenecks after attention and after the feed-forward map    add_adapters(model, "houlsby", 64)
    Adapter^L   one after the layer, with a LayerNorm of its own              add_adapters(model, "lin", 64)
    Adapter^P   one after the feed-forward map and its LayerNorm              add_adapters(model, "pfeiffer", 64)
    Adapter^D   any of these, but none in the first layers (AdapterDrop)      add_adapters(model, "pfeiffer", 64, 5)
    PreEmbed    trained word embeddings before the input                      add_prefix(model, PreEmbed, 16)
    PreLayer    trained activations there, in every layer                     add_prefix(model, PreLayer, 16)

Each changes a model of transformers in place and freezes what it does not train, a new classification head too:
unfreeze it after. Nothing of the base model is renamed. An adapter adds an update that is zero at the start, so that
the model computes what it did before, to the last bit; prefixes start as words, as if these stood before the input.

Where each adapter sits; the norms in brackets are the encoders', GPT-2's are before attention and feed-forward map:

    x -> attention -> dropout -[H]-> + x -> (norm) -> feed-forward -> dropout -[H]-> + -[P]-> (norm) -[L]->

The paper's counts are `adapter_parameters` and `prefix_parameters`; tests/test_baselines.py holds them and these layers
against every row of Tables 2 and 3. The formula has a term for trained LayerNorms: only Adapter^L's own are; those of
the base model stay frozen in all adapter runs of the official code, whose Adapter^H and Adapter^P these are:
https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLU/src/transformers/models/roberta/modeling_roberta.py
Adapter^L is that of its authors, Lin et al. 2020:
https://github.com/zlinao/VGLM/blob/866cd112e2ef414f2ac7a278af38fc8dc1ce0f80/pytorch_transformers/modeling_vlm.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

Pairs = Sequence[tuple[Tensor, Tensor]]  # keys and values of the prefix in each layer
ENCODERS = ("bert", "roberta", "deberta-v2")
ADAPTERS = {  # what they follow in a layer of GPT-2 ("": the layer) and of an encoder; activation; a norm of their own
    "houlsby": (("attn.resid_dropout", "mlp.dropout"), ("attention.output.dropout", "output.dropout"), F.silu, False),
    "lin": (("",), ("output",), F.relu, True),
    "pfeiffer": ((), ("output.LayerNorm",), F.relu, False),
}
INITIAL_STD = 0.02  # of an adapter's first matrix; the official code draws the second so as well
ATTENTION = "sdpa_with_prefix"  # the name under which transformers finds `_attend`


# Counts -----------------------------------------------------------------------------------------------------------


def adapter_parameters(adapters: int, width: int, bottleneck: int, layer_norms: int = 0) -> int:
    """The paper's count (section 5.1): two matrices and two biases an adapter, and `layer_norms` trained LayerNorms."""
    return adapters * (2 * width * bottleneck + bottleneck + width) + 2 * layer_norms * width


def prefix_parameters(width: int, tokens: int, layers: int = 1) -> int:
    """The paper's count of PreEmbed, and with the number of layers that of PreLayer: d (l_p + l_i) for each.

    The l_i tokens behind the context are GPT-3's only (appendix D.4); here all are the l_p before it.
    """
    return layers * width * tokens


# Parts of the model -----------------------------------------------------------------------------------------------


def require_plain(model: nn.Module) -> None:
    """ValueError for a model that has pairs of LoRA, adapters or a prefix: methods are not stacked on each other."""
    if changed := [n for n, _ in model.named_modules() if n.endswith((".base_layer", ".adapters", ".prefix"))]:
        raise ValueError(f"expected a plain model, found {changed[0]} in it, of another method; load the model anew")


def _layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a plain model."""
    require_plain(model)
    kind = model.config.model_type
    if kind != "gpt2" and kind not in ENCODERS:
        raise ValueError(f"expected GPT-2, BERT, RoBERTa or DeBERTa-v2, found {type(model).__name__}")
    return model.base_model.h if kind == "gpt2" else model.base_model.encoder.layer


def train_top_layers(model: nn.Module, number: int | None) -> None:
    """Partial fine-tuning: the last `number` layers, whole, and nothing above them (for GPT-2 not `ln_f`).

    Table 3 tells so: 25.19M are two layers of GPT-2 medium. Raises ValueError for none, or more than there are.
    """
    layers = _layers(model)
    if number not in range(1, len(layers) + 1):
        raise ValueError(f"top_layers must be 1 to {len(layers)}, the layers of {type(model).__name__}; found {number}")
    model.requires_grad_(False)
    layers[-number:].requires_grad_(True)


def train_biases(model: nn.Module) -> None:
    """BitFit: every parameter with "bias" in its name, those of LayerNorms and embeddings too, as the official code."""
    _layers(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)


# Adapters ---------------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """The update W_up act(W_down norm(x)) that an adapter adds: (..., width) -> (..., width), zero at the start."""

    def __init__(self, like: Tensor, width: int, bottleneck: int, activation: Callable, norm: bool):
        super().__init__()
        place = {"device": like.device, "dtype": like.dtype}
        self.norm = nn.LayerNorm(width, **place) if norm else nn.Identity()
        self.down, self.up = nn.Linear(width, bottleneck, **place), nn.Linear(bottleneck, width, **place)
        self.activation = activation
        nn.init.normal_(self.down.weight, std=INITIAL_STD)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(self.norm(x))))

    def after(self, part: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """Forward hook of the part that the adapter follows."""
        return output + self(output)

    def before_norm(self, norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Forward pre-hook of a LayerNorm: it is applied twice, first to what the adapter reads."""
        return inputs[0] + self(norm.forward(inputs[0]))


def add_adapters(model: nn.Module, kind: str, bottleneck: int | None, dropped_layers: int = 0) -> None:
    """Give every layer but the first `dropped_layers` its adapters of a kind in ADAPTERS; they alone are trained.

    "pfeiffer" reads the output of the encoder's LayerNorm and adds to its input: GPT-2 has no LayerNorm there, and the
    paper no such row. Raises ValueError where the architecture lacks the place, or a number is out of its range.
    """
    layers = _layers(model)
    in_gpt2, in_encoder, activation, norm = ADAPTERS[kind]
    parts = in_gpt2 if model.config.model_type == "gpt2" else in_encoder
    if not parts:
        raise ValueError(f"a {kind} adapter needs an encoder (BERT, RoBERTa, DeBERTa), found {type(model).__name__}")
    if not bottleneck or bottleneck < 1:
        raise ValueError(f"bottleneck, the width of an adapter, must be at least 1, found {bottleneck}")
    if dropped_layers not in range(len(layers)):
        raise ValueError(f"dropped_layers must leave some of the {len(layers)} layers, found {dropped_layers}")
    model.requires_grad_(False)
    width, like = model.config.hidden_size, next(model.parameters())
    for layer in layers[dropped_layers:]:
        layer.adapters = nn.ModuleList(Adapter(like, width, bottleneck, activation, norm) for _ in parts)
        for adapter, name in zip(layer.adapters, parts, strict=True):
            part = layer.get_submodule(name)
            if kind == "pfeiffer":
                part.register_forward_pre_hook(adapter.before_norm)
            else:
                part.register_forward_hook(adapter.after)


# Prefixes ---------------------------------------------------------------------------------------------------------


class PreEmbed(nn.Module):
    """Word embeddings (tokens, d) of special tokens before the input of GPT-2, at first those of words drawn at random.

    They have the first positions' embeddings like any text, and the layers compute what becomes of them.
    """

    def __init__(self, transformer: nn.Module, tokens: int):
        super().__init__()
        words = transformer.wte.weight.detach()
        self.embeddings = nn.Parameter(words[torch.randint(len(words), (tokens,), device=words.device)])

    def layer_inputs(self, transformer: nn.Module) -> Iterator[Tensor]:
        """What enters each layer at the positions of the prefix, (1, tokens, d); it does not depend on the input."""
        x = transformer.drop(self.embeddings + transformer.wpe.weight[: len(self.embeddings)])[None]
        for layer in transformer.h:
            yield x
            x = layer(x)


class PreLayer(nn.Module):
    """Activations (layers, tokens, d): what enters each layer at the positions of the prefix, computed by none of them.

    At first they are those of a new PreEmbed. (The activations after the last layer would have no effect.)
    """

    def __init__(self, transformer: nn.Module, tokens: int):
        super().__init__()
        computed = PreEmbed(transformer, tokens).layer_inputs(transformer)
        self.activations = nn.Parameter(torch.cat(list(computed)).detach())

    def layer_inputs(self, transformer: nn.Module) -> Iterator[Tensor]:
        yield from self.activations[:, None]


def add_prefix(model: nn.Module, kind: type[PreEmbed] | type[PreLayer], tokens: int | None) -> None:
    """Put trained positions before the input of GPT-2; they alone are trained.

    The input's positions begin after them, as if the prefix were text. `model.config.n_positions` says how many are
    left. Masks, caches and outputs are of the input only: each attention adds the prefix's keys and values itself.
    Raises ValueError for another architecture, no token, or so many that no position is left.
    """
    _layers(model)
    if model.config.model_type != "gpt2":
        raise ValueError(f"a prefix needs a GPT-2, as in the paper's Table 3; found {type(model).__name__}")
    if tokens not in range(1, positions := model.config.n_positions):
        raise ValueError(f"prefix_tokens must be at least 1 and leave some of {positions} positions, found {tokens}")
    transformer = model.base_model
    model.set_attn_implementation(ATTENTION)
    model.requires_grad_(False)
    transformer.prefix = kind(transformer, tokens)
    transformer.register_forward_pre_hook(_hand_over, with_kwargs=True)
    transformer.wpe.register_forward_pre_hook(lambda _, positions: (positions[0] + tokens,))
    model.config.n_positions -= tokens


def _hand_over(transformer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook of GPT-2: the prefix's keys and values, (1, heads, tokens, d / heads), layer by layer."""
    heads, pairs = transformer.config.n_head, []
    for layer, x in zip(transformer.h, transformer.prefix.layer_inputs(transformer), strict=False):  # the last's output
        _, *key_and_value = layer.attn.c_attn(layer.ln_1(x)).chunk(3, dim=-1)  # of the prefix is never computed
        pairs.append(tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in key_and_value))
    return args, kwargs | {"prefix": pairs}


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, prefix: Pairs = (), **others: Any
) -> tuple[Tensor, None]:
    """Attention to the prefix, which every query sees, and to what the additive mask lets it see of the input."""
    if prefix:
        keys, values = (part.expand(len(key), -1, -1, -1) for part in prefix[module.layer_idx])
        key, value = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        mask = F.pad(mask, (keys.shape[2], 0))
    return sdpa_attention_forward(module, query, key, value, mask, **others)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)  # never None: a mask left out could not be extended
