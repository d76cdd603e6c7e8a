"""Rank over time: Sequential LoRA, where the rank grows in stages while the model is trained.

Stage 1 trains pairs of a small rank; each later stage adds pairs to every adapted projection, until the total is the
last of `rank_stages`, the cap. What was trained before goes on at `old_stages` of the learning rate: 0 freezes it
(no gradient), 1 leaves it as it is; optimizer moments are kept whichever. A new stage begins

    "fixed"      after equal shares of the steps;
    "plateau"    when the validation loss, measured every `schedule_every` steps, no longer falls (`decide`), and
                 training ends when the last stage, or one that brought nothing, has come to its own plateau. The
                 learning rate then has not decayed to zero as it would have at the last step.

All stages have the scale alpha / cap, so that all of them together are plain LoRA with the cap as its rank (and the
same alpha). Which scale the course project had whose six variants these are (edwinlin13/cs4782-lora-replication) is
not known here; its plain LoRA had alpha = r.

A schedule has no state of its own: what it decides follows from the model's pairs and from the trainer's log, which
checkpoints hold anyway. So an interrupted run goes on as if nothing had happened, and the record has all of it:
`history` says when which projection had which rank, and what every validation found. (`rank_allocation.py` moves a
constant budget between projections in the same way.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from lora import count_parameters
from models import head_parameters
from rank_allocation import AdaptiveRank
from settings import Settings
from stacked_lora import adapted_projections, fold, ranks

PLATEAU_ROWS = 512  # of the validation split, on which a plateau is looked for
IMPORTANCE_ROWS = 32  # and on which a pair's importance is measured: B_val of ALoRA, section 4.3


def checked_stages(settings: Settings) -> tuple[int, ...]:
    """The total rank of each stage; ValueError where the settings of Sequential LoRA make no sense."""
    stages = settings.rank_stages
    if not stages or stages[0] < 1 or any(later <= rank for rank, later in pairwise(stages)):
        raise ValueError(
            f"rank_stages are total ranks that increase from the first stage's to the cap, as (2, 4, 6, 8); "
            f"found {stages}"
        )
    if not 0 <= settings.old_stages <= 1:
        raise ValueError(
            f"old_stages is a share of the learning rate, from 0 (frozen) to 1; found {settings.old_stages}"
        )
    if settings.stage_trigger not in ("fixed", "plateau"):
        raise ValueError(f"stage_trigger is 'fixed' or 'plateau', found {settings.stage_trigger!r}")
    if settings.stage_trigger == "plateau":
        at_least = {"schedule_every": 1, "patience": 1, "grace": 0, "min_improvement": 0}
        for name, least in at_least.items():
            if (found := getattr(settings, name) or 0) < least:
                raise ValueError(
                    "a plateau takes schedule_every, the steps between two validations, patience and grace, in "
                    f"validations, and min_improvement, in nats; {name} is at least {least}, found {found}"
                )
    return stages


def begin_stage(model: nn.Module, rank: int) -> None:
    """Add a pair of `rank` to every adapted projection; the model computes what it did before, to the last bit."""
    for layer, target in adapted_projections(model).values():
        layer.set_pairs(target, [*layer.pairs(target), layer.fresh_pair(rank)])


def decide(losses: list[list[float]], settings: Settings) -> str:
    """What follows a validation: "stay" in the stage, begin the "next" one, or "stop".

    `losses` are the validations of every stage so far, the newest last. A stage has come to a plateau when its last
    `patience` validations, not counting its first `grace`, are none of them lower by more than `min_improvement`
    than the best before them in the whole run.
    """
    *earlier, current = losses
    before = [loss for stage in earlier for loss in stage]
    best = min([*before, *current[: -settings.patience]], default=math.inf)
    if len(current) < settings.grace + settings.patience:
        return "stay"
    if min(current[-settings.patience :]) < best - settings.min_improvement:
        return "stay"
    at_cap = len(losses) == len(settings.rank_stages)
    brought_nothing = before and min(current) >= min(before) - settings.min_improvement
    return "stop" if at_cap or brought_nothing else "next"


def ended(log: list[dict[str, Any]]) -> bool:
    """Whether a schedule has stopped training for good."""
    return any(entry.get("decision") == "stop" for entry in log)


class StagedRank:
    """When the next stage of Sequential LoRA begins, and at which learning rate the earlier ones go on."""

    def __init__(self, settings: Settings, validation: Callable[[nn.Module], float]):
        self.settings, self.validation = settings, validation

    def rate_factors(self, model: nn.Module) -> dict[str, float]:
        """What the learning rate of an earlier stage's parameter is multiplied by, by name."""
        stage = {n: int(n.rpartition(".")[2]) for n, _ in model.named_parameters() if ".lora_" in n}
        newest = max(stage.values())
        return {name: self.settings.old_stages for name, i in stage.items() if i < newest}

    def after_step(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> bool:
        """Begin the next stage, or end training, if it is time; whether the model's pairs have changed."""
        layer, target = next(iter(adapted_projections(model).values()))
        stages, begun = self.settings.rank_stages, len(layer.pairs(target))
        if state.global_step == state.max_steps:
            due = False  # what begins now would not be trained
        elif self.settings.stage_trigger == "fixed":
            due = begun < len(stages) and state.global_step * len(stages) >= begun * state.max_steps
        elif state.global_step % self.settings.schedule_every:
            due = False
        else:
            due = self._validate(model, state) == "next"
            control.should_training_stop |= ended(state.log_history)
        if due:
            begin_stage(model, stages[begun] - stages[begun - 1])
        return due

    def _validate(self, model: nn.Module, state: TrainerState) -> str:
        entry = {"step": state.global_step, "epoch": state.epoch, "validation_loss": self.validation(model)}
        losses: list[list[float]] = []
        for logged in (*state.log_history, entry):
            if "ranks" in logged:
                losses.append([])
            elif "validation_loss" in logged:
                losses[-1].append(logged["validation_loss"])
        state.log_history.append(entry | {"decision": decide(losses, self.settings)})
        return state.log_history[-1]["decision"]


RankSchedule = StagedRank | AdaptiveRank


class RankChanges(TrainerCallback):
    """Asks the schedule after every step whether pairs come or go, lets the optimizer follow, and logs all ranks."""

    def __init__(self, schedule: RankSchedule, regroup: Callable[[], None]):
        self.schedule, self.regroup = schedule, regroup

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: nn.Module, **_: Any) -> None:
        if not state.log_history:
            state.log_history.append({"step": 0, "epoch": 0.0, "ranks": ranks(model)})

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any) -> None:
        if self.schedule.after_step(model, state, control):
            self.regroup()
            state.log_history.append({"step": state.global_step, "epoch": state.epoch, "ranks": ranks(model)})


def schedule_of(
    settings: Settings, loss_on: Callable[[nn.Module, list], float], rows: list[dict[str, Any]]
) -> RankSchedule | None:
    """The schedule that `training.train` follows with these settings; None for a method whose rank is constant.

    `rows` are of the split on which settings may be chosen; `loss_on(model, rows)` is their mean loss in nats.
    """

    def validation(number: int) -> Callable[[nn.Module], float]:
        count = min(number, len(rows))
        some = [rows[i * len(rows) // count] for i in range(count)]  # neighbours may be much alike
        return lambda model: loss_on(model, some)

    if settings.method == "sequential-lora":
        return StagedRank(settings, validation(PLATEAU_ROWS))
    if settings.method == "adaptive-lora":
        return AdaptiveRank(settings, validation(IMPORTANCE_ROWS))
    return None


def conclude(model: nn.Module) -> dict[str, Any]:
    """Fold the trained pairs into plain LoRA; what the record says of them: final ranks, and parameters.

    Counted are the pairs that there are in the end, those of a frozen stage too, and not what folding pads with zeros.
    """
    pairs = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    parameters = {"trainable": pairs, "head": head, "total": count_parameters(model)[1]}
    found = {"ranks": ranks(model), "parameters": parameters}
    fold(model)
    return found
