"""Pairs that change during training: what Sequential LoRA (rank_stages.py) and adaptive rank (rank_budget.py) share.

A schedule keeps no state of its own. What it decides follows from the model's pairs and from the trainer's log, which
checkpoints hold anyway. So an interrupted run goes on as if nothing had happened. The record's `history`
has all of it: each projection's rank over time, and the loss of every validation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from families import head_parameters
from lora import count_parameters
from methods.stacked_lora import fold, ranks


class RankSchedule(Protocol):
    """When a model's pairs change, and at which learning rate each goes on."""

    validation_rows: int  # at most so many of the validation split, which `schedule_of` draws

    def rate_factors(self, model: nn.Module) -> dict[str, float]:
        """The factors of the learning rate by parameter name; 1 for a name that is left out."""

    def after_step(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> bool:
        """Change the pairs, or end training, if it is time; return whether the pairs have changed."""


def ended(log: list[dict[str, Any]]) -> bool:
    """Whether a schedule has stopped training for good."""
    return any(entry.get("decision") == "stop" for entry in log)


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


def conclude(model: nn.Module) -> dict[str, Any]:
    """Fold the trained pairs into plain LoRA; return the final ranks and parameter counts for the record.

    The counts are of all pairs at the end, a frozen stage's too, without the zeros that folding adds.
    """
    pairs = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    parameters = {"trainable": pairs, "head": head, "total": count_parameters(model)[1]}
    reached = {"ranks": ranks(model), "parameters": parameters}
    fold(model)
    return reached
