"""The sittings of a run: checkpoints by the clock, a stop on a signal, the time and memory of all sittings."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from files import write_atomically
from methods.rank_changes import ended
from training.machine import peak_memory_gib

CHECKPOINT_SECONDS = 300
SIZES_FILE = "sizes.json"  # in a checkpoint: the sizes of its other files
SAVING_SHARE = 0.05  # at most so much of the time is spent saving: large checkpoints on a slow disk are rarer


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

    `tokens()` counts this sitting's tokens; `anywhere(*flags)` says for each flag whether any process has set it.
    """

    def __init__(self, folder: Path, tokens: Callable[[], int], anywhere: Callable[..., list[bool]]):
        self.folder, self.clock, self.tokens, self.anywhere = folder, folder / "clock.json", tokens, anywhere
        nothing = {"seconds": 0.0, "tokens": 0, "peak_memory_gib": 0.0}
        self.earlier = nothing | (json.loads(self.clock.read_text()) if self.clock.exists() else {})
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
        peak = max(self.earlier["peak_memory_gib"], peak_memory_gib())
        return {"seconds": seconds, "tokens": self.earlier["tokens"] + self.tokens(), "peak_memory_gib": peak}

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saving_since = time.monotonic()
        self.stop, due = self.anywhere(self.stop, self.saving_since > self.next)
        control.should_save = control.should_save or ((self.stop or due) and _midway(state))
        control.should_training_stop = control.should_training_stop or self.stop

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saving_since = time.monotonic()  # an epoch is saved after its validation

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = True  # so that no logged loss spans two epochs
        if self.stop and _midway(state):  # Trainer treats a stop within an epoch as the epoch's end
            control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self.next = now + max(CHECKPOINT_SECONDS, (now - self.saving_since) / SAVING_SHARE)
        if state.is_world_process_zero:
            write_atomically(self.clock, json.dumps(self.spent()))
            saved = self.folder / f"checkpoint-{state.global_step}"
            sizes = {file.name: file.stat().st_size for file in saved.iterdir() if file.is_file()}
            write_atomically(saved / SIZES_FILE, json.dumps(sizes))


def newest_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint, if any: a kill, or a mounted drive that was cut off, may leave a part of one."""
    whole = [p for p in folder.glob("checkpoint-*") if _whole(p)]
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None


def _whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / SIZES_FILE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size >= size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False
