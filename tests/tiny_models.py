"""A tiny model of every family, and every method's settings on it: what the tests of the methods share."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from experiments.settings import Settings
from families import FAMILIES
from methods.catalogue import apply_method
from methods.prefixes import PreEmbed, PreLayer

LAYERS, WIDTH, POSITIONS, WORDS = 3, 16, 16, 24
TOKENS = torch.arange(3, 15).reshape(2, 6)
SHAPES = {
    "gpt2": {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 2, "n_positions": POSITIONS, "bos_token_id": 0,
             "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 24, "max_position_embeddings": POSITIONS, "bos_token_id": 0, "eos_token_id": 0},
    "bert": {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 24},
}  # fmt: skip
SHAPES["roberta"] = SHAPES["bert"]
SHAPES["deberta-v2"] = SHAPES["bert"] | {
    "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0, "conv_kernel_size": 3,
}  # fmt: skip
INSIDE = {  # the layers of each family, and its head
    "gpt2": ("transformer.h", ()),
    "llama": ("model.layers", ()),
    "bert": ("bert.encoder.layer", ("bert.pooler.", "classifier.")),
    "roberta": ("roberta.encoder.layer", ("classifier.",)),
    "deberta-v2": ("deberta.encoder.layer", ("pooler.", "classifier.")),
}
LANGUAGE_MODELS = ("gpt2", "llama")
FACTS = {
    "top-layers": {"top_layers": 2},
    "bitfit": {},
    "adapter-h": {"bottleneck": 3},
    "adapter-l": {"bottleneck": 3},
    "adapter-p": {"bottleneck": 3, "dropped_layers": 2},
    "preembed": {"prefix_tokens": 4},
    "prelayer": {"prefix_tokens": 4},
}
PREFIXES = {"preembed": PreEmbed, "prelayer": PreLayer}
FITS = {"preembed": LANGUAGE_MODELS, "prelayer": (*LANGUAGE_MODELS, "bert", "roberta")}  # not every family
FITS |= {"adapter-p": ("bert", "roberta", "deberta-v2"), "bitfit": ("gpt2", "bert", "roberta", "deberta-v2")}
CASES = [(method, family) for method in FACTS for family in FITS.get(method, FAMILIES)]
ADAPTER_CASES = [(method, family) for method, family in CASES if method.startswith("adapter")]
SOME_CASES = [(method, family) for method, family in CASES if family in LANGUAGE_MODELS or method == "adapter-p"]


def settings(method: str, family: str = "gpt2", **changes) -> Settings:
    task = "e2e-builtin" if family in LANGUAGE_MODELS else "mrpc"
    one_run = {"task": task, "model": "any", "method": method, "learning_rate": 0.01, "epochs": 1, "batch_size": 4}
    return Settings(**one_run | FACTS.get(method, {}) | changes)


def tiny(family: str = "gpt2", seed: int = 0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    config, model = (getattr(transformers, name) for name in (FAMILIES[family].config, FAMILIES[family].model))
    shape = {"vocab_size": WORDS, "initializer_range": 0.3} | SHAPES[family] | changes
    return model(config(**shape)).eval()


def adapted(method: str, family: str = "gpt2", **changes) -> nn.Module:
    """A new tiny model, changed as the method says; the same words or matrices are drawn every time."""
    model = tiny(family)
    torch.manual_seed(1)
    apply_method(model, settings(method, family, **changes))
    return model


def step(model: nn.Module, steps: int = 1) -> nn.Module:
    """Adam without weight decay, so that only a gradient changes anything."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        labels = TOKENS if model.config.model_type in LANGUAGE_MODELS else torch.tensor([0, 1])
        model(TOKENS, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def logits(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def expected_names(method: str, family: str) -> set[str]:
    """The parameters that a method trains, a head's with them."""
    layers, head = INSIDE[family]
    plain = {name for name, _ in tiny(family).named_parameters()}
    names = {name for name in plain if name.startswith(head)} if head else set()
    if method == "top-layers":
        return names | {name for name in plain if name.startswith((f"{layers}.1.", f"{layers}.2."))}
    if method == "bitfit":
        return names | {name for name in plain if name.endswith("bias")}
    if method in PREFIXES:
        body = layers.partition(".")[0]
        return names | {f"{body}.prefix.{'embeddings' if method == 'preembed' else 'activations'}"}
    parts = ["down.weight", "down.bias", "up.weight", "up.bias"]
    parts += ["norm.weight", "norm.bias"] if method == "adapter-l" else []
    layers_with = range(FACTS[method].get("dropped_layers", 0), LAYERS)
    each = range(2 if method == "adapter-h" else 1)
    return names | {f"{layers}.{layer}.adapters.{i}.{part}" for layer in layers_with for i in each for part in parts}
