"""One run as a piece of work: its name, its files, what it starts from, and the lock that keeps it to one process.

    run = Run(find("table3/gpt2/lora-r4"), "cpu", 0)
    run.recorded, run.adapter, run.start

Beside its checkpoints, outside git, a run has `CHECKPOINTS/<scale>/<run id>.log` and `.lock`. `runs.py` does it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import paths
import records
from experiments import find, resolve
from settings import Experiment

START_SEED = 0  # of a run that others start from: one checkpoint for all their seeds, as in the paper


class RunTaken(RuntimeError):
    """Another process is doing the run."""


@dataclass(frozen=True)
class Run:
    """One experiment at one scale with one seed: the unit of work."""

    experiment: Experiment
    scale: str
    seed: int
    data_dir: Path | None = None

    def __str__(self) -> str:
        return f"{self.experiment.name} seed {self.seed}"

    @property
    def recorded(self) -> bool:
        record = records.read_record(self.experiment.name, self.scale, self.seed)
        return record is not None and records.is_declared(record, resolve(self.experiment, self.scale))

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be recorded: the place is taken by a record that does not count as this run's."""
        path = records.record_path(self.experiment.name, self.scale, self.seed)
        if not path.exists() or self.recorded:
            return None
        return f"recorded with other settings or of another task version; delete {path} to measure anew"

    @property
    def log(self) -> Path:
        return paths.CHECKPOINTS / self.scale / f"{records.run_id(self.experiment.name, self.seed)}.log"

    @property
    def adapter(self) -> Path:
        """Where it keeps what it learnt, the whole model only if another run starts from it; outside git."""
        return paths.CHECKPOINTS / "adapters" / self.scale / records.run_id(self.experiment.name, self.seed)

    @property
    def start(self) -> Run | None:
        """The run whose adapter this one starts from."""
        name = resolve(self.experiment, self.scale).start_from
        return Run(find(name), self.scale, START_SEED, self.data_dir) if name else None

    @property
    def lacks_start(self) -> bool:
        """Whether there is a run to be done before it: the record of its start is in git, what that learnt is not."""
        return self.start is not None and not (self.start.recorded and self.start.adapter.exists())

    @property
    def command(self) -> list[str]:
        """What a worker gives to Python."""
        command = [str(paths.ROOT / "code" / "reproduce.py"), "run", self.experiment.name]
        command += ["--scale", self.scale, "--seed", str(self.seed)]
        return command + (["--data-dir", str(self.data_dir.resolve())] if self.data_dir else [])


def first_process() -> bool:
    """Whether this is the process that evaluates and records: always, but in the others of `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold what the file stands for; RunTaken where another process does.

    The kernel lets go of the lock when the process ends, however it ends. The file stays: if it were removed, a
    process that has it open and one that creates it anew would both hold "the" lock.
    """
    if not first_process():
        yield  # the first process holds it for all
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise RunTaken(f"{what} is being done by {holder}: wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def run_lock(run: Run) -> AbstractContextManager[None]:
    """The lock of the run, as `lock`."""
    return lock(run.log.with_suffix(".lock"), f"{run} at scale {run.scale}")


def taken(run: Run) -> bool:
    """Whether another process is doing the run."""
    try:
        with run_lock(run):
            return False
    except RunTaken:
        return True
