"""What training steps took on a GPU: `results/gpu/<device>.json`, which the estimates are corrected by.

    {"device": "NVIDIA A100-SXM4-40GB", "steps": [{"model": "gpt2-medium", "method": "lora", "batch_size": 8,
     "tokens": 64, "gradient_checkpointing": false, "precision": "float32", "seconds": 0.05, "gigabytes": 3.1}]}

`tokens` is the padded length of a row, `seconds` a step's median, `gigabytes` its peak memory. A file also holds its
digest (`files.write_json`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log
from pathlib import Path

import files
from files import read_json

NUMBERS = ("batch_size", "tokens", "seconds", "gigabytes")


@dataclass(frozen=True)
class MeasuredStep:
    """A training step of one model and method at one batch."""

    model: str
    method: str
    batch_size: int
    tokens: int  # of each row, with its padding
    gradient_checkpointing: bool
    precision: str
    seconds: float
    gigabytes: float


def path_of(device: str) -> Path:
    """Where the measurements of a GPU of that name are, or would be."""
    return files.RESULTS / "gpu" / f"{device.replace(' ', '-')}.json"


def measured_steps(device: str) -> list[MeasuredStep]:
    """The steps measured on GPUs whose name contains `device`; ValueError for a file that is damaged or of other form.

    Empty where there is no such file.
    """
    paths = sorted((files.RESULTS / "gpu").glob(path_of(f"*{device}*").name))
    return [step for path in paths for step in _steps(path)]


def nearest(
    steps: list[MeasuredStep], model: str, method: str, checkpointing: bool, precision: str, batch: tuple[int, float]
) -> MeasuredStep | None:
    """The step of that kind whose batch (rows, tokens a row) is nearest in size; None if that kind was not measured."""
    kind = (model, method, checkpointing, precision)
    alike = [s for s in steps if (s.model, s.method, s.gradient_checkpointing, s.precision) == kind]
    return min(alike, key=lambda step: abs(log(step.batch_size * step.tokens) - log(batch[0] * batch[1])), default=None)


def _steps(path: Path) -> list[MeasuredStep]:
    lines, names = read_json(path).get("steps"), {field.name for field in fields(MeasuredStep)}
    for line in lines if isinstance(lines, list) else [lines]:
        if not isinstance(line, dict) or line.keys() != names or not all(_positive(line[name]) for name in NUMBERS):
            raise ValueError(
                f"{path}: expected `steps`, a list of objects with {', '.join(sorted(names))}, where "
                f"{', '.join(NUMBERS)} are above 0; found {str(line)[:80]}; delete the file, or measure anew"
            )
    return [MeasuredStep(**line) for line in lines]


def _positive(value: object) -> bool:
    return type(value) in (int, float) and value > 0
