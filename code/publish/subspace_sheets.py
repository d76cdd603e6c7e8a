"""What is shown of subspaces (section 7): the numbers of two figures, and the sheets of a table.

between_ranks("subspaces", "cpu")    # rows of figure 3, for `figure_data.py`
sheets(read("smollm2-135m"))         # Table 7 beside the paper's, and what adapters share
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.quantities import printed
from analysis.seed_statistics import spread
from analysis.subspace_records import (
    LARGE,
    NORMS,
    SHARED,
    Measured,
    command,
    dimensions,
    grids,
    quantities,
    read_all,
    row_of,
)  # fmt: skip
from experiments.subspaces import RANKS
from files import read_table
from publish.labels import TITLES
from publish.tables import markdown

HEADS = {  # metric -> its heading
    "norm_of_weights": "W", "norm_of_update": "ΔW", "along_update": "W along ΔW", "along_weights": "W along W",
    "along_random": "W along random", "amplification": "amplification",
}  # fmt: skip
PAPERS = {  # the same in data/paper.csv
    "norm_of_weights": "norm of W", "norm_of_update": "norm of delta W",
    "along_update": "norm of W in the directions of delta W", "along_weights": "norm of W in the directions of W",
    "along_random": "norm of W in the directions of a random matrix", "amplification": "amplification",
}  # fmt: skip


def _rows(measured: Measured, kind: str, across: str) -> Iterator[dict[str, Any]]:
    for matrix, rank, seeds, grid in grids(measured, kind):
        for i, line in zip(dimensions(rank), grid, strict=True):
            first = f"r={rank}, i={i}" if kind == "ranks" else f"i={i}"
            for j, similarity in zip(dimensions(LARGE), line, strict=True):
                yield {
                    "panel": f"{measured['base']}, {matrix}", "seed": " ".join(map(str, dict.fromkeys(seeds))),
                    "n": len(measured["seeds"]), "first": first, "across": across, "second": j,
                    "similarity": printed("first_direction", similarity),
                }  # fmt: skip


def between_ranks(table: str, scale: str) -> Iterator[dict[str, Any]]:
    """Figure 3: the first i directions of A at a lower rank, and the first j at the largest."""
    for measured in read_all(scale):
        yield from _rows(measured, "ranks", f"the first j of r={LARGE}")


def between_seeds(table: str, scale: str) -> Iterator[dict[str, Any]]:
    """Figure 4: the first i directions of A at one seed, and the first j at another; random matrices come last."""
    for measured in read_all(scale):
        for kind in ("seeds", "random"):
            yield from _rows(measured, kind, f"the first j of another seed, r={LARGE}")


def sheets(measured: Measured) -> dict[str, pd.DataFrame]:
    """{title: cells as text} of a base: means over the seeds, ± their sample standard deviation."""
    values = quantities(measured)

    def shown(matrix: str, rank: int, metric: str) -> str:
        seeds = list(values[matrix, rank, metric].values())
        return f"{printed(metric, fmean(seeds))} ±{printed(metric, spread(seeds))}"

    matrices = list(dict.fromkeys(row["matrix"] for row in measured["amplifications"]))
    norms = [
        {"matrix": matrix, "rank": str(rank)} | {HEADS[metric]: shown(matrix, rank, metric) for metric in NORMS}
        for matrix in matrices
        for rank in RANKS
    ]
    shared = [
        {
            "matrix": matrix,
            **{f"first direction, r={r} and r={LARGE}": shown(matrix, r, "first_direction") for r in RANKS[:-1]},
            f"first {SHARED} directions, two seeds": shown(matrix, LARGE, "shared_by_seeds"),
            f"first {SHARED} directions, random": shown("random", LARGE, "shared_by_random"),
        }
        for matrix in matrices
    ]
    return {
        "Norms, as in Table 7": pd.DataFrame(norms),
        "The paper's Table 7": _papers(),
        "What adapters share, from 0 to 1": pd.DataFrame(shared),
    }


def _papers() -> pd.DataFrame:
    by_rank: dict[str, dict[str, str]] = {}
    for row in read_table("paper.csv"):
        if row["table"] == "table7":
            by_rank.setdefault(f"{row['model']}, {row['method']}", {})[row["metric"]] = row["value"]
    lines = [
        {"matrix": name} | {HEADS[metric]: cells.get(PAPERS[metric], "-") for metric in NORMS}
        for name, cells in by_rank.items()
    ]
    return pd.DataFrame(lines)


def notes(measured: Measured) -> list[str]:
    """What a reader has to know to read the sheets."""
    seeds, settings = len(measured["seeds"]), {rank: row_of(measured["base"], rank).settings for rank in RANKS}
    rates = ", ".join(f"{each.learning_rate:g} (r={rank})" for rank, each in settings.items())
    own_rates = [f"Not the rank alone differs: the learning rates are {rates}."]
    return [
        *(own_rates if len({each.learning_rate for each in settings.values()}) > 1 else ()),
        f"Measured on {len(measured['runs'])} adapters of {measured['base']} (n={seeds} seeds at r="
        f"{', '.join(map(str, RANKS))}): the first, the middle and the last layer, counted from 0. Numbers are means "
        "over seeds ± their sample standard deviation; what two seeds share counts for both.",
        "Norms are Frobenius norms. *W along X* is the norm of U^T W V with the first r left and right singular "
        "vectors of X; along random ones, its root mean square. *Amplification* is the norm of ΔW over W along ΔW.",
        "The similarity of the first i directions of one A and the first j of another is the squared norm of the "
        "product of their right singular vectors, over the smaller number: 1 if one span lies in the other.",
        "The paper's numbers are of one layer of GPT-3, with one random matrix drawn: not the same work.",
        f"`{command(measured['base'])}` measures it, on a machine that has the adapters.",
    ]


def as_text(measured: Measured) -> str:
    """The sheets of a base for a terminal."""
    lines = [f"{TITLES['subspaces']}: {measured['base']}, scale {measured['scale']}", ""]
    for title, sheet in sheets(measured).items():
        lines += [f"{title}:", sheet.to_string(index=False), ""]
    return "\n".join([*lines, *(note.replace("`", "").replace("*", "") for note in notes(measured))])


def subspace_page(scale: str) -> str:
    """What was measured at a scale as a page of Markdown."""
    page = [f"# {TITLES['subspaces']}, scale {scale}"]
    for measured in read_all(scale):
        for title, sheet in sheets(measured).items():
            page += [f"## {title}: {measured['base']}", markdown(sheet)]
        page += ["## How to read it", "\n".join(f"- {note}" for note in notes(measured))]
    return "\n\n".join(page) + "\n"
