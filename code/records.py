"""One immutable JSON a run: what was asked, on what, with what, and what came out.

    results/runs/<scale>/<name with / as -->--seed<K>.json            finished runs
    results/runs/<scale>/unfinished/<the same>--<n>.json              failed and interrupted ones
    results/predictions/<scale>/<the same>.jsonl                      what the model wrote

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

import paths
from settings import Settings
from tasks import TASKS

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "nltk", "rouge-score", "pycocoevalcap")


def run_id(name: str, seed: int) -> str:
    """The name of a run's files: `table3--gpt2--lora-r4--seed0`."""
    return f"{name.replace('/', '--')}--seed{seed}"


def record_path(name: str, scale: str, seed: int) -> Path:
    """Where the record of the run is, or would be."""
    return paths.RESULTS / "runs" / scale / f"{run_id(name, seed)}.json"


def predictions_path(name: str, scale: str, seed: int) -> Path:
    """Where what the run's model answered is, or would be."""
    return paths.RESULTS / "predictions" / scale / f"{run_id(name, seed)}.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """Write the file so that it is there whole or, if the process is killed, as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_record(record: dict[str, Any]) -> Path:
    """Write a finished record; FileExistsError where the run is recorded already."""
    path = record_path(record["name"], record["scale"], record["seed"])
    if path.exists():
        raise FileExistsError(f"{path} exists: a record is never overwritten. Delete it to measure anew")
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def write_unfinished(record: dict[str, Any]) -> Path:
    """Keep a failed or interrupted run apart, by a number of its own; FileExistsError if another process took it."""
    folder = record_path(record["name"], record["scale"], record["seed"]).parent / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    name = run_id(record["name"], record["seed"])
    last = max((int(path.stem.rpartition("--")[2]) for path in folder.glob(f"{name}--*.json")), default=0)
    path = folder / f"{name}--{last + 1}.json"
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def write_predictions(name: str, scale: str, seed: int, predictions: list[dict[str, Any]]) -> Path:
    """Write the answers, a JSON object a line; where they are."""
    path = predictions_path(name, scale, seed)
    write_atomically(path, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions))
    return path


def read_record(name: str, scale: str, seed: int) -> dict[str, Any] | None:
    """The finished record of the run, whatever its settings were; None where there is none."""
    path = record_path(name, scale, seed)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def is_declared(record: dict[str, Any], settings: Settings) -> bool:
    """Whether a record is of these settings and of their task's version now: no other counts as a run of them.

    A setting that is newer than the record had its default then.
    """
    defaults = {field.name: field.default for field in fields(Settings) if field.default is not MISSING}
    then, now = (json.loads(json.dumps(found)) for found in (defaults | record["settings"], asdict(settings)))
    return record["task_version"] == TASKS[settings.task].version and then == now


def read_records(scale: str) -> list[dict[str, Any]]:
    """All finished records of a scale, by name and seed."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in (paths.RESULTS / "runs" / scale).glob("*.json")]
    return sorted(found, key=lambda r: (r["name"], r["seed"]))


def unfinished(scale: str, status: str) -> int:
    """How many runs of that scale failed or were interrupted."""
    folder = paths.RESULTS / "runs" / scale / "unfinished"
    return sum(json.loads(p.read_text(encoding="utf-8"))["status"] == status for p in folder.glob("*.json"))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy without git history is a legitimate place to run
    return done.stdout.strip()


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
