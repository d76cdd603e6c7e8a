"""What a run will cost here, before it is started: minutes and gigabytes, and where they come from.

Time is operations divided by speed. A parameter and token take 2 operations forward; backward 4 for full fine-tuning,
2 for a frozen base; and 2 more where the forward pass is recomputed. Speed is a matrix product's rate in the run's
precision, times the share of it that a training step reaches (EFFICIENCY, an estimate). The rate is measured on this
machine; at `paper` scale without a GPU it is an A100's peak.

On a GPU a step takes at least the time in which a processor's thread starts its operations: LAYER_SECONDS, whatever the
batch. Deep models with small batches take that long: a faster GPU does not help them, a faster processor does. An
encoder scores the held-out rows and the reported splits after every epoch; of few training rows that is most of it.

Where the GPU's steps are measured (`gpu_measurements.py`), the time and memory of that model and method are corrected
by them. Once a run of the same kind is recorded, its own time and memory are used instead.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace

from experiments.settings import Settings
from tasks.catalogue import TASKS

A100_FLOPS = {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}  # peaks; float32 is without tensor cores
A100_BYTES = 40 * 10**9
EFFICIENCY = {
    "float32": 0.35,
    "tf32": 0.2,
    "bfloat16": 0.15,
}  # share that a training step reaches; tensor cores wait for the rest
# A layer's share of the time in which one thread starts the operations of a training step, by `config.model_type`. From
# bare steps on one CPU thread, as an audit of this project reports them: RoBERTa-base 24 ms, -large 49, GPT-2 medium
# 33, large 53, DeBERTa-XXL 363, and 527 where the forward pass is recomputed. Llama and BERT by the ratio of their
# tiny models' steps to GPT-2's and RoBERTa's.
LAYER_SECONDS = {"gpt2": 1.4e-3, "llama": 2.0e-3, "bert": 2.0e-3, "roberta": 2.04e-3, "deberta-v2": 7.6e-3}
RECOMPUTED = 527 / 363
PASSES_OF_FLOOR = 3  # a training step starts about as many operations as so many forward passes
DECODED_TOKENS = 30  # typical E2E output
# What runs share that take alike long, and what they share too if they decode.
SAME_TIME = ("model", "method", "task", "batch_size", "pad_to_maximum", "precision", "int8_base")
SAME_DECODING = ("beams", "evaluate", "max_new_tokens")


@dataclass(frozen=True)
class Estimate:
    """What one run takes, and what that rests on (`basis`: arithmetic, a measured step, or an earlier run)."""

    minutes: float
    scoring_minutes: float  # of these, all but training; 0 where an earlier run does not tell them apart
    gigabytes: float
    steps: int
    trainable: int
    total: int
    basis: str

    def described(self, settings: Settings) -> str:
        """The settings and what a run with them costs, a line each."""
        warm_up = ""
        if settings.warmup_steps > self.steps > 0 and settings.learning_rate_schedule != "constant":
            highest = settings.learning_rate * self.steps / settings.warmup_steps
            warm_up = f", all of the warm-up: the learning rate ends at {highest:.2g}"
        if (settings.schedule_every or 0) > self.steps > 0:
            warm_up += f", fewer than the {settings.schedule_every} after which ranks change first: they never do"
        lines = asdict(settings) | {
            "parameters": f"{self.trainable:,} trainable of {self.total:,}"
            + (", the new head included" if TASKS[settings.task].outputs else ""),
            "optimizer steps": f"{self.steps:,}{warm_up}",
            "about": f"{self.minutes:.1f} min, {self.gigabytes:.1f} GiB a run ({self.basis})",
        }
        return "\n".join(f"  {key:18} {value}" for key, value in lines.items())


def _machine_flops(precision: str) -> tuple[float, str]:
    import torch

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        a = torch.randn(4096, 4096, device="cuda", dtype=dtype)
        a @ a
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        return 2 * 4096**3 / (time.perf_counter() - started), torch.cuda.get_device_name()
    a, seconds = torch.randn(512, 512, dtype=dtype), []
    for _ in range(6):  # the best of several: other work on the machine only ever slows one down
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return 2 * 512**3 / min(seconds), "this CPU"


def estimate(settings: Settings, scale: str, earlier: list[dict] | None = None) -> Estimate:
    """The cost of one run on this machine; the time of a similar record in `earlier` is preferred.

    At `paper` scale the machine is its GPU, or an A100 if it has none; with `earlier` None always an A100.
    Raises ValueError for lengths, beams and an int8 base that the model cannot take, and for a damaged file of measured
    steps.
    """
    import torch

    from costs.gpu_measurements import measured_decodings, measured_steps, nearest
    from families import positions
    from methods.catalogue import apply_method, count_trained, trains
    from models import architecture
    from tasks.e2e.beam_search import room_for_prompt
    from training.batches import SCORED_ROWS
    from training.int8 import frozen_matrices
    from training.memory import GIBIBYTE, SCORED_SHARE, USABLE, card_bytes, training_bytes
    from training.precision import uses_bfloat16

    model = architecture(settings.model, TASKS[settings.task].outputs)
    most = positions(model)
    if (settings.max_length or 0) > most:
        raise ValueError(
            f"max_length must be at most {most}, the positions of {settings.model}; found {settings.max_length}"
        )
    apply_method(model, replace(settings, rank_stages=settings.rank_stages[-1:]))  # at most what the last stage costs
    if settings.int8_base and trains(settings):
        frozen_matrices(model)
    without_head, head, total = count_trained(model)
    trainable = without_head + head
    task = TASKS[settings.task]
    trained, whole = trains(settings), without_head + head == total
    most_rows = task.trained_rows if settings.hold_out else task.train_rows
    rows = min(settings.train_rows or most_rows, most_rows) * trained
    epochs = settings.epochs if trained else 1  # what is not trained is scored once, as after an epoch
    steps = -(-rows // settings.batch_size) * epochs
    decodes = settings.evaluate != "selection"

    config, generates = model.config, task.outputs is None
    if decodes and generates:
        room_for_prompt(model, settings)
    embeddings = config.vocab_size * config.hidden_size
    body = total - embeddings
    scored = SCORED_SHARE * generates  # an encoder's embeddings are looked up, not multiplied
    mean, longest = task.row_tokens(settings, most)
    bfloat16 = settings.precision in ("bfloat16", "auto") if scale == "paper" else uses_bfloat16(settings)
    precision = "bfloat16" if bfloat16 else "tf32" if settings.precision == "tf32" else "float32"
    reference = scale == "paper" and (earlier is None or not torch.cuda.is_available())
    memory = A100_BYTES if reference else card_bytes()
    plain = training_bytes(model, settings.batch_size, longest, recomputed=False, bfloat16=bfloat16)
    recomputed = settings.gradient_checkpointing
    if recomputed is None:
        recomputed = memory is not None and plain > USABLE * memory
    passes = (6 if whole else 4) + 2 * recomputed
    answered = settings.beams * DECODED_TOKENS if generates else task.mean_tokens
    held_out = (task.train_rows - task.trained_rows) * (settings.hold_out and not generates and trained)
    scored_rows = decodes * task.test_inputs * (1 + len(task.further_splits)) + held_out  # after every epoch
    of_task = (record.get("rows") for record in earlier or () if record["settings"]["task"] == settings.task)
    if not generates and (known := next(of_task, None)):  # where the data are a subset, as others found them
        scored_rows = sum(number for split, number in known.items() if split != "train")

    def gibibytes(batch_size: int, tokens: int) -> float:
        if not trained:
            return 4 * total / GIBIBYTE + 0.5
        return training_bytes(model, batch_size, tokens, recomputed, bfloat16) / GIBIBYTE

    own = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}

    def alike(record: dict) -> int:
        """How many settings are the same."""
        return sum(record["settings"].get(key) == value for key, value in own.items())

    for record in sorted(earlier or (), key=alike, reverse=True):
        same_time = SAME_TIME + (SAME_DECODING if generates and decodes else ())
        if any(record["settings"].get(key, own[key]) != own[key] for key in same_time):
            continue
        if (record.get("device", "cpu") == "cpu") == torch.cuda.is_available():
            continue
        if generates:
            timed = "evaluation_seconds" in record or not decodes
        else:  # the scoring after every epoch is in the training time
            timed = all(record["settings"].get(key) == getattr(settings, key) for key in ("train_rows", "evaluate"))
        if record.get("steps") and timed:
            seconds = steps * record["training_seconds"] / record["steps"]
            seconds += record.get("evaluation_seconds", 0.0) if decodes else 0.0
            return Estimate(
                seconds / 60, 0.0, record["peak_memory_gib"], steps, trainable, total, f"as {record['name']} took"
            )
    speed, machine = (A100_FLOPS[precision], "one A100") if reference else _machine_flops(precision)
    speed *= EFFICIENCY[precision]
    on_gpu = reference or torch.cuda.is_available()
    floor = on_gpu * config.num_hidden_layers * LAYER_SECONDS[config.model_type]
    floor *= RECOMPUTED if recomputed else 1

    def step_seconds(batch_size: float, tokens: float) -> float:
        return max(passes * batch_size * tokens * (body + scored * embeddings) / speed, floor)

    seconds = steps * step_seconds(rows * epochs / max(steps, 1), mean)
    gigabytes, basis = gibibytes(settings.batch_size, longest), f"arithmetic for {machine}"
    place = None if reference else machine
    steps_there = measured_steps(place) if on_gpu and trained else []
    kind = (settings.model, settings.method, recomputed, settings.precision)
    if usual := nearest(steps_there, *kind, batch=(settings.batch_size, mean)):
        seconds *= usual.seconds / step_seconds(usual.batch_size, usual.tokens)
        largest = nearest(steps_there, *kind, batch=(settings.batch_size, longest))
        gigabytes *= largest.gigabytes / gibibytes(largest.batch_size, largest.tokens)
        basis += ", corrected by its measured steps"
    scoring_seconds = 2 * total * scored_rows * answered / speed
    if not generates:
        forward = floor / PASSES_OF_FLOOR * math.ceil(scored_rows / SCORED_ROWS)
        scoring_seconds = epochs * max(scoring_seconds, forward)
    for decoded in measured_decodings(place) if on_gpu and decodes and generates else ():
        if (decoded.model, decoded.beams, decoded.precision) == (settings.model, settings.beams, settings.precision):
            tokens = task.test_inputs * DECODED_TOKENS
            scoring_seconds = decoded.seconds * tokens / (decoded.inputs * decoded.tokens)
    minutes = (seconds + scoring_seconds) / 60
    return Estimate(minutes, scoring_seconds / 60, gigabytes, steps, trainable, total, basis)
