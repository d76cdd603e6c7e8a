"""A few training steps of the paper's models on this machine: what they take, by the training loop of their runs.

Weights are random and nothing is downloaded, since time and memory do not depend on them. Model, method, batch,
precision and lengths are those of a declared experiment: of a base and method the row with the most steps. Its steps
are taken on rows of its task's mean length, then on the longest, which decide the peak of memory.

    measured_steps_of(settings, number=20)    # [MeasuredStep(tokens=40, ...), MeasuredStep(tokens=160, ...)]
"""

from __future__ import annotations

import gc
import math
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from costs.gpu_measurements import PEFT, MeasuredStep
from experiments.catalogue import EXPERIMENTS
from experiments.settings import Experiment, Job, Settings
from families import head_parameters, positions
from methods.catalogue import apply_method
from models import architecture
from tasks.catalogue import TASKS
from tasks.e2e.loss import completion_loss
from tasks.glue.data import collate
from training.batches import IGNORED, Batch, pad_right
from training.machine import peak_memory_gib
from training.memory import SCORED_SHARE, recomputes
from training.precision import keep_frozen_in_bfloat16, set_products, uses_bfloat16
from training.quick_layers import use_quick_layers
from training.trainer import train

BASES = (
    "gpt2-medium", "gpt2-large", "roberta-base", "roberta-large", "deberta-v2-xlarge", "deberta-v2-xxlarge",
)  # fmt: skip
TABLES = ("table3", "table2", "curves")  # where their batches stand
METHODS = ("lora", "full")
WARM_UP = 2  # first steps, in which libraries choose their kernels and memory is taken
LONGEST_STEPS = 3  # on the longest rows, which are measured for their memory
LEAST_STEPS = 3  # of which a median is worth to be kept
FIRST_WORD = 5  # ids below are pads, ends and the like
Row = dict[str, Any]


class _Enough(Exception):
    """Ends a training after the step before; nothing is saved."""


@dataclass(frozen=True)
class FewSteps:
    """What the first steps of a training took and gave."""

    seconds: list[float]  # of each step, from the start of its loss to that of the next one
    losses: list[float]
    gigabytes: float  # peak memory, GiB


def rows_with_most_steps() -> list[Experiment]:
    """The experiments that are measured: of each base and method the row of its table with the most steps."""
    return [
        max(
            (
                e for e in EXPERIMENTS.values()
                if (e.settings.model, e.settings.method, e.scale, e.variant) == (base, method, "paper", "paper")
                and e.table in TABLES
            ),
            key=lambda e: e.settings.epochs * TASKS[e.settings.task].trained_rows / e.settings.batch_size,
        )
        for base in BASES
        for method in METHODS
    ]  # fmt: skip


def decided(settings: Settings) -> Settings:
    """The settings with what this machine's memory decides about them.

    Raises ValueError where a step does not fit the GPU's memory, or needs bfloat16 that the GPU only emulates.
    """
    uses_bfloat16(settings)
    model = architecture(settings.model, TASKS[settings.task].outputs)
    apply_method(model, replace(settings, rank_stages=settings.rank_stages[-1:]))
    longest = TASKS[settings.task].row_tokens(settings, positions(model))[1]
    return replace(settings, gradient_checkpointing=recomputes(model, settings, longest))


def random_rows(settings: Settings, tokens: int, number: int, words: int) -> list[Row]:
    """Rows of so many random tokens; of a text the first part is its context, which has no loss."""
    ids = torch.randint(FIRST_WORD, words, (number, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    outputs = TASKS[settings.task].outputs
    if outputs:
        return [{"input_ids": row, "label": i % outputs} for i, row in enumerate(ids)]
    context = round(tokens * (1 - SCORED_SHARE))
    return [{"input_ids": row, "labels": [IGNORED] * context + row[context:]} for row in ids]


def few_steps(
    model: nn.Module, settings: Settings, rows: list[Row], number: int, deadline: float = math.inf
) -> FewSteps:
    """The first `number` steps of the training of `model`, fewer after the `deadline` (of `time.monotonic`).

    The rows are of more batches than that. Raises as `train` does.
    """
    starts: list[float] = []
    losses: list[Tensor] = []
    classifies = TASKS[settings.task].outputs is not None

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if not starts:  # a Ctrl-C here ends at once: a training would first save its state, gigabytes
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _finish_queued_work()
        starts.append(time.monotonic())
        if len(starts) > number or starts[-1] > deadline:
            raise _Enough
        value = model(**batch).loss if classifies else completion_loss(model, batch, settings.label_smoothing)
        losses.append(value.detach())
        return value

    with TemporaryDirectory() as folder:
        job = Job(replace(settings, epochs=1), 0, Path(folder))
        form = partial(collate, pad_token_id=1) if classifies else pad_right
        try:
            train(model, rows, job, loss, validate=lambda m, epoch: {}, collate=form)
        except _Enough:
            peak = peak_memory_gib()
        finally:
            gc.collect()  # the loop's objects refer to each other, and to the optimizer's state
    seconds = [after - before for before, after in pairwise(starts)]
    return FewSteps(seconds, [value.item() for value in losses], peak)


def _finish_queued_work() -> None:
    """Wait until the GPU has done what it was given, so that a clock can be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _model(settings: Settings, by_peft: bool) -> nn.Module:
    """The model as a run has it before training, with random weights; with PEFT's pairs in place of ours."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_products(settings)
    torch.manual_seed(0)
    model = architecture(settings.model, TASKS[settings.task].outputs, device)
    if by_peft:
        from costs.benchmark_training import with_peft  # PEFT may be missing

        with_peft(model, settings.lora_dropout, settings.rank)
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)
    else:
        apply_method(model, settings)
    if uses_bfloat16(settings):
        keep_frozen_in_bfloat16(model)
    if device == "cpu":
        use_quick_layers(model)
    return model


def measured_steps_of(
    settings: Settings, number: int, deadline: float = math.inf, by_peft: bool = False
) -> list[MeasuredStep]:
    """What `number` steps take on rows of the mean length, and a few on the longest; those that the deadline allows.

    `settings` are `decided`. With `by_peft` the pairs are PEFT's, all else is the same. Raises torch.OutOfMemoryError
    where the GPU's memory is not enough.
    """
    model = _model(settings, by_peft)
    mean, longest = TASKS[settings.task].row_tokens(settings, positions(model))
    measured = []
    for tokens, steps in {mean: number, longest: LONGEST_STEPS}.items():
        rows = random_rows(settings, tokens, settings.batch_size * (WARM_UP + steps + 1), model.config.vocab_size)
        taken = few_steps(model, settings, rows, WARM_UP + steps, deadline)
        if len(taken.seconds) < WARM_UP + LEAST_STEPS:
            break
        measured.append(
            MeasuredStep(
                settings.model, PEFT if by_peft else settings.method, settings.batch_size, tokens,
                bool(settings.gradient_checkpointing), settings.precision,
                round(median(taken.seconds[WARM_UP:]), 5), round(taken.gigabytes, 3),
            )
        )  # fmt: skip
    return measured
