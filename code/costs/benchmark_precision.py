"""What each way to hold and compute a frozen base costs in a LoRA step of SmolLM2-135M: time, memory and the loss.

All are measured against `bfloat16`, which runs at `cpu` have. Weights are random; rows have one E2E-like length, the
best case of a compiler; there is no dropout, so that the losses differ by rounding alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from costs.benchmark_e2e import LABEL_SMOOTHING
from costs.benchmark_training import random_model, typical_batch
from costs.timing import Step, memory_above_weights, ratio, timings
from lora import LoRAConfig, add_lora
from tasks.e2e.loss import completion_loss
from training.int8 import hold_in_int8
from training.precision import keep_frozen_in_bfloat16
from training.quick_layers import use_quick_layers

NAME, USUAL = "smollm2-135m", "bfloat16"
WAYS = (
    USUAL,  # frozen matrices in bfloat16, computed in bfloat16
    "float32",  # all in float32
    "autocast",  # frozen matrices in float32, cast to bfloat16 at each use
    "int8",  # frozen matrices in int8, computed in bfloat16
    "compiled",  # as bfloat16, by torch.compile
    "recomputed",  # as bfloat16, with gradient checkpointing
)
STEPS = 20  # the last has the losses that are compared


def adapted(way: str) -> nn.Module:
    """The model with LoRA r=4, held as one of WAYS says."""
    model = random_model(NAME)
    add_lora(model, LoRAConfig(rank=4, alpha=32))
    if way == "int8":
        hold_in_int8(model)
    if way not in ("float32", "autocast"):
        keep_frozen_in_bfloat16(model)
    model.set_attn_implementation("eager")
    use_quick_layers(model)
    if way == "compiled":
        model.base_model.forward = torch.compile(model.base_model.forward)
    if way == "recomputed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def stepping(way: str, model: nn.Module | None = None) -> Step:
    """One step of training; it returns the loss before it."""
    model, batch = model or adapted(way), typical_batch(NAME)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=way != "float32"):
            loss = completion_loss(model, batch, LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def megabytes(model: nn.Module) -> float:
    """What the frozen parameters take: int8 has a byte for each number, and a scale for each row."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    plain = [getattr(p, part) for p in frozen for part in ("qdata", "scale") if hasattr(p, part)]
    plain += [p for p in frozen if not hasattr(p, "qdata")]
    return sum(tensor.numel() * tensor.element_size() for tensor in plain) / 1e6


def precision(repetitions: int, data_dir: Path | None = None) -> dict[str, float | list[float]]:
    measured: dict[str, float | list[float]] = {}
    models = {way: adapted(way) for way in WAYS}
    steps = {way: stepping(way, model) for way, model in models.items()}
    losses = {way: [step() for _ in range(STEPS)][-1] for way, step in steps.items()}
    seconds = timings(steps, repetitions)
    for way in WAYS:
        if way != USUAL:
            measured[f"{way} / {USUAL} (time of a step)"] = ratio(seconds[way], seconds[USUAL])
        measured[f"loss of step {STEPS}, {way}"] = losses[way]
        measured[f"megabytes of the frozen base, {way}"] = megabytes(models[way])
    del models, steps
    for way in WAYS:
        if way != "compiled":  # whose compiler's memory is not the model's
            above = memory_above_weights(stepping, way)
            measured[f"megabytes above the weights, {way}"] = above / 1e6
    return measured
