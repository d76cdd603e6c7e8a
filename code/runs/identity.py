"""What a run is of: its data, and the machines of its sittings. A record, or a checkpoint, of another does not answer.

of_other_data(run)          # "recorded with other data (train 1f2e..., not 0a1b...); name ...", or None
with_own_folder(job)        # its checkpoints lie apart from those of other settings, seeds and data
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import files
from experiments.settings import Job
from methods.catalogue import trains
from runs import e2e, glue, records
from runs.run import Run, run_identity
from tasks.catalogue import TASKS

MACHINES_FILE = "machines.json"  # beside the checkpoints
FINGERPRINTS = {"e2e": e2e.data_fingerprint, "glue": glue.data_fingerprint}


def job_of(run: Run) -> Job:
    """What the run is asked to do; its checkpoints are named after it."""
    return Job(run.experiment.settings, run.seed, run.log.with_suffix(""), run.data_dir)


def with_own_folder(job: Job, started_from: str | None = None) -> Job:
    """The job with a folder for its checkpoints beside `job.folder`, named by settings, seed, task version and data.

    `started_from` is the `origin` of the run whose adapter is trained on. A stopped run with another of these is
    another run: its checkpoints are not continued.
    """
    data = data_fingerprint(job) if trains(job.settings) else {}
    data |= {"started_from": started_from} if started_from else {}
    identity = run_identity(job.settings, job.seed, data)
    return replace(job, folder=job.folder.with_name(f"{job.folder.name}--{identity}"))


def data_fingerprint(job: Job) -> dict[str, str]:
    """The fingerprint of each split that the job reads; raises as the loading of its task's data does."""
    return FINGERPRINTS[TASKS[job.settings.task].workflow](job)


def other_data(record: dict[str, Any], job: Job) -> str | None:
    """The splits whose rows in the record are not those that the job reads now; None where all are the same.

    Nothing is fetched for it: None too where the data are not on this machine, or no fingerprint is in the record.
    Raises FileNotFoundError where the folder that is named for the data does not exist.
    """
    try:
        with files.nothing_fetched():
            present = data_fingerprint(job) if "data_fingerprint" in record else {}
    except files.NotAsked:
        return None
    theirs = record.get("data_fingerprint", {})
    differing = [split for split in theirs | present if theirs.get(split) != present.get(split)]
    return ", ".join(f"{split} {theirs.get(split)}, not {present.get(split)}" for split in differing) or None


def of_other_data(run: Run) -> str | None:
    """Why the record of a run does not answer for it: it, or the run that it starts from, is of other data than now."""
    for needed in filter(None, (run, run.start)):
        if needed.recorded and (differing := other_data(records.read_record(needed.record), job_of(needed))):
            what = "recorded" if needed == run else f"it starts from {needed}, which is recorded"
            remedy = f"name the data of the record (--data-dir, LORA_DATA_DIR), or delete {needed.record}"
            return f"{what} with other data ({differing}); {remedy} to measure anew"
    if run.start and run.recorded and run.start.recorded:
        theirs = records.read_record(run.record).get("started_from", run.start.origin)
        if theirs != run.start.origin:
            return f"recorded as started from {theirs}, found {run.start.origin}; delete {run.record} to measure anew"
    return None


def on_machines(folder: Path, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The machines, programs and base model of all sittings of a run, each once; kept beside its checkpoints.

    Raises ValueError where the checkpoints are of other base weights, or of another precision: they are not continued.
    """
    path = folder / MACHINES_FILE
    machines = files.read_json(path)["machines"] if path.exists() else []
    now = {key: measured[key] for key in ("base_fingerprint", "bfloat16", "device", "threads")} | records.provenance()
    for key, what in (("base_fingerprint", "base model"), ("bfloat16", "precision (bfloat16 or not)")):
        if any(machine[key] != now[key] for machine in machines):
            raise ValueError(
                f"expected the {what} of the checkpoints in {folder}, {machines[0][key]}, found {now[key]}; bring that "
                "one back, or delete the folder to start anew"
            )
    if now not in machines:
        machines.append(now)
        files.write_json(path, {"machines": machines})
    return machines
