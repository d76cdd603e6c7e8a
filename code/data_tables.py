"""The tables of `data/` that were typed from the paper and its sources, as they stand there."""

from __future__ import annotations

import csv
from functools import cache

import paths


@cache
def read_table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of `data/<name>`, a CSV, by column."""
    with open(paths.DATA / name, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
