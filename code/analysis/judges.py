"""The judges of claims that ask something else than whether one row is better than another.

    full_is_sound(rows_of_one_scale)    # Finding(verdict="holds", evidence="BLEU 67.49, ...", n=3)

Each reads the rows of `results/summary.csv` at one scale and of one base; `claims.py` says which claim has which.
"""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from analysis.comparisons import (
    BETTER,
    FAILS,
    HOLDS,
    MISSING,
    OPEN,
    Finding,
    compared,
    e2e_lines,
    each_seed,
    evidence_of,
    lora_searched,
    of_same_data,
    rows,
    tried_rates,
)
from analysis.quantities import MARGIN, printed
from analysis.seed_statistics import paired_differences

SOUND = {  # metric, in table units -> what it has to be, its name
    "BLEU": (lambda value: value > 60, "BLEU"),
    "share_at_cap": (lambda value: value <= 1, "texts that do not end (%)"),
    "slot_error_rate": (lambda value: value < 5, "slot errors (%)"),
}
LEAST_TRIED = 3  # rates of which one can lie inside
RANKS_SEARCHED = ("lora-all-r1", "lora-all-r8", "lora-all-r64")


def few_parameters(summary: pd.DataFrame) -> Finding:
    """On E2E, LoRA r=4 trains under one percent of the model."""
    lora, full = (rows(summary, "table3", row) for row in ("lora-r4", "full"))
    if lora.empty or full.empty:
        tried = tried_rates(summary)
        searched, _ = lora_searched(tried)
        if not {searched, "full"} <= tried.keys():
            return Finding(MISSING)
        lora, full = tried[searched], tried["full"]
    trained, total = int(lora["trainable"].iloc[0]), int(full["trainable"].iloc[0])
    evidence = f"{trained:,} of {total:,} parameters, {printed('share', 100 * trained / total)}%"
    return Finding(HOLDS if trained < total / 100 else FAILS, evidence, int(lora["n"].iloc[0]))


def higher_rate(summary: pd.DataFrame) -> Finding:
    """LoRA's best learning rate on E2E is at least twice that of full fine-tuning."""
    tried = tried_rates(summary)
    lora, name = lora_searched(tried)
    if not {lora, "full"} <= tried.keys():
        return Finding(MISSING)
    ours, theirs = (float(tried[row]["learning_rate"].iloc[0]) for row in (lora, "full"))
    evidence = f"lowest dev loss at {ours:g} ({name}) and at {theirs:g} (full)"
    return Finding(HOLDS if ours >= 2 * theirs else FAILS, evidence, int(tried[lora]["n"].iloc[0]))


def inside_grid(summary: pd.DataFrame) -> Finding:
    """On E2E no method's best learning rate is the lowest or the highest tried. It needs both LoRA and full.

    Other rows of fewer than LEAST_TRIED rates, whose search has only begun, are left out.
    """
    tried = tried_rates(summary)
    lora, _ = lora_searched(tried)
    if not {lora, "full"} <= tried.keys():
        return Finding(MISSING)
    grids = {row: lines["learning_rate"].astype(float) for row, lines in tried.items()}  # the best one first
    rates = {row: grid for row, grid in grids.items() if len(grid) >= LEAST_TRIED or row in (lora, "full")}
    edge_rows = [row for row, grid in rates.items() if not grid.min() < grid.iloc[0] < grid.max()]
    shown = {row: grid for row, grid in rates.items() if row in (edge_rows or (lora, "full"))}
    evidence = "; ".join(
        f"{row}: {grid.iloc[0]:g} of {', '.join(f'{rate:g}' for rate in sorted(grid))}" for row, grid in shown.items()
    )
    others = f"; likewise {len(rates) - len(shown)} other methods" if not edge_rows and len(rates) > len(shown) else ""
    seeds = min(int(tried[row]["n"].min()) for row in rates)
    return Finding(FAILS if edge_rows else HOLDS, evidence + others, seeds)


def _like_correct(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of mistakes whose base weights and rows are those of the correct run."""
    return of_same_data(lines, lines[lines["experiment"].str.endswith("/correct")])


def mistake_outweighs(summary: pd.DataFrame) -> Finding:
    """On E2E, leaving the end token out of the loss costs LoRA more than full fine-tuning is ahead of it.

    It is about one mistake that is named, and not the worst of sixteen, which would outweigh much by chance alone.
    """
    lines = _like_correct(e2e_lines(summary, "pitfalls", "BLEU"))
    bleu = {line["experiment"].rpartition("/")[2]: each_seed(line) for line in lines.to_dict("records")}
    right, wrong, full = (bleu.get(row, {}) for row in ("correct", "untrained-end", "full-correct"))
    seeds = right.keys() & wrong.keys() & full.keys()
    if not seeds:
        return Finding(MISSING)
    costs, gaps = (
        {seed: better[seed] - worse[seed] for seed in seeds} for better, worse in ((right, wrong), (full, right))
    )
    excess = paired_differences(costs, gaps)
    evidence = f"untrained-end: {printed('BLEU', -fmean(costs.values()), '+')} BLEU; "
    evidence += evidence_of("LoRA minus full", "BLEU", [-gaps[seed] for seed in sorted(seeds)], ["e2e"])
    return Finding(BETTER.get(compared(excess, MARGIN), OPEN), evidence, len(excess))


def wins_by_length(summary: pd.DataFrame) -> Finding:
    """On E2E, a mistake that raises LoRA's BLEU only makes its texts longer: without the brevity penalty it is behind.

    It compares the means of the seeds that a mistake and the correct run both have; one seed does not decide.
    """
    by_metric = {}
    for metric in ("BLEU", "BLEU_unpenalised"):
        lines = _like_correct(e2e_lines(summary, "pitfalls", metric)).to_dict("records")
        by_metric[metric] = {line["experiment"].rpartition("/")[2]: each_seed(line) for line in lines}
    if not all("correct" in rows_of_metric for rows_of_metric in by_metric.values()):
        return Finding(MISSING)
    changes: dict[str, list[float]] = {}
    for row in by_metric["BLEU"].keys() - {"correct"}:
        pairs = [paired_differences(each.get(row, {}), each["correct"]) for each in by_metric.values()]
        if not row.startswith("full-") and all(pairs):
            changes[row] = [fmean(differences) for differences in pairs]
    if not changes:
        return Finding(MISSING)
    ahead = sorted((row for row, change in changes.items() if change[0] > 0), key=lambda row: -changes[row][0])
    texts = [f"{row} {' and '.join(printed('BLEU', value, '+') for value in changes[row])}" for row in ahead]
    evidence = f"BLEU with and without the penalty: {'; '.join(texts)}" if ahead else "none raises it"
    seeds = min(len(by_metric["BLEU"][row]) for row in changes)
    if seeds == 1:
        return Finding(OPEN, evidence, seeds)
    return Finding(HOLDS if all(changes[row][1] < 0 for row in ahead) else FAILS, evidence, seeds)


def full_is_sound(summary: pd.DataFrame) -> Finding:
    """Full fine-tuning on E2E is in the band that was set before any comparison: SOUND."""
    lines = {metric: rows(summary, "table3", "full", metric) for metric in SOUND}
    values = {metric: list(each_seed(line.iloc[0]).values()) for metric, line in lines.items() if len(line)}
    if len(values) < len(SOUND) or not all(values.values()):
        return Finding(MISSING)
    means = {metric: fmean(each) for metric, each in values.items()}
    evidence = ", ".join(f"{SOUND[metric][1]} {printed(metric, value)}" for metric, value in means.items())
    inside = all(SOUND[metric][0](value) for metric, value in means.items())
    return Finding(HOLDS if inside else FAILS, evidence, len(values["BLEU"]))


def _best_rates(summary: pd.DataFrame, rows_asked: tuple[str, ...]) -> dict[str, float] | None:
    """{row: its best learning rate}; None where a row is not searched, or its best is the lowest or highest tried."""
    tried = tried_rates(summary)
    rates = {row: tried[row]["learning_rate"].astype(float) for row in rows_asked if row in tried}
    if len(rates) < len(rows_asked) or any(not grid.min() < grid.iloc[0] < grid.max() for grid in rates.values()):
        return None
    return {row: grid.iloc[0] for row, grid in rates.items()}


def tenfold_rate(summary: pd.DataFrame) -> Finding:
    """The best rate of LoRA on all matrices is 5 to 20 times full fine-tuning's: ten, as closely as a grid tells."""
    rates = _best_rates(summary, ("full", "lora-all-r8"))
    if rates is None:
        return Finding(MISSING)
    times = rates["lora-all-r8"] / rates["full"]
    evidence = f"{rates['lora-all-r8']:g} (LoRA r=8) and {rates['full']:g} (full): {times:g} times"
    return Finding(HOLDS if 5 <= times <= 20 else FAILS, evidence, 1)


def rate_by_rank(summary: pd.DataFrame) -> Finding:
    """The best rates of LoRA on all matrices at ranks 1, 8 and 64 differ by a factor of two, a grid step, at most."""
    rates = _best_rates(summary, RANKS_SEARCHED)
    if rates is None:
        return Finding(MISSING)
    evidence = ", ".join(f"{rate:g} (r={row.rpartition('-r')[2]})" for row, rate in rates.items())
    return Finding(HOLDS if max(rates.values()) <= 2.01 * min(rates.values()) else FAILS, evidence, 1)
