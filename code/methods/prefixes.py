"""Trained positions before the input: PreEmbed and PreLayer (section 5.1, Tables 3, 13, 14 and 16).

    add_prefix(model, PreEmbed, 16)    trained word embeddings, which pass through the layers
    add_prefix(model, PreLayer, 16)    trained activations in every layer

All else is frozen. At first a language model computes what it would with random words before the input.
`prefix_parameters` is the paper's count.

An encoder (BERT, RoBERTa) takes PreLayer: its text attends to the trained activations of every layer, and keeps its own
positions. It takes no PreEmbed, whose embeddings would have to read the text in the layers above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from families import family_of, layers, positions
from lora import require_plain

Pairs = Sequence[tuple[Tensor, Tensor]]  # keys and values of the prefix in each layer
ATTENTION = "sdpa_with_prefix"  # the name under which transformers finds `_attend`


def prefix_parameters(width: int, tokens: int, layers: int = 1) -> int:
    """The paper's count: d (l_p + l_i) for PreEmbed, and for PreLayer as much in each of its `layers`.

    Only GPT-3 has the l_i tokens behind the context (appendix D.4); here all `tokens` are the l_p before it.
    """
    return layers * width * tokens


class PreEmbed(nn.Module):
    """Trained word embeddings (tokens, d) before the input, at first those of words drawn at random.

    They have the first positions and pass through the layers, like any text.
    """

    def __init__(self, body: nn.Module, tokens: int):
        super().__init__()
        words = body.get_input_embeddings().weight.detach()
        self.embeddings = _trained(words[torch.randint(len(words), (tokens,), device=words.device)])

    def layer_inputs(self, body: nn.Module) -> Sequence[Tensor]:
        """The input of each layer at the prefix's positions, (1, tokens, d); it does not depend on the text."""
        x = self.embeddings[None].to(body.get_input_embeddings().weight.dtype)
        unseen = torch.full((1, 1, x.shape[1], x.shape[1]), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
        inputs: list[Tensor] = []
        # By hooks that go again: those by which transformers gives hidden states stay, and cannot be pickled.
        hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers(body)]
        body.forward(inputs_embeds=x, attention_mask=unseen.triu(1), use_cache=False)
        for hook in hooks:
            hook.remove()
        return inputs


class PreLayer(nn.Module):
    """Trained activations (layers, tokens, d): the input of each layer at the prefix's positions.

    At first they are those of a new PreEmbed; no layer computes them. (After the last layer they would have no effect.)
    """

    def __init__(self, body: nn.Module, tokens: int):
        super().__init__()
        self.activations = _trained(torch.cat(list(PreEmbed(body, tokens).layer_inputs(body))).detach())

    def layer_inputs(self, body: nn.Module) -> Iterator[Tensor]:
        yield from self.activations[:, None].to(body.get_input_embeddings().weight.dtype)


def _trained(start: Tensor) -> nn.Parameter:
    """In float32 beside a bfloat16 base too, where small steps would round to nothing."""
    return nn.Parameter(start.to(torch.promote_types(start.dtype, torch.float32)))


def add_prefix(model: nn.Module, kind: type[PreEmbed] | type[PreLayer], tokens: int | None) -> None:
    """Put trained positions before the input; they alone are trained.

    In a language model the input's positions begin after them, as if the prefix were text, and `families.positions`
    says how many are left. Masks, caches and outputs cover the input only: each attention adds the prefix's keys and
    values itself. Raises ValueError for a DeBERTa, an encoder's PreEmbed, no token, or so many that no position is
    left.
    """
    require_plain(model)
    family = family_of(model)
    if family.keys_values is None or (family.reads_both_ways and kind is PreEmbed):
        fitting = "a GPT-2 or a Llama" + ("" if kind is PreEmbed else ", a BERT or a RoBERTa")
        raise ValueError(f"{kind.__name__} needs {fitting}, found {type(model).__name__}")
    if tokens not in range(1, positions(model)):
        raise ValueError(
            f"prefix_tokens must be at least 1 and leave some of {positions(model)} positions, found {tokens}"
        )
    body = model.base_model
    model.set_attn_implementation(ATTENTION)
    model.requires_grad_(False)
    body.prefix = kind(body, tokens)
    body.register_forward_pre_hook(_hand_over, with_kwargs=True)
    if not family.reads_both_ways:
        model.config.max_position_embeddings -= tokens


def _hand_over(body: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: add the prefix's keys and values, (1, heads, tokens, d / heads) a layer; shift positions."""
    family, inputs = family_of(body), list(body.prefix.layer_inputs(body))
    pairs = [family.keys_values(body, layer, x) for layer, x in zip(layers(body), inputs, strict=True)]
    if family.reads_both_ways:
        return args, kwargs | {"prefix": pairs}
    ids = kwargs.get("position_ids")
    if ids is None:
        tokens = next(t for t in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None)
        cache = kwargs.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        ids = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
    return args, kwargs | {"prefix": pairs, "position_ids": ids + inputs[0].shape[1]}


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefix: Pairs = (), **others: Any
) -> tuple[Tensor, None]:
    """Attention to the whole prefix, and to the input as far as the additive mask, if there is one, allows."""
    if prefix:
        keys, values = (part.expand(len(key), -1, -1, -1) for part in prefix[module.layer_idx])
        key, value = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        mask = None if mask is None else F.pad(mask, (keys.shape[2], 0))  # None: an encoder's batch without padding
    return sdpa_attention_forward(module, query, key, value, mask, **others)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)  # never None for a language model, whose mask has to be extended
