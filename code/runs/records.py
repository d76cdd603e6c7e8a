"""One JSON file a run, never changed: its settings, data, software and results.

    results/runs/<scale>/<name with / as -->--seed<K>.json            finished runs
    results/runs/<scale>/unfinished/<the same>--<n>.json              failed and interrupted ones
    results/predictions/<scale>/<the same>.jsonl                      what the model wrote
    results/rescored/<scale>/<the same>.json                          scores of it that are newer than the record

A finished record is written whole or not at all, and none is ever overwritten. This module needs
neither torch nor transformers, so that tables and figures are made in a second.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import MISSING, asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import files
from experiments.settings import Experiment, Settings
from files import write_atomically
from tasks.catalogue import DEV_LOSS, TASKS, Metric

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "nltk", "rouge-score", "pycocoevalcap")


def run_id(name: str, seed: int) -> str:
    """The name of a run's files: `table3--gpt2-mini--lora-r4--seed0`."""
    return f"{name.replace('/', '--')}--seed{seed}"


def record_path(name: str, scale: str, seed: int) -> Path:
    """The path of the run's record, existing or not."""
    return files.RESULTS / "runs" / scale / f"{run_id(name, seed)}.json"


def predictions_path(name: str, scale: str, seed: int) -> Path:
    """The path of the run's predictions, existing or not."""
    return files.RESULTS / "predictions" / scale / f"{run_id(name, seed)}.jsonl"


def write_record(record: dict[str, Any]) -> Path:
    """Write a finished record; FileExistsError where the run is recorded already."""
    path = record_path(record["name"], record["scale"], record["seed"])
    if path.exists():
        raise FileExistsError(f"{path} exists: a record is never overwritten. Delete it to measure anew")
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def write_unfinished(record: dict[str, Any]) -> Path:
    """Record a failed or interrupted run under the next free number; FileExistsError if another process took it."""
    folder = record_path(record["name"], record["scale"], record["seed"]).parent / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    name = run_id(record["name"], record["seed"])
    last = max((int(path.stem.rpartition("--")[2]) for path in folder.glob(f"{name}--*.json")), default=0)
    path = folder / f"{name}--{last + 1}.json"
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def write_predictions(name: str, scale: str, seed: int, predictions: list[dict[str, Any]]) -> Path:
    """Write the predictions, a JSON object a line; return their path."""
    path = predictions_path(name, scale, seed)
    write_atomically(path, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions))
    return path


def read_record(path: Path) -> dict[str, Any] | None:
    """The finished record of that path, whatever its settings, with its newer scores; None if there is none."""
    if not path.exists():
        return None
    record, newer = json.loads(path.read_text(encoding="utf-8")), rescored_path(path)
    if newer.exists():
        record["scores"] = json.loads(newer.read_text(encoding="utf-8"))["scores"] | record["scores"]
    return record


def rescored_path(record: Path) -> Path:
    """Where the scores are that the record in this path lacks, or would be."""
    return files.RESULTS / "rescored" / record.parent.name / record.name


def is_declared(record: dict[str, Any], settings: Settings) -> bool:
    """Whether a record has these settings and their task's present version.

    A record that is older than a setting has its default.
    """
    defaults = {field.name: field.default for field in fields(Settings) if field.default is not MISSING}
    recorded, declared = (json.loads(json.dumps(each)) for each in (defaults | record["settings"], asdict(settings)))
    return record["task_version"] == TASKS[settings.task].version and recorded == declared


def records_of(experiment: Experiment) -> list[dict[str, Any]]:
    """The experiment's finished records with its present settings and task version, by seed."""
    records = map(read_record, record_paths(experiment))
    return sorted((r for r in records if is_declared(r, experiment.settings)), key=lambda r: r["seed"])


def record_paths(experiment: Experiment) -> list[Path]:
    """The paths of the experiment's records, whatever their settings."""
    folder = files.RESULTS / "runs" / experiment.scale
    return sorted(folder.glob(f"{experiment.name.replace('/', '--')}--seed*.json"))


def main_score(record: dict[str, Any]) -> tuple[str, Metric, float]:
    """The score that judges a run, or chooses a learning rate: its name, how it is shown, its value."""
    task = TASKS[record["settings"]["task"]]
    if "scores" in record:
        name, value = task.main_metric, record["scores"][task.main_metric]
    else:
        name, key = task.selection
        value = record[key]
    metric = (task.metrics | DEV_LOSS)[name]
    return name, metric, value / metric.unit


def read_records(scale: str) -> list[dict[str, Any]]:
    """All finished records of a scale, by name and seed."""
    records = map(read_record, (files.RESULTS / "runs" / scale).glob("*.json"))
    return sorted(records, key=lambda r: (r["name"], r["seed"]))


def unfinished(scale: str, status: str) -> int:
    """The number of unfinished runs of that scale and status."""
    folder = files.RESULTS / "runs" / scale / "unfinished"
    return sum(json.loads(p.read_text(encoding="utf-8"))["status"] == status for p in folder.glob("*.json"))


def _git(*arguments: str) -> str | None:
    try:
        completed = subprocess.run(["git", *arguments], cwd=files.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy without git history is a legitimate place to run
    return completed.stdout.strip()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """Versions, commit and machine, for the record."""
    changed = _git("status", "--porcelain", "--", "code", "data", "requirements.txt", "constraints.txt")
    return {
        "python": platform.python_version(),
        "packages": {package: _installed(package) for package in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
    }
