"""What training and decoding took on a GPU: `results/gpu/<device>.json`, which the estimates are corrected by.

    {"device": "NVIDIA A100-SXM4-40GB",
     "steps": [{"model": "gpt2-medium", "method": "lora", "batch_size": 8, "tokens": 58,
                "gradient_checkpointing": false, "precision": "tf32", "seconds": 0.05, "gigabytes": 3.1}],
     "decoding": [{"model": "gpt2-medium", "precision": "tf32", "inputs": 64, "beams": 10, "tokens": 64,
                   "seconds": 5.2}]}

`gpu_check.py` writes it. A step's `tokens` are a row's with its padding, `seconds` its median, `gigabytes` its peak
memory in GiB; its method may be PEFT's, which no run has. Decoding is of all `inputs`, each until it has so many
`tokens`. A file has more facts for its reader, and its digest (`files.write_json`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import log
from pathlib import Path
from typing import TypeVar

import files
from files import read_json

PEFT = "PEFT"  # the method of a step that was measured with PEFT's pairs in place of ours
A100 = re.compile(r"(^|-)A100(-(?!.*MIG)|$)")  # in a file's name; a part of one (MIG) is slower
Measured = TypeVar("Measured", "MeasuredStep", "MeasuredDecoding")


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


@dataclass(frozen=True)
class MeasuredDecoding:
    """The decoding of a number of inputs with a language model."""

    model: str
    precision: str
    inputs: int
    beams: int
    tokens: int  # of each answer
    seconds: float  # of all


def path_of(device: str) -> Path:
    """Where the measurements of a GPU of that name are, or would be."""
    return files.RESULTS / "gpu" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', device)}.json"


def measured_steps(device: str | None) -> list[MeasuredStep]:
    """The steps measured on a GPU of that name, or on any A100 for None; empty if there are none.

    Raises ValueError for a file that is damaged or of another form.
    """
    return [step for path in _paths(device) for step in _read(path, "steps", MeasuredStep)]


def measured_decodings(device: str | None) -> list[MeasuredDecoding]:
    """What was decoded there; as `measured_steps`."""
    return [decoding for path in _paths(device) for decoding in _read(path, "decoding", MeasuredDecoding, absent=[])]


def nearest(
    steps: list[MeasuredStep], model: str, method: str, checkpointing: bool, precision: str, batch: tuple[int, float]
) -> MeasuredStep | None:
    """The step of that kind whose batch (rows, tokens a row) is nearest in size; None if that kind was not measured."""
    kind = (model, method, checkpointing, precision)
    alike = [s for s in steps if (s.model, s.method, s.gradient_checkpointing, s.precision) == kind]
    return min(alike, key=lambda step: abs(log(step.batch_size * step.tokens) - log(batch[0] * batch[1])), default=None)


def _paths(device: str | None) -> list[Path]:
    if device is None:
        return [path for path in sorted((files.RESULTS / "gpu").glob("*.json")) if A100.search(path.stem)]
    return [path] if (path := path_of(device)).exists() else []


def _read(path: Path, key: str, kind: type[Measured], absent: list | None = None) -> list[Measured]:
    lines, types = read_json(path).get(key, absent), {field.name: field.type for field in fields(kind)}
    for line in lines if isinstance(lines, list) else [lines]:
        whole = isinstance(line, dict) and line.keys() == types.keys()
        if not whole or not all(_fits(line[name], type_) for name, type_ in types.items()):
            numbers = ", ".join(name for name, type_ in types.items() if type_ in ("int", "float"))
            raise ValueError(
                f"{path}: expected `{key}`, a list of objects with {', '.join(sorted(types))}, where {numbers} are "
                f"above 0; found {str(line)[:80]}; delete the file, or measure anew (`make gpu-check`)"
            )
    return [kind(**line) for line in lines]


def _fits(value: object, type_: str) -> bool:
    """Whether a value is of a field's type, a number above 0."""
    if type_ in ("int", "float"):
        return type(value) in (int, float) and value > 0
    return type(value).__name__ == type_
