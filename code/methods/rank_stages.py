"""Rank over time: Sequential LoRA, where the rank grows in stages while the model is trained.

Stage 1 trains pairs of a small rank; each later stage adds pairs to every adapted projection, until the total is the
last of `rank_stages`, the cap. Earlier pairs go on at `old_stages` times the learning rate: 0 freezes them (no
gradient), 1 changes nothing; either way their optimizer moments are kept. A new stage begins

    "fixed"      after equal shares of the steps;
    "plateau"    when the validation loss, measured every `schedule_every` steps, no longer falls (`decide`).
                 Training ends at the plateau of the last stage, or of one that brought nothing. The learning rate
                 has then not decayed to zero.

All stages have the scale alpha / cap: together they are plain LoRA with the cap as its rank and the same alpha. The six
variants are those of a course project (edwinlin13/cs4782-lora-replication). The scale of its stages is not known here;
its plain LoRA had alpha = r.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from transformers import TrainerControl, TrainerState

from experiments.settings import Settings
from methods.rank_changes import ended
from methods.stacked_lora import adapted_projections


def checked_stages(settings: Settings) -> tuple[int, ...]:
    """The total rank of each stage; ValueError where the settings of Sequential LoRA make no sense."""
    stages = settings.rank_stages
    if not stages:
        raise ValueError("rank_stages must be the total ranks of one or more stages, such as (2, 4, 6, 8); found none")
    if settings.stage_trigger not in ("fixed", "plateau"):
        raise ValueError(f"stage_trigger must be 'fixed' or 'plateau', found {settings.stage_trigger!r}")
    if settings.stage_trigger == "plateau" and settings.schedule_every is None:
        raise ValueError("a plateau needs schedule_every, the steps between two validations, above 0; found None")
    return stages


def begin_stage(model: nn.Module, rank: int) -> None:
    """Add a pair of `rank` to every adapted projection; the model computes what it did before, to the last bit."""
    for layer, target in adapted_projections(model).values():
        layer.set_pairs(target, [*layer.pairs(target), layer.fresh_pair(rank)])


def decide(losses: list[list[float]], settings: Settings) -> str:
    """The decision after a validation: "stay" in the stage, begin the "next" one, or "stop".

    `losses` are the validation losses of every stage so far, the newest last. A stage is at a plateau when none of
    its last `patience` validations beats the best before them, in the whole run, by more than `min_improvement`.
    Its first `grace` validations are never among these `patience`.
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


class StagedRank:
    """The schedule of Sequential LoRA: when the next stage begins, and the learning rate of earlier ones."""

    validation_rows = 512  # of the validation split, whose loss shows a plateau

    def __init__(self, settings: Settings, validation: Callable[[nn.Module], float]):
        self.settings, self.validation = settings, validation

    def rate_factors(self, model: nn.Module) -> dict[str, float]:
        """The factors of the learning rate for the parameters of earlier stages, by name."""
        stage = {n: int(n.rpartition(".")[2]) for n, _ in model.named_parameters() if ".lora_" in n}
        newest = max(stage.values())
        return {name: self.settings.old_stages for name, i in stage.items() if i < newest}

    def after_step(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> bool:
        """Begin the next stage, or end training, if it is time; return whether the model's pairs have changed."""
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
