"""What differs between architectures: the classes of transformers, and the names of a model's parts.

All of it stands in FAMILIES, but for the names of the matrices that LoRA adapts (`lora.PROJECTIONS`). No other module
asks for an architecture's name or attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from adapter_files import inside


def _gpt2_keys_values(body: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    _, key, value = layer.attn.c_attn(layer.ln_1(x)).chunk(3, dim=-1)
    heads = body.config.num_attention_heads
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (key, value))


def _llama_keys_values(body: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x, attention = layer.input_layernorm(x), layer.self_attn
    key, value = (
        part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for part in (attention.k_proj(x), attention.v_proj(x))
    )
    cosine, sine = body.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
    return apply_rotary_pos_emb(key, key, cosine, sine)[1], value


def _encoder_keys_values(body: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    attention, heads = layer.attention.self, body.config.num_attention_heads
    return tuple(part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (attention.key, attention.value))


@dataclass(frozen=True)
class Family:
    """An architecture: its classes in transformers, and the names of its parts.

    The parts of a layer are named within it; "" is the layer itself.
    """

    config: str
    model: str
    layers: str  # the list of layers, within the body (`model.base_model`)
    attention_end: str  # its output is added to what entered attention
    mlp_end: str  # its output is added to what entered the feed-forward map
    layer_end: str = ""  # its output enters the next layer
    mlp_norm: str | None = None  # the LayerNorm after the feed-forward map, where there is one
    head: tuple[str, ...] = ()  # trained with every method; empty where answers are written
    head_dropout: str = "dropout"  # of what enters the classifier, where there is a head
    reads_both_ways: bool = False  # each token attends to those behind it as well
    unused_positions: int = 0  # RoBERTa counts positions from 2, behind the pad token's
    matrix_norms: tuple[str, ...] = ()  # norms in a layer whose output enters matrices alone
    projects_positions: str | None = None  # attention's method that sends positions through its matrices for all rows
    rotation: str | None = None  # within the body: gives the cosines and sines that rotate queries and keys
    # keys and values (1, heads, tokens, d / heads) that a layer makes of x (1, tokens, d); None: takes no prefix
    keys_values: Callable[[nn.Module, nn.Module, Tensor], tuple[Tensor, Tensor]] | None = None


_ENCODER = {
    "layers": "encoder.layer", "attention_end": "attention.output.dropout", "mlp_end": "output.dropout",
    "layer_end": "output", "mlp_norm": "output.LayerNorm", "reads_both_ways": True,
}  # fmt: skip
FAMILIES: dict[str, Family] = {  # by `config.model_type`
    "gpt2": Family("GPT2Config", "GPT2LMHeadModel", layers="h", attention_end="attn.resid_dropout",
                   mlp_end="mlp.dropout", keys_values=_gpt2_keys_values, matrix_norms=("ln_1", "ln_2")),
    "llama": Family("LlamaConfig", "LlamaForCausalLM", layers="layers", attention_end="self_attn.o_proj",
                    mlp_end="mlp.down_proj", keys_values=_llama_keys_values,
                    matrix_norms=("input_layernorm", "post_attention_layernorm"), rotation="rotary_emb"),
    "bert": Family("BertConfig", "BertForSequenceClassification", head=("bert.pooler", "classifier"),
                   keys_values=_encoder_keys_values, **_ENCODER),
    "roberta": Family("RobertaConfig", "RobertaForSequenceClassification", head=("classifier",),
                      head_dropout="classifier.dropout", unused_positions=2, keys_values=_encoder_keys_values,
                      **_ENCODER),
    "deberta-v2": Family("DebertaV2Config", "DebertaV2ForSequenceClassification", head=("pooler", "classifier"),
                         projects_positions="disentangled_attention_bias", **_ENCODER),
}  # fmt: skip


def family_of(model: nn.Module) -> Family:
    """The model's architecture; ValueError if it is none of FAMILIES."""
    if (kind := getattr(getattr(inside(model), "config", None), "model_type", "no config")) not in FAMILIES:
        raise ValueError(f"expected a model of the kinds {', '.join(FAMILIES)}; found {type(model).__name__} ({kind})")
    return FAMILIES[kind]


def layers(model: nn.Module) -> nn.ModuleList:
    """The model's layers, from the first."""
    return inside(model).base_model.get_submodule(family_of(model).layers)


def positions(model: nn.Module) -> int:
    """The longest sequence that the model takes, in tokens."""
    return inside(model).config.max_position_embeddings - family_of(model).unused_positions


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by their names in the plain model, trained with every method and counted apart.

    Empty for a language model.

    The paper does not count them (issue 16 of microsoft/LoRA).
    """
    prefixes = tuple(f"{module}." for module in family_of(model).head)
    return {name: p for name, p in inside(model).named_parameters() if name.startswith(prefixes)}
