"""Records -> one row a table cell: every seed, centre, spread, interval, difference to the reference, verdict.

The one aggregator: tables, figures, the README, the notebooks and the report read what `cells` gives. A row is one
quantity of one experiment at one scale; E2E rows are means over seeds, GLUE rows medians, as in the paper's Tables 3
and 2.

    cells(select("table3", "cpu"), "cpu")    # a DataFrame with the columns COLUMNS

The reference is full fine-tuning of the same base and start, on the same rows and decoded alike, at the same scale, or
the run that `Experiment.against` names. Differences are paired by seed, and their mean is shown. The paper's numbers
stand beside ours and are never part of a difference. `python code/make_summary.py` writes all to `results/summary.csv`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd

import experiments
import paths
from experiments import find, resolve
from paper_values import paper_value
from quantities import Quantity, printed, quantities
from records import is_declared
from settings import OFFICIAL, Experiment, Settings
from statistics_seeds import bootstrap_interval, difference_interval, paired_differences, spread, verdict

STATISTICS = {"mean": (fmean, np.mean), "median": (median, np.median)}  # of the seeds, of many resamples
NO_REFERENCE = "no reference"  # a verdict
FROM_MNLI = "full-from-mnli"
FULL_ROWS = ("full", FROM_MNLI)
SAME_WORK = (  # settings that a run and its reference have in common
    "task", "model", "train_rows", "evaluate", "protocol", "keep", "beams", "length_penalty", "no_repeat_ngram",
    "max_new_tokens",
)  # fmt: skip
COLUMNS = (
    "table", "experiment", "variant", "scale", "task", "train_rows", "data", "model", "method", "rank", "targets",
    "learning_rate", "trainable", "head", "device", "metric", "protocol", "rule", "statistic", "n", "seeds",
    "each_seed", "value", "spread", "low", "high", "reference", "difference", "difference_low", "difference_high",
    "difference_n", "margin", "verdict", "alarms", "paper_row", "paper", "paper_over_full", "paper_version", "left_out",
    "command",
)  # fmt: skip


def seeds_of(experiment: Experiment, scale: str) -> list[dict[str, Any]]:
    """The experiment's finished records, by seed, whose task version and settings are those declared now."""
    settings = resolve(experiment, scale)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in _files_of(experiment, scale)]
    return sorted((r for r in found if is_declared(r, settings)), key=lambda r: r["seed"])


def _files_of(experiment: Experiment, scale: str) -> list[Path]:
    return list((paths.RESULTS / "runs" / scale).glob(f"{experiment.name.replace('/', '--')}--seed*.json"))


def cells(chosen: Iterable[Experiment], scale: str) -> pd.DataFrame:
    """A row for each quantity of each experiment at the scale; of one that is not run, the main ones only.

    Numbers are in table units (`quantities.py`) and not rounded; `each_seed` is {seed: value}.
    """
    read: dict[str, list[dict[str, Any]]] = {}

    def runs_of(experiment: Experiment) -> list[dict[str, Any]]:
        if experiment.name not in read:
            read[experiment.name] = seeds_of(experiment, scale)
        return read[experiment.name]

    rows = []
    for experiment in chosen:
        settings, found = resolve(experiment, scale), runs_of(experiment)
        reference = _reference(experiment, scale, runs_of)
        others = runs_of(reference) if reference else []
        other_data = {r["seed"] for r in others for o in found if r["seed"] == o["seed"] and not _same_data(r, o)}
        asked = quantities(settings)
        if not found:
            asked = [q for q in asked if (q.metric, q.protocol) == (asked[0].metric, asked[0].protocol)]
        identity = _identity(experiment, settings, scale, found)
        counterpart = _counterpart(experiment, settings, scale)
        for quantity in asked:
            ours = _by_seed(quantity, found)
            if quantity.rule == "cost" and not ours:
                continue
            theirs = _by_seed(quantity, others)
            row = identity | _over_seeds(quantity, ours) | {"alarms": _alarms(quantity, found)}
            if quantity.margin is not None:
                row |= {"reference": reference.name if reference else None, "margin": quantity.margin}
                alone = reference == experiment
                row |= _compared(quantity, ours, theirs, other_data, alone) if found else {"verdict": "not run"}
            rows.append(row | _papers(quantity, counterpart))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _identity(experiment: Experiment, settings: Settings, scale: str, found: list[dict]) -> dict[str, Any]:
    parameters = found[0]["parameters"] if found else {}
    subset = {"subset" if any(record["subset"].values()) else "whole" for record in found if "subset" in record}
    alike = all(_same_data(record, found[0]) for record in found)
    return {
        "table": experiment.table, "experiment": experiment.name, "variant": experiment.variant, "scale": scale,
        "task": settings.task, "train_rows": settings.train_rows, "model": settings.model, "method": settings.method,
        "data": min(subset, default=None) if alike else "mixed", "rank": settings.rank,
        "targets": " ".join(settings.targets), "learning_rate": settings.learning_rate,
        "trainable": parameters.get("trainable"), "head": parameters.get("head"),
        "device": "; ".join(sorted({record["device"] for record in found})), "n": len(found),
        "seeds": " ".join(str(record["seed"]) for record in found),
        "left_out": len(_files_of(experiment, scale)) - len(found),
        "command": _command(experiment, scale, [record["seed"] for record in found] or [0]),
    }  # fmt: skip


def _command(experiment: Experiment, scale: str, seeds: list[int]) -> str:
    """What makes the row anew."""
    if len(seeds) == 1:
        return f"python code/reproduce.py run {experiment.name} --scale {scale} --seed {seeds[0]}"
    row = experiment.name.removeprefix(f"{experiment.table}/").removesuffix(f"/{OFFICIAL}")
    variant = f" --variant {OFFICIAL}" if experiment.variant == OFFICIAL else ""
    numbers = " ".join(map(str, seeds))
    return f"python code/reproduce.py sweep {experiment.table} --rows {row}{variant} --scale {scale} --seeds {numbers}"


def _by_seed(quantity: Quantity, found: list[dict]) -> dict[int, float]:
    """{seed: value}; empty if a record lacks it, since a centre over some of the seeds would be of another run."""
    values = {record["seed"]: quantity.of(record) for record in found}
    return {} if None in values.values() else values


def _over_seeds(quantity: Quantity, by_seed: dict[int, float]) -> dict[str, Any]:
    row = {key: getattr(quantity, key) for key in ("metric", "protocol", "rule", "statistic")} | {"each_seed": by_seed}
    if not by_seed:
        return row
    values = list(by_seed.values())
    centre, of_resamples = STATISTICS[quantity.statistic]
    low, high = bootstrap_interval(values, of_resamples) or (None, None)
    return row | {"value": centre(values), "spread": spread(values), "low": low, "high": high}


def _alarms(quantity: Quantity, found: list[dict]) -> int | None:
    """How many of the runs did no better than answering always the same; None where that is not asked."""
    scores = [record.get(quantity.keys[0]) for record in found]
    known = [s["alarm"] is not None for s in scores if isinstance(s, dict) and "alarm" in s]
    return sum(known) if known else None


def _reference(experiment: Experiment, scale: str, runs_of: Callable[[Experiment], list]) -> Experiment | None:
    """What it is measured against; itself if that is what others of its table are measured against."""
    if experiment.against:
        return find(experiment.against)
    table = [other for other in experiments.EXPERIMENTS.values() if other.table == experiment.table]
    if any(other.against == experiment.name for other in table):
        return experiment

    def work(of: Experiment) -> tuple:
        settings = resolve(of, scale)
        return (settings.start_from is None, *(getattr(settings, name) for name in SAME_WORK))

    full = [e for e in experiments.EXPERIMENTS.values() if e.row in FULL_ROWS and scale in e.scales]
    alike = [e for e in full if work(e) == work(experiment)]
    if experiment in alike:
        return experiment
    alike.sort(key=lambda e: (not runs_of(e), e.table != experiment.table, e.variant != experiment.variant))
    return alike[0] if alike else None


def _same_data(record: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the splits that both runs had are made of the same rows."""
    ours, theirs = (r.get("data_fingerprint", {}) for r in (record, other))
    return all(ours[split] == theirs[split] for split in ours.keys() & theirs.keys())


def _compared(
    quantity: Quantity, ours: dict[int, float], theirs: dict[int, float], other_data: set[int], itself: bool
) -> dict[str, Any]:
    """What the differences say at the seeds that both have, but those at which their data differ."""
    if not ours:
        return {"verdict": "not measured"}
    if itself:
        return {"verdict": "reference"}
    differences = paired_differences({s: value for s, value in ours.items() if s not in other_data}, theirs)
    if not differences:
        return {"verdict": "other data" if other_data else "no seed in common" if theirs else NO_REFERENCE}
    low, high = difference_interval(differences) or (None, None)
    found = verdict(differences, quantity.margin, quantity.higher_is_better)
    return {
        "difference": fmean(differences), "difference_low": low, "difference_high": high,
        "difference_n": len(differences), "verdict": found,
    }  # fmt: skip


def _counterpart(experiment: Experiment, settings: Settings, scale: str) -> Experiment:
    """The experiment with a row in the paper that is the same piece of work at this scale (see `select`), if any."""
    alike = (
        e for e in experiments.EXPERIMENTS.values() if (e.table, e.variant) == (experiment.table, experiment.variant)
    )
    with_cell = (e for e in alike if e.cell and scale in e.scales and resolve(e, scale) == settings)
    return experiment if experiment.cell else next(with_cell, experiment)


def _papers(quantity: Quantity, experiment: Experiment) -> dict[str, Any]:
    """The paper's number: it has the official protocol, the reported split and the paper's rule."""
    if quantity.protocol not in ("lora", "validation") or quantity.rule == "honest":
        return {}
    found = paper_value(experiment, quantity.metric)
    if found is None:
        return {}
    return {
        "paper_row": found.row, "paper": str(found), "paper_over_full": found.over_full, "paper_version": found.version,
    }  # fmt: skip


def as_csv(frame: pd.DataFrame) -> str:
    """The cells as `results/summary.csv` has them: numbers as they are printed, but each seed's, to compute with."""
    lines = []
    for row in frame.to_dict("records"):
        metric = row["metric"]
        line = {key: "" if key != "each_seed" and pd.isna(value) else value for key, value in row.items()}
        line["each_seed"] = " ".join(f"{value:.9g}" for value in row["each_seed"].values())
        line |= {key: printed(metric, row[key]) for key in ("value", "spread", "low", "high")}
        line |= {key: printed(metric, row[key], "+") for key in ("difference", "difference_low", "difference_high")}
        line |= {key: f"{row[key]:g}" for key in ("learning_rate", "margin") if line[key] != ""}
        counts = ("train_rows", "rank", "trainable", "head", "alarms", "difference_n")
        line |= {key: f"{row[key]:.0f}" for key in counts if line[key] != ""}
        lines.append(line)
    return pd.DataFrame(lines, columns=frame.columns).to_csv(index=False, lineterminator="\n")
