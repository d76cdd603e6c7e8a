"""Records -> one row for each table cell: every seed, centre, spread, interval, difference to the reference, verdict.

Tables, figures, the README, the notebooks and the report all read what `cells` gives. A row is one quantity of one
experiment. E2E rows are means over seeds and GLUE rows medians, as in the paper's Tables 3 and 2.

    cells(select("table3", "cpu"))    # a DataFrame with the columns COLUMNS

The reference is the run that `Experiment.against` names; else full fine-tuning of the same base and start, at the same
scale, on the same rows and decoded alike. Differences are paired by seed, and their mean is shown. The paper's numbers
stand beside ours and are never part of a difference. `python code/make.py summary` writes all to `results/summary.csv`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import StringIO
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd

import files
from analysis.paper_values import paper_value
from analysis.quantities import Quantity, printed, quantities
from analysis.seed_statistics import bootstrap_interval, difference_interval, paired_differences, spread, verdict
from experiments import catalogue
from experiments.catalogue import find
from experiments.settings import OFFICIAL, Experiment
from runs.records import record_paths, records_of

STATISTICS = {"mean": (fmean, np.mean), "median": (median, np.median)}  # of the seeds, of many resamples
NO_REFERENCE = "no reference"  # a verdict
FROM_MNLI = "full-from-mnli"
FULL_ROWS = ("full", FROM_MNLI)
SAME_WORK = (  # settings that a run and its reference have in common
    "task", "model", "train_rows", "evaluate", "protocol", "keep", "beams", "length_penalty", "no_repeat_ngram",
    "max_new_tokens",
)  # fmt: skip
COLUMNS = (
    "table", "experiment", "variant", "scale", "task", "train_rows", "data", "origin", "model", "method", "rank",
    "targets", "learning_rate", "trainable", "head", "share", "device", "metric", "protocol", "rule", "statistic", "n",
    "seeds", "each_seed", "value", "spread", "low", "high", "reference", "difference", "difference_low",
    "difference_high", "difference_n", "margin", "verdict", "alarms", "paper_row", "paper", "paper_over_full",
    "paper_share", "paper_version", "left_out", "uncommitted", "measured", "command",
)  # fmt: skip


def cells(chosen: Iterable[Experiment]) -> pd.DataFrame:
    """A row for each quantity of each experiment; only the main quantities of one that is not run.

    Numbers are in table units (`quantities.py`) and not rounded; `each_seed` is {seed: value}.
    """
    read: dict[str, list[dict[str, Any]]] = {}

    def runs_of(experiment: Experiment) -> list[dict[str, Any]]:
        if experiment.name not in read:
            read[experiment.name] = records_of(experiment)
        return read[experiment.name]

    rows = []
    for experiment in chosen:
        settings, runs = experiment.settings, runs_of(experiment)
        reference = _reference(experiment, runs_of)
        their_runs = runs_of(reference) if reference else []
        pairs = ((r["seed"], _unlike(r, o)) for r in their_runs for o in runs if r["seed"] == o["seed"])
        unlike = {seed: verdict for seed, verdict in pairs if verdict}
        row_quantities = quantities(settings)
        if not runs:
            main = row_quantities[0]
            row_quantities = [q for q in row_quantities if (q.metric, q.protocol) == (main.metric, main.protocol)]
        identity = _identity(experiment, runs)
        for quantity in row_quantities:
            ours = _by_seed(quantity, runs)
            if quantity.rule == "cost" and not ours:
                continue
            theirs = _by_seed(quantity, their_runs)
            row = identity | _over_seeds(quantity, ours) | {"alarms": _alarms(quantity, runs)}
            if quantity.margin is not None:
                row |= {"reference": reference.name if reference else None, "margin": quantity.margin}
                alone = reference == experiment
                row |= _compared(quantity, ours, theirs, unlike, alone) if runs else {"verdict": "not run"}
            rows.append(row | _papers(quantity, experiment))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _identity(experiment: Experiment, runs: list[dict]) -> dict[str, Any]:
    settings = experiment.settings
    parameters = runs[0]["parameters"] if runs else {}
    kinds = {"subset" if any(record["subset"].values()) else "whole" for record in runs if "subset" in record}
    kinds |= {f"{record['text']} text" for record in runs if "text" in record}
    alike = not any(_unlike(record, runs[0]) for record in runs)
    return {
        "table": experiment.table, "experiment": experiment.name, "variant": experiment.variant,
        "scale": experiment.scale, "task": settings.task, "train_rows": settings.train_rows, "model": settings.model,
        "method": settings.method,
        "data": min(kinds, default=None) if alike else "mixed", "origin": _origin(runs[0]) if runs else "",
        "rank": settings.rank,
        "targets": " ".join(settings.targets), "learning_rate": settings.learning_rate,
        "trainable": parameters.get("trainable"), "head": parameters.get("head"),
        "share": 100 * parameters["trainable"] / parameters["total"] if parameters else None,
        "device": "; ".join(sorted({record["device"] for record in runs})), "n": len(runs),
        "seeds": " ".join(str(record["seed"]) for record in runs),
        "left_out": len(record_paths(experiment)) - len(runs),
        "measured": "; ".join(sorted({measured_on(record) for record in runs})),
        "uncommitted": sum(_uncommitted(record) for record in runs),
        "command": _command(experiment, [record["seed"] for record in runs] or [0]),
    }  # fmt: skip


def _origin(record: dict[str, Any]) -> str:
    """The base weights and the rows of each split, as short digests: `base=1f2e3d4c dev=... test=... train=...`."""
    digests = {"base": record.get("base_fingerprint", "")} | record.get("data_fingerprint", {})
    return " ".join(f"{name}={digest[:8]}" for name, digest in sorted(digests.items()) if digest)


def _uncommitted(record: dict[str, Any]) -> bool:
    """Whether code that no commit has made the record, or a part of it."""
    return any(sitting.get("git_dirty") for sitting in (record, *record.get("machines", ())))


def measured_on(record: dict[str, Any]) -> str:
    """The day of a run, in UTC: `2026-11-23`."""
    return record["started"][:10]


def _command(experiment: Experiment, seeds: list[int]) -> str:
    """The command that makes the row anew."""
    if len(seeds) == 1:
        return f"python code/reproduce.py run {experiment.name} --seed {seeds[0]}"
    row = experiment.name.removeprefix(f"{experiment.table}/").removesuffix(f"/{OFFICIAL}")
    variant = f" --variant {OFFICIAL}" if experiment.variant == OFFICIAL else ""
    numbers = " ".join(map(str, seeds))
    return f"python code/reproduce.py sweep {experiment.table} --rows {row}{variant} --seeds {numbers}"


def _by_seed(quantity: Quantity, runs: list[dict]) -> dict[int, float]:
    """{seed: value}; empty if any record lacks the value, so that a mean is always over all seeds."""
    values = {record["seed"]: quantity.of(record) for record in runs}
    return {} if None in values.values() else values


def _over_seeds(quantity: Quantity, by_seed: dict[int, float]) -> dict[str, Any]:
    row = {key: getattr(quantity, key) for key in ("metric", "protocol", "rule", "statistic")} | {"each_seed": by_seed}
    if not by_seed:
        return row
    values = list(by_seed.values())
    centre, resampled = STATISTICS[quantity.statistic]
    low, high = bootstrap_interval(values, resampled) or (None, None)
    return row | {"value": centre(values), "spread": spread(values), "low": low, "high": high}


def _alarms(quantity: Quantity, runs: list[dict]) -> int | None:
    """The number of runs with an alarm (`tasks/glue/metrics.py`); None if the task has no alarm."""
    scores = [record.get(quantity.keys[0]) for record in runs]
    known = [s["alarm"] is not None for s in scores if isinstance(s, dict) and "alarm" in s]
    return sum(known) if known else None


def _reference(experiment: Experiment, runs_of: Callable[[Experiment], list]) -> Experiment | None:
    """The experiment it is measured against: itself, if others of its table are measured against it."""
    if experiment.against:
        return find(experiment.against)
    table = [other for other in catalogue.EXPERIMENTS.values() if other.table == experiment.table]
    if any(other.against == experiment.name for other in table):
        return experiment

    def work(other: Experiment) -> tuple:
        settings = other.settings
        return (settings.start_from is None, *(getattr(settings, name) for name in SAME_WORK))

    full = [e for e in catalogue.EXPERIMENTS.values() if e.row in FULL_ROWS and e.scale == experiment.scale]
    alike = [e for e in full if work(e) == work(experiment)]
    if experiment in alike:
        return experiment
    alike.sort(key=lambda e: (not runs_of(e), e.table != experiment.table, e.variant != experiment.variant))
    return alike[0] if alike else None


def _unlike(record: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The verdict on runs of other base weights, or of other rows in a split that both had; else None."""
    if len({r["base_fingerprint"] for r in (record, other) if "base_fingerprint" in r}) > 1:
        return "other base"
    ours, theirs = (r.get("data_fingerprint", {}) for r in (record, other))
    same = all(ours[split] == theirs[split] for split in ours.keys() & theirs.keys())
    return None if same else "other data"


def _compared(
    quantity: Quantity, ours: dict[int, float], theirs: dict[int, float], unlike: dict[int, str], itself: bool
) -> dict[str, Any]:
    """The mean difference and verdict, over the seeds that both have and that are not `unlike`."""
    if not ours:
        return {"verdict": "not measured"}
    if itself:
        return {"verdict": "reference"}
    differences = paired_differences({s: value for s, value in ours.items() if s not in unlike}, theirs)
    if not differences:
        return {"verdict": next(iter(unlike.values())) if unlike else "no seed in common" if theirs else NO_REFERENCE}
    low, high = difference_interval(differences) or (None, None)
    word = verdict(differences, quantity.margin, quantity.shown_as.higher_is_better)
    return {
        "difference": fmean(differences), "difference_low": low, "difference_high": high,
        "difference_n": len(differences), "verdict": word,
    }  # fmt: skip


def _papers(quantity: Quantity, experiment: Experiment) -> dict[str, Any]:
    """The paper's number; only for the official protocol, the reported split and the paper's rule."""
    if quantity.protocol not in ("lora", "validation") or quantity.rule == "held-out":
        return {}
    paper = paper_value(experiment, quantity.metric)
    if paper is None:
        return {}
    return {
        "paper_row": paper.row, "paper": str(paper), "paper_over_full": paper.over_full, "paper_share": paper.share,
        "paper_version": paper.version,
    }  # fmt: skip


def as_csv(frame: pd.DataFrame) -> str:
    """The cells as `results/summary.csv` has them: numbers rounded as printed, except `each_seed`."""
    lines = []
    for row in frame.to_dict("records"):
        metric = row["metric"]
        line = {key: "" if key != "each_seed" and pd.isna(value) else value for key, value in row.items()}
        line["each_seed"] = " ".join(f"{value:.9g}" for value in row["each_seed"].values())
        line |= {key: printed(metric, row[key]) for key in ("value", "spread", "low", "high")}
        line |= {key: printed(metric, row[key], "+") for key in ("difference", "difference_low", "difference_high")}
        line |= {key: f"{row[key]:g}" for key in ("learning_rate", "margin") if line[key] != ""}
        line |= {key: printed("share", row[key]) for key in ("share", "paper_share")}
        counts = ("train_rows", "rank", "trainable", "head", "alarms", "difference_n")
        line |= {key: f"{row[key]:.0f}" for key in counts if line[key] != ""}
        lines.append(line)
    return pd.DataFrame(lines, columns=frame.columns).to_csv(index=False, lineterminator="\n")


def read_summary() -> pd.DataFrame:
    """`results/summary.csv` as `parsed`; FileNotFoundError where it is not made yet, ValueError where it is damaged."""
    path = files.RESULTS / "summary.csv"
    if not path.exists():
        raise FileNotFoundError(f"expected {path}, found no such file: `make summary` makes it from the records")
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): `make summary` makes it from the records") from error


def parsed(text: str) -> pd.DataFrame:
    """The rows of a summary's text; every cell is a string."""
    return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
