"""What a run will cost here, before it is started: minutes and gigabytes, and where they come from.

Arithmetic on floating-point operations (2 a parameter and token forward, twice that again
backward for full fine-tuning, once for a frozen base), divided by what this machine's matrix
product reaches. Good to about a factor of two; once a run of the same kind is recorded, its own
time is used instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from experiments import Settings
from tasks import TASKS

A100_FLOPS = 19.5e12  # float32, no tensor cores: the official runs are float32
EFFICIENCY = 0.35  # of the matrix-product peak that a whole training step reaches
SCORED_SHARE = 0.5  # of an E2E row's tokens carry a loss, so need logits
DECODED_TOKENS = 30  # typical E2E output


@dataclass(frozen=True)
class Estimate:
    minutes: float
    gigabytes: float
    steps: int
    trainable: int
    total: int
    basis: str


def _machine_flops() -> tuple[float, str]:
    import torch

    if torch.cuda.is_available():
        a = torch.randn(4096, 4096, device="cuda")
        a @ a
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        return 2 * 4096**3 / (time.perf_counter() - started), torch.cuda.get_device_name()
    a = torch.randn(1024, 1024)
    a @ a
    started = time.perf_counter()
    a @ a
    return 2 * 1024**3 / (time.perf_counter() - started), "this CPU"


def estimate(settings: Settings, scale: str, earlier: list[dict] | None = None) -> Estimate:
    """Of one run; `earlier` are records of the scale, whose measured time is preferred."""
    from lora import count_parameters
    from methods import apply_method
    from models import architecture

    model = architecture(settings.model)
    apply_method(model, settings)
    trainable, total = count_parameters(model)
    task = TASKS[settings.task]
    rows = min(settings.train_rows or task.train_rows, task.train_rows)
    trained = settings.method != "released"
    steps = -(-rows // settings.batch_size) * settings.epochs if trained else 0
    decodes = settings.evaluate == "test"

    config = model.config
    embeddings = config.vocab_size * config.n_embd
    body = total - embeddings
    tokens = rows * settings.epochs * task.mean_tokens * trained
    passes = 6 if settings.method == "full" else 4
    flops = passes * tokens * (body + SCORED_SHARE * embeddings)
    flops += decodes * 2 * total * task.test_inputs * settings.beams * DECODED_TOKENS

    activations = settings.batch_size * 2 * task.mean_tokens * config.n_layer * config.n_embd * 34 * 4
    logits = settings.batch_size * task.mean_tokens * config.vocab_size * 4 * 3
    gigabytes = (4 * total + 12 * trainable + activations + logits) / 2**30 + 0.5

    for record in earlier or ():
        alike = all(
            record["settings"][key] == getattr(settings, key) for key in ("model", "method", "task", "batch_size")
        )
        if alike and record.get("steps") and ("evaluation_seconds" in record or not decodes):
            seconds = steps * record["training_seconds"] / record["steps"]
            seconds += record.get("evaluation_seconds", 0.0) if decodes else 0.0
            return Estimate(
                seconds / 60, record["peak_memory_gib"], steps, trainable, total, f"as {record['name']} took"
            )
    speed, where = (A100_FLOPS, "one A100") if scale == "paper" else _machine_flops()
    return Estimate(flops / (speed * EFFICIENCY) / 60, gigabytes, steps, trainable, total, f"arithmetic for {where}")
