"""Scores that were added to a task after a run: computed from its texts, which are kept, and stored beside its record.

    python code/make.py rescore --data-dir data    # for every record with texts that lacks a score

A record is never changed. `records.read_record` adds what stands in `results/rescored`; a score of the record itself
always wins.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import files
from experiments.catalogue import EXPERIMENTS
from experiments.settings import Settings
from files import check_room, read_json, write_json
from runs import records
from tasks.catalogue import TASKS
from tasks.e2e.data import data_fingerprint, group_by_context
from tasks.e2e.meteor import meteor_unavailable


def rescore(scale: str, data_dir: Path | None = None) -> int:
    """Store the scores that records of texts lack; how many records got them. Raises as the task's `load`.

    A record whose texts are lost or damaged is named and passed over.
    """
    check_room(files.RESULTS)
    lacking = [record for record in records.read_records(scale) if _lacks(record)]
    rescored = 0
    for record in tqdm(lacking, desc="rescoring", unit="record"):
        name, seed = record["name"], record["seed"]
        texts = records.read_predictions(record)
        if not texts:
            tqdm.write(f"passed over: no whole {records.predictions_path(name, scale, seed)} to score", sys.stderr)
            continue
        scores = _scores(record, texts, EXPERIMENTS[name].settings, data_dir)
        path = records.record_path(name, scale, seed)
        own = read_json(path)["scores"]
        newer = {key: score for key, score in scores.items() if key not in own and score is not None}
        if None in scores.values():
            tqdm.write(f"{name} seed {seed}: without METEOR, {meteor_unavailable()}", sys.stderr)
        facts = {"name": name, "scale": scale, "seed": seed, "scores": newer, **records.provenance()}
        write_json(records.rescored_path(path), facts)
        rescored += 1
    return rescored


def _lacks(record: dict[str, Any]) -> bool:
    if record["name"] not in EXPERIMENTS or "scores" not in record:
        return False
    task = TASKS[EXPERIMENTS[record["name"]].settings.task]
    return task.score is not None and not task.metrics.keys() <= record["scores"].keys()


def _scores(
    record: dict[str, Any], texts: list[dict[str, Any]], settings: Settings, data_dir: Path | None
) -> dict[str, Any]:
    """All scores of the record's texts; ValueError if they are not of the data at hand."""
    task = TASKS[settings.task]
    official = task.official(data_dir) if record.get("text") == "official" else None
    split = settings.evaluate
    rows = official[split] if official else task.load(split, settings.protocol, data_dir)
    inputs = group_by_context(rows)
    expected, found = record["data_fingerprint"][split], data_fingerprint(rows)
    if expected != found or [line["mr"] for line in texts] != [item.mr for item in inputs]:
        raise ValueError(
            f"{record['predictions']} is of other data than those at hand; expected {expected}, found {found}: "
            "give the data with --data-dir"
        )
    return task.score(inputs, [line["prediction"] for line in texts], settings)[0]
