"""One JSON file a run, never changed: its settings, data, software and results.

    results/runs/<scale>/<name with / as -->--seed<K>.json            finished runs
    results/runs/<scale>/unfinished/<the same>--<n>.json              failed and interrupted ones
    results/predictions/<scale>/<the same>.jsonl                      what the model wrote
    results/rescored/<scale>/<the same>.json                          scores of it that are newer than the record

A finished record is written whole or not at all, and none is ever overwritten. Each file holds the name, scale and
seed of its run and a digest of its content. A file that is damaged, or a copy under another name, is named once, passed
over and counted (`damaged`). A record that is older than digests has none; it must have the entries of OLDER.

This module needs neither torch nor transformers, so that tables and figures are made in a second.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import files
from experiments.settings import Experiment, Settings
from files import digest, read_json, remove_leftovers, write_atomically, write_json
from tasks.catalogue import DEV_LOSS, TASKS, Metric

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "nltk", "rouge-score", "pycocoevalcap")
OLDER = {  # entries of a record without a digest, and their types
    "seed": int, "status": str, "started": str, "settings": dict, "task_version": int, "device": str, "threads": int,
    "parameters": dict, "data_fingerprint": dict, "history": list, "training_seconds": float,
}  # fmt: skip
Content = TypeVar("Content")


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
    remove_leftovers(path)
    write_json(path, record)
    return path


def write_unfinished(record: dict[str, Any]) -> Path:
    """Record a failed or interrupted run under the next free number; FileExistsError if another process took it."""
    name, scale, seed = record["name"], record["scale"], record["seed"]
    number = max(map(_number, notes(name, scale, seed)), default=0) + 1
    path = _note_path(name, scale, seed, number)
    remove_leftovers(path)
    write_json(path, record | {"number": number}, new=True)
    return path


def write_predictions(name: str, scale: str, seed: int, predictions: list[dict[str, Any]]) -> Path:
    """Write the predictions, a JSON object a line; return their path."""
    path = predictions_path(name, scale, seed)
    remove_leftovers(path)
    lines = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    write_atomically(path, lines.encode(errors="backslashreplace"))  # JSON's escape for half a character
    return path


def notes(name: str, scale: str, seed: int) -> list[Path]:
    """The paths of the notes of the run's failures and interruptions, without a drive's copies of them."""
    first = _note_path(name, scale, seed, 1)
    return [path for path in first.parent.glob(f"{run_id(name, seed)}--*.json") if _number(path)]


def _note_path(name: str, scale: str, seed: int, number: int) -> Path:
    return record_path(name, scale, seed).parent / "unfinished" / f"{run_id(name, seed)}--{number}.json"


def _number(note: Path) -> int:
    """The number at the end of a note's name; 0 if there is something else."""
    end = note.stem.rpartition("--")[2]
    return int(end) if end.isdecimal() else 0


def read_record(path: Path) -> dict[str, Any] | None:
    """The finished record of that path, whatever its settings, with its newer scores; None if there is none.

    A damaged record, and a copy of another run's, is as none, which is said.
    """
    record = _whole(_record, path) if path.exists() else None
    if record and (rescored := rescored_path(path)).exists():
        record["scores"] = (_whole(_newer_scores, rescored) or {}) | record.get("scores", {})
    return record


def read_predictions(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run wrote, a dictionary a text; empty if it has no file of texts or, which is said, a damaged one."""
    path = predictions_path(record["name"], record["scale"], record["seed"])
    return _whole(lambda path: _texts(path, record), path) or [] if path.exists() else []


def damage(record: Path) -> str | None:
    """What is wrong with the file of a record; None if nothing is."""
    try:
        _record(record)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def damaged(scale: str) -> list[Path]:
    """The files of the scale that are damaged, or copies under another name, and therefore passed over."""
    folder, rescored = files.RESULTS / "runs" / scale, files.RESULTS / "rescored" / scale
    kinds = ((_record, folder), (_note, folder / "unfinished"), (_newer_scores, rescored))
    paths = [path for read, place in kinds for path in sorted(place.glob("*.json")) if _whole(read, path) is None]
    texts = {predictions_path(r["name"], scale, r["seed"]): r for r in read_records(scale)}
    return paths + [path for path, record in texts.items() if path.exists() and not read_predictions(record)]


def _whole(read: Callable[[Path], Content], path: Path) -> Content | None:
    """What `read` makes of the file; None, which is said, if the file is damaged."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        _say(f"passed over: {error}")
        return None


@cache
def _say(message: str) -> None:
    """Print the message, once in a process."""
    print(message, file=sys.stderr, flush=True)


def _of_its_run(path: Path, place: Callable[[dict[str, Any]], Path]) -> dict[str, Any]:
    """What the file holds; ValueError if the `place` of such content is another one."""
    content = read_json(path)
    try:
        own = place(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it names no run; restore or delete it") from error
    if own != path:
        raise ValueError(f"{path} is a copy of {own.name}, the file of another run: delete it")
    return content


def _own_path(content: dict[str, Any]) -> Path:
    return record_path(content["name"], content["scale"], content["seed"])


def _record(path: Path) -> dict[str, Any]:
    record = _of_its_run(path, _own_path)
    if record.pop("digest", None) is None:
        lacking = [key for key, kind in OLDER.items() if not isinstance(record.get(key), kind)]
        if lacking or not isinstance(record.get("scores", {}), dict):
            raise ValueError(f"{path} is damaged: its {', '.join(lacking or ['scores'])} is lost; restore or delete it")
    return record


def _note(path: Path) -> dict[str, Any]:
    def own(note: dict[str, Any]) -> Path:
        return _note_path(note["name"], note["scale"], note["seed"], note.get("number", _number(path)))

    return _of_its_run(path, own)


def _newer_scores(path: Path) -> dict[str, Any]:
    """The scores beside a record; their file names no run if it is older than digests."""
    content = read_json(path)
    if "digest" in content:
        _of_its_run(path, lambda scores: rescored_path(_own_path(scores)))
    if not isinstance(content.get("scores"), dict):
        raise ValueError(f"{path} is damaged: it holds no scores; restore or delete it")
    return content["scores"]


def _texts(path: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore or delete it") from error
    expected = record.get("predictions_digest", digest(lines)), record.get("inputs", len(lines))
    if expected != (digest(lines), len(lines)) or not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{path} is damaged: these are not the texts of its record; restore or delete it")
    return lines


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
    records = filter(None, map(read_record, record_paths(experiment)))
    return sorted((r for r in records if is_declared(r, experiment.settings)), key=lambda r: r["seed"])


def record_paths(experiment: Experiment) -> list[Path]:
    """The paths of the experiment's records, whatever their settings."""
    folder = files.RESULTS / "runs" / experiment.scale
    return sorted(folder.glob(f"{experiment.name.replace('/', '--')}--seed*.json"))


def main_score(record: dict[str, Any]) -> tuple[str, Metric, float | None]:
    """The score that judges a run, or chooses a learning rate: its name, how it is shown, its value if measured."""
    task = TASKS[record["settings"]["task"]]
    if "scores" in record:
        name, value = task.main_metric, record["scores"].get(task.main_metric)
    else:
        name, key = task.selection
        value = record[key]
    metric = (task.metrics | DEV_LOSS)[name]
    return name, metric, None if value is None else value / metric.unit


def read_records(scale: str) -> list[dict[str, Any]]:
    """All finished records of a scale, by name and seed."""
    records = filter(None, map(read_record, (files.RESULTS / "runs" / scale).glob("*.json")))
    return sorted(records, key=lambda r: (r["name"], r["seed"]))


def unfinished(scale: str, status: str) -> int:
    """The number of unfinished runs of that scale and status."""
    paths = (files.RESULTS / "runs" / scale / "unfinished").glob("*.json")
    return sum(note.get("status") == status for note in filter(None, (_whole(_note, path) for path in paths)))


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
