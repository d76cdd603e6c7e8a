"""Records -> tables: ours beside the paper's column, never mixed.

A row is one experiment at one scale; its cell is the mean over its seeds (Table 3's statistic),
with every seed's value kept. The paper's numbers stand in columns of their own, from
`data/paper.csv`, and the verdict is about the pattern: LoRA against full fine-tuning of the same
base at the same scale.
"""

from __future__ import annotations

from statistics import fmean

import pandas as pd

import paths
import records
from experiments import Experiment, resolve, select
from tasks import TASKS

SHOWN = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "slot_error_rate")
PERCENT = ("BLEU", "METEOR", "ROUGE_L", "slot_error_rate")  # Table 3 prints these times 100
EQUAL_WITHIN = 1.0  # BLEU points: smaller differences are called equal, the paper's own reruns spread as much


def paper_values(cell: tuple[str, str, str] | None, table: str) -> dict[str, str]:
    """Metric -> the paper's number as printed, `70.4±0.1` where it prints a spread."""
    if cell is None:
        return {}
    model, method, trainable = cell
    paper = pd.read_csv(paths.DATA / "paper.csv", dtype=str, keep_default_na=False)
    row = paper[
        (paper.table == table) & (paper.model == model) & (paper.method == method) & (paper.trainable == trainable)
    ]
    return {r.metric: r.value + (f"±{r.spread}" if r.spread else "") for r in row.itertuples()}


def seeds_of(experiment: Experiment, scale: str) -> list[dict]:
    """The experiment's finished records whose task version and settings are those declared now."""
    settings = resolve(experiment, scale)
    return [
        record
        for record in records.read_records(scale)
        if record["name"] == experiment.name
        and record["task_version"] == TASKS[settings.task].version
        and all(record["settings"][k] == _plain(v) for k, v in vars(settings).items())
    ]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def table(name: str, scale: str, only: list[str] | None = None, variant: str = "paper") -> pd.DataFrame:
    """One row an experiment: seeds, parameters, our metrics, the paper's, the verdict."""
    rows, full = [], {}
    for experiment in select(name, scale, only, variant):
        settings = resolve(experiment, scale)
        found = seeds_of(experiment, scale)
        row = {"experiment": experiment.name, "model": settings.model, "n": len(found)}
        row["seeds"] = " ".join(str(r["seed"]) for r in found)
        row["trainable"] = found[0]["parameters"]["trainable"] if found else None
        for metric in SHOWN:
            values = [r["scores"][metric] for r in found if r["scores"].get(metric) is not None]
            factor = 100 if metric in PERCENT else 1
            row[metric] = factor * fmean(values) if values and len(values) == len(found) else None
        row |= {f"paper {m}": v for m, v in paper_values(experiment.cell, "table3").items()}
        if settings.method == "full":
            full[settings.model, settings.length_penalty, settings.keep] = row["BLEU"]
        row["verdict"] = _verdict(
            row, full.get((settings.model, settings.length_penalty, settings.keep)), settings.method
        )
        rows.append(row)
    return pd.DataFrame(rows)


def _verdict(row: dict, full: float | None, method: str) -> str:
    if row["n"] == 0:
        return "not run"
    if method == "full":
        return "reference"
    if full is None or row["BLEU"] is None:
        return "no full fine-tuning to compare with"
    gap = row["BLEU"] - full
    word = "equal to" if abs(gap) <= EQUAL_WITHIN else "above" if gap > 0 else "below"
    seeds = f"n={row['n']}" + (", no interval" if row["n"] == 1 else "")
    return f"{gap:+.1f} BLEU, {word} full ({seeds})"


def as_text(frame: pd.DataFrame, name: str, scale: str) -> str:
    """The table for a terminal, with scale, protocol, seeds and what is missing."""
    shown = frame.drop(columns=[c for c in frame.columns if frame[c].isna().all() and c != "BLEU"])
    formats = {m: (lambda v: f"{v:.2f}") for m in SHOWN} | {"NIST": lambda v: f"{v:.4f}", "CIDEr": lambda v: f"{v:.4f}"}
    formats["trainable"] = lambda v: f"{v:,.0f}"
    body = shown.to_string(index=False, na_rep="-", formatters={k: f for k, f in formats.items() if k in shown})
    missing = [e for e, n in zip(frame["experiment"], frame["n"], strict=True) if n == 0]
    lines = [
        f"{name} at scale {scale}; protocol of the official data (pre-tokenised); mean over seeds; "
        "BLEU, METEOR, ROUGE-L and slot errors x 100",
        body,
        f"The paper's columns are its own GPT-2 at its own scale, not the same work; differences within "
        f"{EQUAL_WITHIN:g} BLEU are called equal.",
    ]
    lines += [f"missing: {e}  ->  python code/reproduce.py run {e} --scale {scale} --seed 0" for e in missing]
    stopped = {s: records.unfinished(scale, s) for s in ("failed", "diverged", "interrupted")}
    if any(stopped.values()):
        lines.append("kept apart: " + ", ".join(f"{n} {s}" for s, n in stopped.items() if n))
    return "\n".join(lines)
