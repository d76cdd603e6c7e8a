"""Every method as one entry: how it changes a model, which settings are its own, how its ranks change, how it is kept.

    apply_method(model, settings)    # afterwards only what the method trains requires a gradient
    finish(model)                    # LoRA is folded into W: the plain architecture again, for decoding

A new method is a function that changes the model in place, and an entry of METHODS. Flags, checks and sizes of the
commands follow from the entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from adapter_files import inside
from experiments.settings import Settings
from families import head_parameters
from lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    count_parameters,
    lora_layers,
    merge_lora,
    projections,
    remove_lora,
    require_plain,
)
from methods.adapters import add_adapters
from methods.frozen_positions import freeze_positions, require_positions
from methods.partial import train_biases, train_top_layers
from methods.prefixes import PreEmbed, PreLayer, add_prefix
from methods.rank_budget import AdaptiveRank, spread_budget, uniform_rank
from methods.rank_changes import RankSchedule
from methods.rank_stages import StagedRank, begin_stage, checked_stages
from methods.stacked_lora import add_stacked_lora


def _full(model: nn.Module, settings: Settings) -> None:
    """Full fine-tuning (FT): every parameter is trained."""
    model.requires_grad_(True)


def _config(settings: Settings, rank: int | None) -> LoRAConfig:
    """LoRA's configuration of that rank; rank-stabilised (arXiv:2312.03732), the scale is alpha / sqrt(rank)."""
    if rank is None or not (settings.alpha or 0) > 0:
        given = f"rank {rank} and alpha {settings.alpha}"
        raise ValueError(f"{settings.method} takes a rank and an alpha above 0; found {given}")
    if not settings.b_learning_rate_ratio > 0:
        raise ValueError(
            "b_learning_rate_ratio, the learning rate of B over that of A, must be above 0 (1: plain LoRA, 16: LoRA+); "
            f"found {settings.b_learning_rate_ratio}"
        )
    alpha = settings.alpha * (math.sqrt(rank) if settings.rank_stabilised else 1)
    return LoRAConfig(rank, alpha, settings.lora_dropout, settings.targets)


def _lora(model: nn.Module, settings: Settings) -> None:
    """LoRA (section 4): low-rank pairs beside the frozen matrices of `settings.targets`."""
    config = _config(settings, settings.rank)
    if settings.frozen_positions:
        require_positions(model, config.targets)
    packed = _packed(model, settings) if settings.packed_pair else []
    add_lora(model, config)
    for name in packed:  # one pair over the whole matrix, as if it made the query alone
        base_layer = model.get_submodule(name).base_layer
        model.set_submodule(name, LoRALinear(base_layer, ("query",), replace(config, targets=("query",))))
    if settings.frozen_positions:
        freeze_positions(model)
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
        "packed_pair needs GPT-2's c_attn and its query, key or value as a target; found "
        f"{type(model).__name__} with targets {settings.targets!r}: leave it out"
    )


def _sequential_lora(model: nn.Module, settings: Settings) -> None:
    """The first stage of Sequential LoRA; `rank_stages.py` begins the others during training."""
    stages = checked_stages(settings)
    add_stacked_lora(model, _config(settings, stages[-1]))
    begin_stage(model, stages[0])


def _adaptive_lora(model: nn.Module, settings: Settings) -> None:
    """A budget of rank-1 pairs, evenly spread; `rank_budget.py` moves them during training."""
    add_stacked_lora(model, _config(settings, uniform_rank(model, settings)))
    spread_budget(model, settings.rank_budget)


PAIRS = ("alpha", "lora_dropout", "targets", "rank_stabilised", "b_learning_rate_ratio")
LORA = ("rank", *PAIRS, "frozen_positions", "transposed_init", "packed_pair")
STAGES = ("rank_stages", "stage_trigger", "old_stages", "schedule_every", "patience", "min_improvement", "grace")
ADAPTER = ("bottleneck", "dropped_layers")


@dataclass(frozen=True)
class Method:
    """One method: its change of a model, its settings and its training."""

    apply: Callable[[nn.Module, Settings], None]  # changes the model in place and decides what is trained
    settings: tuple[str, ...] = ()  # what it uses beside the settings of every method
    pairs: bool = False  # its result is LoRA's pairs, which `save_lora` writes
    schedule: Callable[[Settings, Callable[[nn.Module], float]], RankSchedule] | None = None  # how its ranks change
    trains: bool = True  # False: an adapter that others trained is scored

    def __post_init__(self) -> None:
        if unknown := {*self.settings} - {field.name for field in fields(Settings)}:
            raise ValueError(f"a method's settings are fields of Settings; found {', '.join(sorted(unknown))}")


def _adapter(kind: str) -> Method:
    return Method(
        lambda model, settings: add_adapters(model, kind, settings.bottleneck, settings.dropped_layers), ADAPTER
    )


def _prefix(kind: type[PreEmbed] | type[PreLayer]) -> Method:
    return Method(lambda model, settings: add_prefix(model, kind, settings.prefix_tokens), ("prefix_tokens",))


METHODS: dict[str, Method] = {
    "full": Method(_full),
    "lora": Method(_lora, LORA, pairs=True),
    "released": Method(_lora, LORA, pairs=True, trains=False),
    "sequential-lora": Method(_sequential_lora, (*PAIRS, *STAGES), pairs=True, schedule=StagedRank),
    "adaptive-lora": Method(_adaptive_lora, (*PAIRS, "rank_budget", "schedule_every"), pairs=True,
                            schedule=AdaptiveRank),
    "top-layers": Method(lambda model, settings: train_top_layers(model, settings.top_layers), ("top_layers",)),
    "bitfit": Method(lambda model, settings: train_biases(model)),
    "adapter-h": _adapter("houlsby"),
    "adapter-l": _adapter("lin"),
    "adapter-p": _adapter("pfeiffer"),
    "preembed": _prefix(PreEmbed),
    "prelayer": _prefix(PreLayer),
}  # fmt: skip


def method(name: str) -> Method:
    """The method of that name; ValueError with all names if there is none."""
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]


def trains(settings: Settings) -> bool:
    """Whether a run with these settings trains; else it scores what others, or another run, have trained."""
    return method(settings.method).trains and settings.epochs > 0


def apply_method(model: nn.Module, settings: Settings) -> None:
    """Change `model`, also inside a wrapper, in place; afterwards only what the method trains requires a gradient.

    Every method trains the head as well, as the official code does (run_glue.py; issue 16 of
    microsoft/LoRA: "even though they were trained"). Raises ValueError for an unknown method, for a model that is
    not plain, and for settings that make no sense.
    """
    chosen, model = method(settings.method), inside(model)
    require_plain(model)
    require_floating(model)
    _check(settings, chosen)
    chosen.apply(model, settings)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(settings.train_head)


def require_floating(model: nn.Module) -> None:
    """Raise ValueError for a quantised model: parameters that cannot be trained, or layers that have none."""
    odd = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    odd += [name for name, module in model.named_modules() if callable(getattr(module, "weight", None))]
    if odd:
        raise ValueError(f"expected parameters of floating-point numbers, found {odd[0]} quantised: load it plain")


def _check(settings: Settings, chosen: Method) -> None:
    """Raise ValueError for another method's setting, and where ranks change by rows that are not held out."""
    if chosen.schedule and not settings.hold_out:
        raise ValueError(f"{settings.method} changes its ranks by rows that are held out: leave hold_out=False out")
    foreign = {name for other in METHODS.values() for name in other.settings} - {*chosen.settings}
    for field in fields(settings):
        if field.name in foreign and (value := getattr(settings, field.name)) != field.default:
            raise ValueError(f"{field.name}={value!r}: method {settings.method!r} has no such setting; leave it out")


def schedule_of(
    settings: Settings, loss_on: Callable[[nn.Module, list], float], rows: list[dict[str, Any]]
) -> RankSchedule | None:
    """The schedule by which ranks change; None for a method whose rank is constant.

    `rows` are of the split on which settings may be chosen; `loss_on(model, rows)` is their mean loss in nats.
    """
    schedule = method(settings.method).schedule
    if schedule is None:
        return None
    number = min(schedule.validation_rows, len(rows))
    sample = [rows[i * len(rows) // number] for i in range(number)]  # evenly spaced: neighbours may be alike
    return schedule(settings, lambda model: loss_on(model, sample))


def count_trained(model: nn.Module) -> tuple[int, int, int]:
    """Numbers of parameters: trained outside the head (the paper's count), trained in the head, and all."""
    trained, total = count_parameters(model)
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    return trained - head, head, total


def finish(model: nn.Module) -> None:
    """Fold LoRA into the weights, if there is any: the plain architecture and speed for decoding (section 4.1)."""
    if lora_layers(model):
        merge_lora(model)
        remove_lora(model)
