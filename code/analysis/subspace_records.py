"""What the subspaces of adapters share, as it was measured (section 7), and its lines in `results/summary.csv`.

    results/subspaces/<scale>/<base>.json    one base: the runs, every similarity, every row of Table 7

`subspace_measurement.py` makes such a file from the adapters that runs keep. It is read without torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

import files
from analysis.seed_statistics import bootstrap_interval, spread
from analysis.summary import COLUMNS, measured_on
from experiments.catalogue import find
from experiments.settings import Experiment
from experiments.subspaces import RANKS, ROWS
from files import read_json

SMALL, LARGE = RANKS[-2:]  # the two whose subspaces figure 3 compares
SHARED = 8  # directions of two seeds that a claim compares
ENTRIES = {  # of a measurement, and their types
    "base": str, "scale": str, "started": str, "seeds": list, "runs": list, "similarities": list,
    "amplifications": list, "digest": str,
}  # fmt: skip
NORMS = ("norm_of_weights", "norm_of_update", "along_update", "along_weights", "along_random", "amplification")

Measured = dict[str, Any]


def row_of(base: str, rank: int) -> Experiment:
    """The experiment that trains a base's adapter of a rank; ValueError for a base that is not compared."""
    if base not in ROWS:
        raise ValueError(f"expected a base whose subspaces are compared, {', '.join(ROWS)}; found {base!r}")
    return find(f"{ROWS[base]}/lora-r{rank}")


def path_of(base: str) -> Path:
    """The path of the base's measurement, existing or not."""
    return files.RESULTS / "subspaces" / row_of(base, LARGE).scale / f"{base}.json"


def command(base: str) -> str:
    """The command that measures the base."""
    return f"python code/make.py subspaces {base}"


def read(base: str) -> Measured | None:
    """The measurement of a base, None if there is none; ValueError where the file is damaged or of another kind."""
    path = path_of(base)
    if not path.exists():
        return None
    measured = read_json(path)
    lacking = [entry for entry, kind in ENTRIES.items() if not isinstance(measured.get(entry), kind)]
    if lacking or measured["base"] != base:
        found = f"no {', '.join(lacking)}" if lacking else f"one of {measured['base']}"
        raise ValueError(f"{path}: expected a measurement of {base}, found {found}; delete it: `{command(base)}`")
    return measured


def read_all(scale: str) -> list[Measured]:
    """Every measurement at a scale."""
    return list(filter(None, (read(base) for base in ROWS if row_of(base, LARGE).scale == scale)))


def dimensions(rank: int) -> list[int]:
    """The numbers of directions at which similarities are kept: 1, 2, 4, ... up to the rank."""
    return [2**power for power in range(rank.bit_length())]


def grids(measured: Measured, kind: str) -> Iterator[tuple[str, int, list[int], list[list[float]]]]:
    """(matrix, rank, two seeds, grid) of one kind of comparison; the grid has `dimensions` of either matrix.

    `ranks`: A of the rank with A of the largest rank, at one seed; `seeds`: the largest rank at two seeds; `random`:
    Gaussian matrices of that shape, drawn with two seeds.
    """
    for entry in measured["similarities"]:
        if entry["kind"] == kind:
            yield entry["matrix"], entry["rank"], entry["seeds"], entry["grid"]


def quantities(measured: Measured) -> dict[tuple[str, int, str], dict[int, float]]:
    """(matrix, rank, metric) -> seed -> value. What two seeds share counts for both; a seed has the mean."""
    values: dict[tuple[str, int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    place = dimensions(LARGE).index(SHARED)
    for kind, metric, corner in (
        ("ranks", "first_direction", 0), ("seeds", "shared_by_seeds", place), ("random", "shared_by_random", place),
    ):  # fmt: skip
        for matrix, rank, seeds, grid in grids(measured, kind):
            for seed in set(seeds):
                values[matrix, rank, metric][seed].append(grid[corner][corner])
    for row in measured["amplifications"]:
        for metric in NORMS:
            values[row["matrix"], row["rank"], metric][row["seed"]].append(row[metric])
    return {key: {seed: fmean(by_seed[seed]) for seed in sorted(by_seed)} for key, by_seed in values.items()}


def summary_lines(scale: str) -> pd.DataFrame:
    """The lines of `summary.csv` on subspaces, one for each matrix, rank and metric, as `summary.cells` gives them."""
    lines = []
    for measured in read_all(scale):
        base = measured["base"]
        settings = row_of(base, LARGE).settings
        for (matrix, rank, metric), each_seed in quantities(measured).items():
            values = list(each_seed.values())
            low, high = bootstrap_interval(values) or (None, None)
            lines.append({
                "table": "subspaces", "experiment": f"subspaces/{base}/{matrix.replace(' ', '-')}-r{rank}",
                "variant": "paper", "scale": scale, "task": settings.task, "train_rows": settings.train_rows,
                "model": base, "method": settings.method, "rank": rank, "metric": metric,
                "protocol": "adapters", "rule": settings.keep, "statistic": "mean", "n": len(values),
                "seeds": " ".join(map(str, each_seed)), "each_seed": each_seed, "value": fmean(values),
                "spread": spread(values), "low": low, "high": high, "measured": measured_on(measured),
                "uncommitted": int(bool(measured.get("git_dirty"))), "command": command(base),
            })  # fmt: skip
    return pd.DataFrame(lines, columns=list(COLUMNS))
