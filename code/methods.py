"""Method and settings -> a model whose trainable set is exactly right.

Each method is one function of `METHODS`: it changes the model in place and decides what is
trained. `finish` makes the trained model plain again for decoding (LoRA is folded into W).

What LoRA learnt is kept by `save_lora`; what any other method did, or one pair over all of `c_attn`, by
`save_trained`, for the plain base model of another day: `load_trained`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from baselines import PreEmbed, PreLayer, add_adapters, add_prefix, require_plain, train_biases, train_top_layers
from lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    base_fingerprint,
    count_parameters,
    lora_layers,
    merge_lora,
    projections,
    remove_lora,
)
from models import head_parameters
from rank_allocation import spread_budget, uniform_rank
from rank_schedule import begin_stage, checked_stages
from settings import Settings
from stacked_lora import add_stacked_lora
from tasks import TASKS, GlueTask

TRAINED_FILE = "trained.safetensors"


def _full(model: nn.Module, settings: Settings) -> None:
    """Full fine-tuning (FT): every parameter is trained."""
    model.requires_grad_(True)


def _config(settings: Settings, rank: int | None) -> LoRAConfig:
    """Of pairs of that rank. Rank-stabilised (arXiv:2312.03732), alpha / rank becomes alpha / sqrt(rank)."""
    if rank is None or not (settings.alpha or 0) > 0:
        found = f"found rank {rank} and alpha {settings.alpha}"
        raise ValueError(f"{settings.method} takes a rank and an alpha above 0; {found}")
    if not settings.b_learning_rate_ratio > 0:
        raise ValueError(
            "b_learning_rate_ratio is the learning rate of B over that of A, above 0 (1: plain LoRA, 16: LoRA+); "
            f"found {settings.b_learning_rate_ratio}"
        )
    alpha = settings.alpha * (math.sqrt(rank) if settings.rank_stabilised else 1)
    return LoRAConfig(rank, alpha, settings.lora_dropout, settings.targets)


def _lora(model: nn.Module, settings: Settings) -> None:
    """LoRA (section 4): low-rank pairs beside the frozen matrices of `settings.targets`."""
    config = _config(settings, settings.rank)
    packed = _packed(model, settings) if settings.packed_pair else []
    add_lora(model, config)
    for name in packed:  # as if the matrix made one thing: the query, to be adapted
        base_layer = model.get_submodule(name).base_layer
        model.set_submodule(name, LoRALinear(base_layer, ("query",), replace(config, targets=("query",))))
    if settings.transposed_init:
        for layer in lora_layers(model).values():
            for A in layer.lora_A.data.split(settings.rank):
                nn.init.kaiming_uniform_(A.T, a=math.sqrt(5))


def _packed(model: nn.Module, settings: Settings) -> list[str]:
    """The matrices that make several projections, a target among them; ValueError if there is none."""
    matrices = {name: {*projections(name)} for name, _ in model.named_modules()}
    if packed := [name for name, made in matrices.items() if len(made) > 1 and made & {*settings.targets}]:
        return packed
    raise ValueError(
        "packed_pair is one pair over all of GPT-2's c_attn, whose query, key or value is a target; found "
        f"{type(model).__name__} with targets {settings.targets!r}: leave it out"
    )


def _sequential_lora(model: nn.Module, settings: Settings) -> None:
    """Sequential LoRA: the first of its stages; `rank_schedule.py` begins the others during training."""
    stages = checked_stages(settings)
    add_stacked_lora(model, _config(settings, stages[-1]))
    begin_stage(model, stages[0])


def _adaptive_lora(model: nn.Module, settings: Settings) -> None:
    """A budget of rank-1 pairs, evenly spread; `rank_allocation.py` moves them during training."""
    add_stacked_lora(model, _config(settings, uniform_rank(model, settings)))
    spread_budget(model, settings.rank_budget)


METHODS: dict[str, Callable[[nn.Module, Settings], None]] = {
    "full": _full,
    "lora": _lora,
    "released": _lora,
    "sequential-lora": _sequential_lora,
    "adaptive-lora": _adaptive_lora,
    "top-layers": lambda model, settings: train_top_layers(model, settings.top_layers),
    "bitfit": lambda model, settings: train_biases(model),
    "adapter-h": lambda model, settings: add_adapters(model, "houlsby", settings.bottleneck, settings.dropped_layers),
    "adapter-l": lambda model, settings: add_adapters(model, "lin", settings.bottleneck, settings.dropped_layers),
    "adapter-p": lambda model, settings: add_adapters(model, "pfeiffer", settings.bottleneck, settings.dropped_layers),
    "preembed": lambda model, settings: add_prefix(model, PreEmbed, settings.prefix_tokens),
    "prelayer": lambda model, settings: add_prefix(model, PreLayer, settings.prefix_tokens),
}


def apply_method(model: nn.Module, settings: Settings) -> None:
    """Change `model` in place as the method says; afterwards exactly its trained set requires a gradient.

    A head is part of that set with every method, as in the official code (run_glue.py; issue 16 of
    microsoft/LoRA: "even though they were trained"). Raises ValueError for an unknown method, for a model
    without the task's kind of head or that a method has changed already, and for settings that make no sense.
    """
    if settings.method not in METHODS:
        raise ValueError(f"no method is called {settings.method!r}; the methods are {', '.join(METHODS)}")
    if bool(head_parameters(model)) != isinstance(TASKS[settings.task], GlueTask):
        raise ValueError(
            f"{settings.model} does not fit {settings.task}: a GLUE task needs an encoder (BERT, RoBERTa, DeBERTa), "
            f"E2E a GPT-2; found {type(model).__name__}"
        )
    require_plain(model)
    _check(settings)
    METHODS[settings.method](model, settings)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(settings.train_head)


def _check(settings: Settings) -> None:
    """ValueError for a fraction where a number counts, None where it means nothing, and plain LoRA's own elsewhere."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        fraction = "int" in field.type and any(isinstance(number, float) for number in numbers)
        if fraction or (value is None and "None" not in field.type):
            raise ValueError(f"{field.name} is to be of type {field.type}; found {value!r}")
    others = [name for name in ("packed_pair", "transposed_init") if getattr(settings, name)]
    if others and settings.method != "lora":
        raise ValueError(f"{' and '.join(others)}: method {settings.method!r} has no such setting; leave it out")


def count_trained(model: nn.Module) -> tuple[int, int, int]:
    """(trained without the head, trained of the head, all) parameters of a model; the paper's counts are the first."""
    trained, total = count_parameters(model)
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    return trained - head, head, total


def finish(model: nn.Module) -> None:
    """Fold what can be folded: the decoded model has the plain architecture and speed (section 4.1)."""
    if lora_layers(model):
        merge_lora(model)
        remove_lora(model)


def save_trained(model: nn.Module, settings: Settings, folder: Path) -> None:
    """Write what the method trained, a head with it, and nothing else: TRAINED_FILE in `folder`.

    Its header keeps the settings, which say how the model is to be changed, and the fingerprint of all the rest.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    header = {"settings": asdict(settings), "base_sha256": base_fingerprint(model, without=trained)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trained, folder / TRAINED_FILE, {"method": json.dumps(header)})


def load_trained(model: nn.Module, folder: Path) -> Settings:
    """Change the plain base model as `save_trained`'s was, with what that one learnt; returns the settings.

    Raises ValueError if the file is incomplete or not for this model, which then stays as it is: another base,
    missing or further names, other shapes; or a model that is not plain.
    """
    require_plain(model)
    try:
        with safe_open(folder / TRAINED_FILE, "pt") as file:
            header = json.loads((file.metadata() or {})["method"])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        saved = {key: tuple(value) if isinstance(value, list) else value for key, value in header["settings"].items()}
        settings, base_sha256 = Settings(**saved), header["base_sha256"]
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a whole {TRAINED_FILE} of save_trained in {folder}, found {error!r}; save or copy it again "
            "(a pickle is never opened, it can run code)"
        ) from error
    with torch.device("meta"):
        changed = type(model)(copy.deepcopy(model.config))
    apply_method(changed, settings)
    want = {(name, *p.shape) for name, p in changed.named_parameters() if p.requires_grad}
    want.add(("base weights", base_sha256))
    have = {(name, *tensor.shape) for name, tensor in found.items()}
    have.add(("base weights", base_fingerprint(model, without=found)))
    if want != have:
        raise ValueError(
            f"{folder} is not for this {type(model).__name__}: expected {sorted(want - have)[:3]}, "
            f"found {sorted(have - want)[:3]}; load the model it is for ({settings.model})"
        )
    apply_method(model, settings)
    parameters = dict(model.named_parameters())
    for name, tensor in found.items():
        parameters[name].data.copy_(tensor)
    return settings
