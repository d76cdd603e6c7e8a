"""How two rows of `results/summary.csv` are compared, and the judges of claims that rest on such a comparison.

    judge = no_worse("LoRA r=4 minus full", ("table3", "lora-r4"), ("table3", "full"))
    judge(rows_of_one_scale)    # Finding(verdict="does not hold", evidence="LoRA r=4 minus full: -7.50 BLEU", n=1)

Two rows are compared at the seeds and tasks that both have. One seed has no interval: it decides only where the rows
lie more than FAR margins apart, and tells which is ahead, not by how much. Learning rates are compared as they are:
neighbours in a grid differ by a factor of two or more. What is saved in time and memory is measured in one run, by
`code/benchmark.py`: records are of different days.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np
import pandas as pd

from analysis.quantities import MARGIN, printed
from analysis.seed_statistics import difference_interval, paired_differences, verdict
from experiments.glue import GLUE_TASKS
from tasks.catalogue import TASKS

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "undecided", "not measured yet"
FAR = 5.0  # margins
LOSS_MARGIN = 0.02  # nats a token
# verdict of `seed_statistics` -> verdict on the claim; any other word leaves it OPEN
NO_WORSE = {"equivalent": HOLDS, "better": HOLDS, "worse": FAILS}
BETTER = {"better": HOLDS, "equivalent": FAILS, "worse": FAILS}


@dataclass(frozen=True)
class Finding:
    """How a claim fares at one scale."""

    verdict: str  # HOLDS, FAILS, OPEN or MISSING
    evidence: str = ""  # the numbers it rests on, as they are printed
    n: int = 0  # seeds


Judge = Callable[[pd.DataFrame], Finding]  # of the summary's rows at one scale
Scores = dict[str, dict[int, float]]  # task -> seed -> value


Row = str | tuple[str, ...]  # a row's name; or its names on several bases, of which one has it


def rows(summary: pd.DataFrame, table: str, row: Row, metric: str = "", rule: str = "") -> pd.DataFrame:
    """One row of a table, a line for each task: the main quantity, or the one of the given metric or rule."""
    ends = tuple(f"/{name}" for name in ((row,) if isinstance(row, str) else row))
    lines = summary[(summary["table"] == table) & summary["experiment"].str.endswith(ends)]
    for column, wanted in (("metric", metric), ("rule", rule)):
        lines = lines[lines[column] == wanted] if wanted else lines
    return lines.drop_duplicates("task")


def e2e_lines(summary: pd.DataFrame, table: str, metric: str) -> pd.DataFrame:
    """The lines of a table for E2E and the metric."""
    return summary[(summary["table"] == table) & (summary["task"] == "e2e") & (summary["metric"] == metric)]


def tried_rates(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{row: a line for every learning rate tried on E2E, the lowest dev loss first}."""
    lines = e2e_lines(summary, "learning-rate", "dev_loss")
    lines = lines.assign(row=lines["experiment"].str.split("/").str[-2])
    lowest_first = lines.sort_values("value", key=lambda column: column.astype(float))
    return {row: lowest_first[lowest_first["row"] == row] for row in lines["row"].unique()}


def lora_searched(tried: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """(the row, its name) of LoRA on query and value in `tried_rates`: rank 4, or 8 where that was searched."""
    return ("lora-r8", "LoRA r=8") if "lora-r8" in tried else ("lora", "LoRA r=4")


def each_seed(line: dict[str, str]) -> dict[int, float]:
    """{seed: value} of a line of the summary; empty where it was not measured."""
    values = [float(value) for value in line["each_seed"].split()]
    return dict(zip(map(int, line["seeds"].split()), values, strict=True)) if values else {}


def scores(lines: pd.DataFrame) -> Scores:
    """{task: {seed: value}} of `rows`."""
    return {line["task"]: values for line in lines.to_dict("records") if (values := each_seed(line))}


def of_same_data(theirs: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Their lines of the tasks whose base weights and rows are ours, in every split that both have.

    Each of the two is of one kind: the whole split or a subset, the official text or a rebuilt one.
    """
    mine = ours.drop_duplicates("task").set_index("task")
    data = theirs["task"].map(mine["data"])
    alike = [_agree(line["origin"], mine["origin"].get(line["task"], "")) for line in theirs.to_dict("records")]
    return theirs[(theirs["data"] == data) & (data != "mixed") & np.array(alike, dtype=bool)]


def _agree(origin: str, other: str) -> bool:
    """Whether two `origin`s of the summary have one digest of the base and of each split that both have."""
    ours, theirs = (dict(part.split("=") for part in each.split()) for each in (origin, other))
    return all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


def differences(ours: Scores, theirs: Scores) -> tuple[list[float], list[str]]:
    """(mean over tasks of ours minus theirs, by seed; those tasks). A task that lacks a seed is left out."""
    common = {task: ours[task].keys() & theirs.get(task, {}).keys() for task in ours}
    seeds = max(common.values(), key=len, default=set())
    if not seeds:
        return [], []
    tasks = [task for task in ours if common[task] >= seeds]
    means = [{seed: fmean(side[task][seed] for task in tasks) for seed in seeds} for side in (ours, theirs)]
    return paired_differences(*means), tasks


def compared(pairs: Sequence[float], margin: float, higher_is_better: bool = True) -> str:
    """The verdict of `seed_statistics`; for one seed *better* or *worse* beyond FAR margins."""
    word = verdict(pairs, margin, higher_is_better)
    if word == "one seed only" and abs(pairs[0]) > FAR * margin:
        return "better" if (pairs[0] > 0) == higher_is_better else "worse"
    return word


def evidence_of(names: str, metric: str, pairs: Sequence[float], tasks: Sequence[str]) -> str:
    """`LoRA r=4 minus full: +0.55 BLEU [+0.23, +0.87]`, the 90% interval, with the tasks if they are GLUE's."""
    interval = difference_interval(pairs)
    shown = [printed(metric, value, "+") for value in (fmean(pairs), *(interval or ()))]
    within = f" [{shown[1]}, {shown[2]}]" if interval else ""
    glue = [TASKS[task].title for task in tasks if TASKS[task].outputs]
    several = f"mean of {len(glue)} of {len(GLUE_TASKS)} tasks: " if len(glue) > 1 else "on "
    over = f", {several}{', '.join(glue)}" if glue else ""
    unit = {"dev_loss": "nats of dev loss", "BLEU_unpenalised": "BLEU without the penalty", "": "points"}.get(
        metric, metric
    )
    return f"{names}: {shown[0]} {unit}{within}{over}"


def _comparison(
    outcomes: dict[str, str], names: str, ours: tuple[str, Row], theirs: tuple[str, Row], metric: str = ""
) -> Judge:
    """A judge of `ours` against `theirs`, each (table, row), by a metric, else each task's own."""

    def judge(summary: pd.DataFrame) -> Finding:
        mine, other = (rows(summary, *side, metric) for side in (ours, theirs))
        pairs, tasks = differences(scores(mine), scores(of_same_data(other, mine)))
        if not pairs:
            return Finding(MISSING)
        of_one = mine.set_index("task")["metric"][tasks[0]] if len(tasks) == 1 else ""
        outcome = outcomes.get(compared(pairs, MARGIN), OPEN)
        return Finding(outcome, evidence_of(names, of_one, pairs, tasks), len(pairs))

    return judge


no_worse, better = partial(_comparison, NO_WORSE), partial(_comparison, BETTER)


def no_worse_by_each(names: str, ours: tuple[str, Row], theirs: tuple[str, Row], metrics: Sequence[str]) -> Judge:
    """A judge of whether `ours` is no worse than `theirs` by every one of the metrics, each with its own margin."""

    def judge(summary: pd.DataFrame) -> Finding:
        shown, outcomes, seeds = [], set(), []
        for metric in metrics:
            mine, other = (rows(summary, *side, metric) for side in (ours, theirs))
            pairs, _ = differences(scores(mine), scores(of_same_data(other, mine)))
            if not pairs:
                return Finding(MISSING)
            word, interval = compared(pairs, TASKS["e2e"].metrics[metric].margin), difference_interval(pairs)
            value, *ends = (printed(metric, number, "+") for number in (fmean(pairs), *(interval or ())))
            told = f" [{', '.join(ends)}]" if ends else ""
            told += f" ({word})" if ends and word in ("better", "worse") else ""
            shown.append(f"{metric.replace('_', '-')} {value}{told}")
            outcomes.add(NO_WORSE.get(word, OPEN))
            seeds.append(len(pairs))
        outcome = next(outcome for outcome in (FAILS, OPEN, HOLDS) if outcome in outcomes)
        return Finding(outcome, f"{names}: {', '.join(shown)}", min(seeds))

    return judge


def glue_average(rule: str) -> Judge:
    """A judge of LoRA r=8 against its reference, averaged over GLUE; OPEN with fewer than half of the tasks."""

    def judge(summary: pd.DataFrame) -> Finding:
        mine = rows(summary, "table2", "lora-r8", rule=rule)
        others = summary[summary["experiment"].isin(mine["reference"]) & (summary["rule"] == rule)]
        pairs, tasks = differences(scores(mine), scores(of_same_data(others, mine).drop_duplicates("task")))
        if not pairs:
            return Finding(MISSING)
        evidence = evidence_of("LoRA r=8 minus full", "", pairs, tasks)
        if 2 * len(tasks) < len(GLUE_TASKS):
            evidence += "; too few tasks to decide"
            return Finding(OPEN, evidence, len(pairs))
        return Finding(NO_WORSE.get(compared(pairs, MARGIN), OPEN), evidence, len(pairs))

    return judge


def same_dev_loss(theirs: str, their_name: str, ours: str = "", our_name: str = "") -> Judge:
    """A judge of whether a row, else LoRA on query and value, reaches another's dev loss, each at its best rate."""

    def judge(summary: pd.DataFrame) -> Finding:
        tried = tried_rates(summary)
        row, name = (ours, our_name) if ours else lora_searched(tried)
        if not {row, theirs} <= tried.keys():
            return Finding(MISSING)
        best, other = tried[row].head(1), tried[theirs].head(1)
        pairs, tasks = differences(scores(best), scores(of_same_data(other, best)))
        if not pairs:
            return Finding(MISSING)
        word = compared(pairs, LOSS_MARGIN, higher_is_better=False)
        evidence = f"{best['value'].iloc[0]} ({name}) and {other['value'].iloc[0]} ({their_name}); "
        evidence += evidence_of("difference", "dev_loss", pairs, tasks)
        return Finding(NO_WORSE.get(word, OPEN), evidence, len(pairs))

    return judge
