"""The judges of the claims of section 7: over the lines of `results/summary.csv` that `subspace_records.py` writes.

Each seed has one value, a mean over the matrices that were measured. Two seeds' similarity counts for both of them.
"""

from __future__ import annotations

from math import exp, log
from statistics import fmean

import pandas as pd

from analysis.comparisons import BETTER, FAILS, HOLDS, MISSING, OPEN, Finding, compared, each_seed
from analysis.quantities import printed
from analysis.seed_statistics import paired_differences
from analysis.subspace_records import LARGE, SHARED, SMALL

HALF = 0.5  # the paper's bound: "normalized similarity > 0.5"
SIMILARITY_MARGIN = 0.05
NORM_MARGIN = log(1.1)  # a tenth


def first_direction(summary: pd.DataFrame) -> Finding:
    """The first directions of A at rank 8 and at rank 64 are alike: their similarity is above a half."""
    values = _by_seed(summary, "first_direction", SMALL)
    if not values:
        return Finding(MISSING)
    each = [value for line in _lines(summary, "first_direction", SMALL) for value in line.values()]
    low, mean, high = (printed("first_direction", value) for value in (min(each), fmean(each), max(each)))
    outcome = compared([value - HALF for value in values.values()], SIMILARITY_MARGIN)
    evidence = f"similarity {mean} (of single matrices and seeds, {low} to {high})"
    return Finding(BETTER.get(outcome, OPEN), evidence, len(values))


def seeds_share(summary: pd.DataFrame) -> Finding:
    """Two seeds share more of their first eight directions at rank 64 than random matrices do."""
    ours, random = (_by_seed(summary, metric, LARGE) for metric in ("shared_by_seeds", "shared_by_random"))
    if not ours or not random:
        return Finding(MISSING)
    shown = [printed("shared_by_seeds", fmean(values.values())) for values in (ours, random)]
    evidence = f"{shown[0]} of {SHARED} directions, of random matrices {shown[1]}"
    outcome = compared(paired_differences(ours, random), SIMILARITY_MARGIN)
    return Finding(BETTER.get(outcome, OPEN), evidence, len(ours))


def amplifies_new(summary: pd.DataFrame) -> Finding:
    """At rank 8, W has more along its update than at random and less than along its own; the update is larger than it.

    Norms are compared by their ratios: all three have to be above 1.
    """
    metrics = ("along_random", "along_update", "along_weights", "norm_of_update")
    norms = [_by_seed(summary, metric, SMALL, logarithms=True) for metric in metrics]
    if not all(norms):
        return Finding(MISSING)
    random, update, weights, own_norm = norms
    ratios = {
        "W along its update, over random": paired_differences(update, random),
        "along its own directions, over its update's": paired_differences(weights, update),
        "amplification": paired_differences(own_norm, update),
    }
    outcomes = {BETTER.get(compared(ratio, NORM_MARGIN), OPEN) for ratio in ratios.values()}
    evidence = "; ".join(f"{name}: {printed('ratio', exp(fmean(ratio)))}" for name, ratio in ratios.items())
    outcome = FAILS if FAILS in outcomes else HOLDS if outcomes == {HOLDS} else OPEN
    return Finding(outcome, evidence, len(update))


def _lines(summary: pd.DataFrame, metric: str, rank: int) -> list[dict[int, float]]:
    """{seed: value} of every matrix."""
    of_rank = (summary["metric"] == metric) & (summary["rank"] == str(rank)) & (summary["table"] == "subspaces")
    return [each_seed(line) for line in summary[of_rank].to_dict("records")]


def _by_seed(summary: pd.DataFrame, metric: str, rank: int, logarithms: bool = False) -> dict[int, float]:
    """{seed: mean over the matrices}, of the values or of their logarithms; of the seeds that all matrices have."""
    lines = _lines(summary, metric, rank)
    seeds = set.intersection(*({*line} for line in lines)) if lines else ()
    scale = log if logarithms else float
    return {seed: fmean(scale(line[seed]) for line in lines) for seed in sorted(seeds)}
