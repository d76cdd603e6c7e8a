"""Records -> tables: ours beside the paper's column, never mixed.

A row is one experiment at one scale, with every seed. E2E cells are means over seeds, GLUE cells
medians, as in the paper's Tables 3 and 2. GLUE has two columns that are never mixed: the paper's
rule (the best epoch on the split that is reported) and the honest one (the epoch chosen on held-out
training rows). The paper's numbers stand in columns of their own, from `data/paper.csv`, and the
verdict is about the pattern: a method against full fine-tuning of the same base at the same scale.
"""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

import pandas as pd

import paths
import records
from experiments import resolve, select
from settings import Experiment, Settings
from tasks import TASKS, GlueTask

E2E_METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "slot_error_rate")
NOT_PERCENT = ("NIST", "CIDEr")  # printed as they are; everything else times 100
EQUAL_WITHIN = 1.0  # points: smaller differences are called equal; the paper's own spreads reach that


def paper_values(experiment: Experiment) -> dict[str, str]:
    """Metric -> the paper's number as printed, `70.4±0.1` where it prints a spread; {} where it has no such row."""
    if experiment.cell is None:
        return {}
    glue = experiment.table == "table2"
    model, method, trainable = experiment.cell
    paper = pd.read_csv(paths.DATA / "paper.csv", dtype=str, keep_default_na=False)
    row = paper[
        (paper.table == ("table2" if glue else "table3"))
        & (paper.model == model)
        & (paper.method == method)
        & (paper.trainable == trainable)
    ]
    values = {r.metric: r.value + (f"±{r.spread}" if r.spread else "") for r in row.itertuples()}
    if not glue:
        return values
    task = f"{TASKS[experiment.paper.task].title} "
    return {metric.removeprefix(task): value for metric, value in values.items() if metric.startswith(task)}


def seeds_of(experiment: Experiment, scale: str) -> list[dict]:
    """The experiment's finished records whose task version and settings are those declared now."""
    settings = resolve(experiment, scale)
    return [
        record
        for record in records.read_records(scale)
        if record["name"] == experiment.name
        and record["task_version"] == TASKS[settings.task].version
        and _settings_of(record) == settings
    ]


def _settings_of(record: dict) -> Settings:
    """As recorded; a setting that is newer than the record had its default then."""
    return Settings(**{key: tuple(v) if isinstance(v, list) else v for key, v in record["settings"].items()})


def table(name: str, scale: str, only: list[str] | None = None, variant: str = "paper") -> pd.DataFrame:
    """One row an experiment: seeds, parameters, our metrics, the paper's, the verdict."""
    rows, full = [], {}
    for experiment in select(name, scale, only, variant):
        settings = resolve(experiment, scale)
        found = seeds_of(experiment, scale)
        row: dict[str, Any] = {"experiment": experiment.name, "model": settings.model, "n": len(found)}
        row["seeds"] = " ".join(str(r["seed"]) for r in found)
        row["trainable"] = found[0]["parameters"]["trainable"] if found else None
        row |= _measured(settings, found)
        row |= {f"paper {metric}": value for metric, value in paper_values(experiment).items()}
        group = (settings.model, settings.task)
        if settings.method == "full":
            full[group] = row["score"]
        row["verdict"] = _verdict(row, full.get(group), settings)
        rows.append(row)
    return pd.DataFrame(rows).drop(columns="score")


def _measured(settings: Settings, found: list[dict]) -> dict[str, Any]:
    """The row's own numbers; `score` is the main one, for the verdict."""
    task = TASKS[settings.task]
    if settings.evaluate == "selection":
        values = [r.get("selection_score", r.get("dev_loss")) for r in found]
        score = fmean(values) if values else None
        return {"learning rate": settings.learning_rate, "on selection rows": score, "score": score}
    if not isinstance(task, GlueTask):
        cells = {metric: _statistic(fmean, found, "scores", metric) for metric in E2E_METRICS}
        return cells | {"score": cells[task.main_metric]}
    metric = task.main_metric
    each = [100 * r["scores"][metric] for r in found]
    score = _statistic(median, found, "scores", metric)
    return {
        "metric": metric,
        "paper's rule": score,
        "honest": _statistic(median, found, "honest_scores", metric),
        "each seed": " ".join(f"{value:.1f}" for value in each),
        "alarms": sum(r["scores"]["alarm"] is not None for r in found),
        "data": "subset" if any(any(r["subset"].values()) for r in found) else "whole" if found else None,
        "score": score,
    }


def _statistic(statistic: Any, found: list[dict], scores: str, metric: str) -> float | None:
    values = [record[scores].get(metric) for record in found]
    if not values or None in values:
        return None
    return statistic(values) * (1 if metric in NOT_PERCENT else 100)


def _verdict(row: dict, full: float | None, settings: Settings) -> str:
    if row["n"] == 0:
        return "not run"
    if settings.evaluate == "selection":
        return "for choosing only"
    if settings.method == "full":
        return "reference"
    if full is None or row["score"] is None:
        return "no full fine-tuning to compare with"
    gap = row["score"] - full
    word = "equal to" if abs(gap) <= EQUAL_WITHIN else "above" if gap > 0 else "below"
    seeds = f"n={row['n']}" + (", no interval" if row["n"] == 1 else "")
    return f"{gap:+.1f} {TASKS[settings.task].main_metric}, {word} full ({seeds})"


def as_text(frame: pd.DataFrame, name: str, scale: str) -> str:
    """The table for a terminal, with scale, statistic, protocol and what is missing."""
    shown = frame.dropna(axis="columns", how="all")
    formats = {metric: (lambda v: f"{v:.2f}") for metric in (*E2E_METRICS, "paper's rule", "honest")}
    formats |= {metric: (lambda v: f"{v:.4f}") for metric in (*NOT_PERCENT, "on selection rows")}
    formats |= {"trainable": lambda v: f"{v:,.0f}", "learning rate": lambda v: f"{v:g}"}
    body = shown.to_string(index=False, na_rep="-", formatters={k: f for k, f in formats.items() if k in shown})
    missing = [e for e, n in zip(frame["experiment"], frame["n"], strict=True) if n == 0]
    statistic = "mean" if "BLEU" in frame else "median"
    protocol = "; text protocol of the official data (pre-tokenised)" if "BLEU" in frame else ""
    lines = [
        f"{name} at scale {scale}: {statistic} over seeds; all but {' and '.join(NOT_PERCENT)} x 100{protocol}",
        body,
        f"The paper's columns are its own models at its own scale, not the same work; differences within "
        f"{EQUAL_WITHIN:g} points are called equal.",
    ]
    lines += [f"missing: {e}  ->  python code/reproduce.py run {e} --scale {scale} --seed 0" for e in missing]
    stopped = {status: records.unfinished(scale, status) for status in ("failed", "diverged", "interrupted")}
    if any(stopped.values()):
        lines.append("kept apart: " + ", ".join(f"{n} {status}" for status, n in stopped.items() if n))
    return "\n".join(lines)
