"""The sittings of a run: checkpoints by the clock, a stop on a signal, the time and memory of all sittings.

A checkpoint is whole where SIZES_FILE, written last, fits the bytes of all files that a run continues from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

from safetensors import SafetensorError
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from files import write_atomically
from methods.rank_changes import ended
from training.machine import peak_memory_gib

CHECKPOINT_SECONDS = 300
SIZES_FILE = "sizes.json"  # in a checkpoint: size and SHA-256 of every file that training continues from
VALIDATIONS = "epoch-*.json"  # beside the checkpoints: what was measured after each epoch
SITTINGS_FILE = "sittings.json"  # in a checkpoint: what all sittings until then took, and the loss since the last log
REST = "and an older checkpoint is continued, or training starts anew"
SAVING_SHARE = 0.05  # at most so much of the time is spent saving: large checkpoints on a slow disk are rarer

logger = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """A signal stopped training after a finished step; the checkpoint continues it."""


class Bar(ProgressCallback):
    """The progress bar with the loss beside it, instead of a printed line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.training_bar is not None:
            shown = {k: f"{v:.4g}" for k, v in (logs or {}).items() if k in ("loss", "eval_loss")}
            self.training_bar.set_postfix(shown)


def _midway(state: Any) -> bool:
    """Whether the epoch goes on after this step. At its end, the state is saved after the validation.

    A checkpoint before the validation would skip it.
    """
    return state.epoch != round(state.epoch) and not ended(state.log_history)


class Sitting(TrainerCallback):
    """Checkpoints by the clock, stops after a finished step on a signal, and adds up what all sittings took.

    `checkpoint` is the one that training continues from, `trainer` a `ProtocolTrainer`.
    """

    def __init__(self, trainer: Trainer, checkpoint: str | None):
        self.trainer, self.folder = trainer, Path(trainer.args.output_dir)
        nothing = {"seconds": 0.0, "tokens": 0, "peak_memory_gib": 0.0}
        self.earlier = nothing | (_read(Path(checkpoint, SITTINGS_FILE)) if checkpoint else {})
        self.contents = _read(Path(checkpoint, SIZES_FILE)) if checkpoint else {}
        self.started, self.stop = time.monotonic(), False
        self.next = self.started + CHECKPOINT_SECONDS

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the sitting after the current step; only the main thread can hear them."""
        main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
        handlers = {s: signal.signal(s, self.on_signal) for s in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def spent(self) -> dict[str, float]:
        seconds = self.earlier["seconds"] + time.monotonic() - self.started
        tokens = self.earlier["tokens"] + self.trainer.tokens
        peak = max(self.earlier["peak_memory_gib"], peak_memory_gib())
        return {"seconds": seconds, "tokens": tokens, "peak_memory_gib": peak}

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if unlogged := self.earlier.get("unlogged"):
            self.trainer.continue_log(**unlogged)
        if state.is_world_process_zero:
            for file in self.folder.glob(VALIDATIONS):
                if f"../{file.name}" not in self.contents:  # later than the checkpoint: it is measured anew
                    file.unlink()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saving_since = time.monotonic()
        self.stop, due = self.trainer.anywhere(self.stop, self.saving_since > self.next)
        control.should_save = control.should_save or ((self.stop or due) and _midway(state))
        control.should_training_stop = control.should_training_stop or self.stop

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saving_since = time.monotonic()  # an epoch is saved after its validation

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = True  # so that no logged loss spans two epochs
        if self.stop and _midway(state):  # Trainer treats a stop within an epoch as the epoch's end
            control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        progress = self.spent() | {"unlogged": self.trainer.unlogged()}  # waits until every process has saved its part
        if state.is_world_process_zero:
            saved = self.folder / f"checkpoint-{state.global_step}"
            write_atomically(saved / SITTINGS_FILE, json.dumps(progress))
            contents = {name: _content(file) for name, file in _files(saved).items()}
            write_atomically(saved / SIZES_FILE, json.dumps(contents))
            self.rotate(state)
        now = time.monotonic()
        self.next = now + max(CHECKPOINT_SECONDS, (now - self.saving_since) / SAVING_SHARE)

    def rotate(self, state: Any) -> None:
        """Keep the newest checkpoint, now that it is whole, and the best epoch's or else the one before it.

        Trainer itself would go by the time of files, which a clock that was set back confuses, and before it is whole.
        """
        earlier = max((step for step in _steps(self.folder) if step < state.global_step), default=None)
        for step in _steps(self.folder) - {state.global_step, state.best_global_step or earlier}:
            shutil.rmtree(self.folder / f"checkpoint-{step}", ignore_errors=True)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole and, if one is kept, whose best epoch's is; None if there is none.

    A kill, or a mounted drive that was cut off, may leave a part of one; a disk may change its bytes.
    """
    for step in sorted(_steps(folder), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        if _whole(checkpoint):
            best = _read(checkpoint / TRAINER_STATE_NAME)["best_global_step"]
            if not best or _whole(folder / f"checkpoint-{best}"):
                return str(checkpoint)
        logger.warning("%s is not whole, or the best epoch before it is not: it is passed over", checkpoint)
    return None


@contextmanager
def numbers_alone(checkpoint: str | None) -> Iterator[None]:
    """Raise ValueError instead of what readers say of a file that is whole and holds more than numbers.

    Code in a pickle is never run: torch refuses to open one that is of more than tensors. An error of a file that is
    being written, on a full disk say, is none of these.
    """
    try:
        yield
    except (UnpicklingError, SafetensorError) as error:
        if "while serializing" in str(error):
            raise
        found = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(f"expected numbers alone in {checkpoint}, found {found}; delete it, {REST}") from error


def _steps(folder: Path) -> set[int]:
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return {int(name) for name in names if name.isdecimal()}  # a drive's copy is called "checkpoint-5 (1)"


def _whole(checkpoint: Path) -> bool:
    try:
        contents, present = _read(checkpoint / SIZES_FILE), _files(checkpoint)
        return TRAINER_STATE_NAME in contents and all(
            name in present and [*_content(present[name])] == content for name, content in contents.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _files(checkpoint: Path) -> dict[str, Path]:
    """The files by name that training continues from: those of the checkpoint, and the validations beside it.

    A name in SIZES_FILE is no path: it leads to no other file.
    """
    own = {file.name: file for file in checkpoint.iterdir() if file.is_file() and file.name != SIZES_FILE}
    return own | {f"../{file.name}": file for file in checkpoint.parent.glob(VALIDATIONS)}


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {file.parent}, {REST}") from error


def _content(file: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return file.stat().st_size, digest.hexdigest()
