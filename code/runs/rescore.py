"""Scores that were added to a task after a run: computed from its texts, which are kept, and stored beside its record.

    python code/make.py rescore --data-dir data    # for every record with texts that lacks a score

A record is never changed. `records.read_record` adds what stands in `results/rescored`; a score of the record itself
always wins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import files
from experiments.catalogue import EXPERIMENTS
from experiments.settings import Settings
from files import write_atomically
from runs import records
from tasks.catalogue import TASKS
from tasks.e2e.data import data_fingerprint, group_by_context


def rescore(scale: str, data_dir: Path | None = None) -> int:
    """Store the scores that records of texts lack; how many records there were. Raises as the task's `load`."""
    lacking = [record for record in records.read_records(scale) if _lacks(record)]
    for record in tqdm(lacking, desc="rescoring", unit="record"):
        settings = EXPERIMENTS[record["name"]].settings
        scores = _scores(record, settings, data_dir)
        path = records.rescored_path(records.record_path(record["name"], scale, record["seed"]))
        facts = {"scores": {key: scores[key] for key in scores if key not in record["scores"]}, **records.provenance()}
        write_atomically(path, json.dumps(facts, indent=1) + "\n")
    return len(lacking)


def _lacks(record: dict[str, Any]) -> bool:
    task = TASKS[record["settings"]["task"]]
    return task.score is not None and "scores" in record and not task.metrics.keys() <= record["scores"].keys()


def _scores(record: dict[str, Any], settings: Settings, data_dir: Path | None) -> dict[str, Any]:
    """All scores of the record's texts; ValueError if they are not of the data at hand."""
    rows = TASKS[settings.task].load("test", settings.protocol, data_dir)
    inputs = group_by_context(rows)
    path = files.RESULTS / "predictions" / record["scale"] / record["predictions"]
    texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    same = data_fingerprint(rows) == record["data_fingerprint"]["test"]
    if not same or [line["mr"] for line in texts] != [item.mr for item in inputs]:
        raise ValueError(
            f"{path.name} is of other test data than those at hand; expected {record['data_fingerprint']['test']}, "
            f"found {data_fingerprint(rows)}: give the data with --data-dir"
        )
    return TASKS[settings.task].score(inputs, [line["prediction"] for line in texts], settings)[0]
