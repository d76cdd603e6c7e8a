"""One run: an experiment with a seed, its files, what it starts from, and the lock that keeps it to one process.

    run = Run(find("table3/gpt2-mini/lora-r4"), seed=0)
    run.recorded, run.adapter, run.start

Outside git, beside its checkpoints, a run has `CHECKPOINTS/<scale>/<run id>.log`, `.lock` and `.holder`. `execute.py`
does the run.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import files
from experiments.catalogue import find
from experiments.settings import Experiment, Settings, check_seed
from runs import records
from tasks.catalogue import TASKS

AGAIN = "interrupted; run the same command to continue"  # what a command says that was stopped
ORIGIN_FILE = "origin.txt"  # in an adapter's folder: the run that it is of
START_SEED = 0  # of a run from which others train on: one checkpoint for all their seeds, as in the paper


class RunTaken(RuntimeError):
    """Another process is doing the run."""


@dataclass(frozen=True)
class Run:
    """One experiment with one seed: the unit of work."""

    experiment: Experiment
    seed: int
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def __str__(self) -> str:
        return f"{self.experiment.name} seed {self.seed}"

    @property
    def record(self) -> Path:
        """The path of its record, existing or not."""
        return records.record_path(self.experiment.name, self.experiment.scale, self.seed)

    @property
    def recorded(self) -> bool:
        record = records.read_record(self.record)
        return record is not None and records.is_declared(record, self.experiment.settings)

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be recorded: a record that is damaged, or of other settings or task version, has its path."""
        if not self.record.exists() or self.recorded:
            return None
        other = f"recorded with other settings or of another task version; delete {self.record} to measure anew"
        return records.damage(self.record) or other

    @property
    def log(self) -> Path:
        return files.CHECKPOINTS / self.experiment.scale / f"{self.record.stem}.log"

    @property
    def adapter(self) -> Path:
        """The folder of what it learnt, outside git; a whole model is kept only if another run starts from it."""
        return files.CHECKPOINTS / "adapters" / self.experiment.scale / self.record.stem

    @property
    def start(self) -> Run | None:
        """The run whose adapter this one starts from; of the same seed, if it is scored and not trained on."""
        settings = self.experiment.settings
        seed = START_SEED if settings.epochs else self.seed
        return Run(find(settings.start_from), seed, self.data_dir) if settings.start_from else None

    @property
    def origin(self) -> str | None:
        """What ORIGIN_FILE says beside what the recorded run learnt; None without a record."""
        if (record := records.read_record(self.record)) is None:
            return None
        data = record.get("data_fingerprint", {}) | {key: record[key] for key in ("started_from",) if key in record}
        return f"{self.record.stem}--{run_identity(self.experiment.settings, self.seed, data)}"

    def require_own_adapter(self) -> None:
        """Raise ValueError where `adapter` holds what another run learnt, or this one on data that are not recorded."""
        place = self.adapter / ORIGIN_FILE
        if self.origin is None or not place.exists():
            return  # an adapter that is older than ORIGIN_FILE has none
        if (found := place.read_text(encoding="utf-8", errors="replace")) != self.origin:
            raise ValueError(
                f"expected in {self.adapter} what {self} learnt, {self.origin}, found {found}: delete that folder, and "
                "`reproduce.py run` makes it anew"
            )

    @property
    def lacks_start(self) -> bool:
        """Whether the run that it starts from has to be done first; that one's record is in git, its adapter is not."""
        return self.start is not None and not (self.start.recorded and self.start.adapter.exists())

    @property
    def command(self) -> list[str]:
        """The arguments that a worker gives to Python."""
        command = [str(files.ROOT / "code" / "reproduce.py"), "run", self.experiment.name, "--seed", str(self.seed)]
        return command + (["--data-dir", str(self.data_dir.resolve())] if self.data_dir else [])


def run_identity(settings: Settings, seed: int, data_fingerprint: dict[str, str]) -> str:
    """Eight hex digits for all that decides what a run learns, but for the machine and the base model's weights."""
    facts = settings, seed, TASKS[settings.task].version, sorted(data_fingerprint.items())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def first_process() -> bool:
    """Whether this process evaluates and records: all do, but for the later ones of `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file for the work `what`; RunTaken, with the holder's name, where another process has it.

    The system frees the lock when the process ends, however it ends. The file stays: if it were removed, a process
    that has it open and one that creates it anew would both hold the lock. The holder's name is in a file beside it,
    since on Windows no one else can read a locked file. Raises ValueError where the system has no locks.
    """
    if not first_process():
        yield  # the first process holds it for all
        return
    file_lock, holder = FileLock(path, timeout=0), path.with_suffix(".holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise RunTaken(f"{what} is being done by {name}: wait for it, or stop it") from None
    except (OSError, NotImplementedError) as error:
        raise ValueError(
            f"{path} cannot be locked ({error}): choose a folder on a local disk, with LORA_CHECKPOINT_DIR or, for "
            "train.py, --output_dir"
        ) from error
    try:
        with files.room(path.parent, 0):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        file_lock.release()


def run_lock(run: Run) -> AbstractContextManager[None]:
    """The `lock` of a run."""
    return lock(run.log.with_suffix(".lock"), str(run))


def taken(run: Run) -> bool:
    """Whether another process is doing the run."""
    try:
        with run_lock(run):
            return False
    except RunTaken:
        return True
