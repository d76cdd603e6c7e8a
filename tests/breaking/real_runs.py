"""Real runs of `quick` in processes of their own, each in a folder of its own, and what came of them."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from files import ROOT

RUNS = {
    "E2E": "table3/gpt2-mini/e2e-builtin/lora-r4",
    "GLUE": "table2/minilm/paraphrase-builtin/lora-r8",
    "Sequential": "rank-over-time/minilm/paraphrase-builtin/sequential-fixed-hybrid",
    "adaptive": "rank-over-time/minilm/paraphrase-builtin/adaptive",
}
OF_THE_MOMENT = {
    "started", "training_seconds", "evaluation_seconds", "peak_memory_gib", "git_commit", "git_dirty", "digest",
}  # fmt: skip

# A run's record apart from what is of the moment, its predictions, and the SHA-256 of its adapter's files.
Outcome = tuple[dict[str, Any], str, dict[str, str]]


def ordinary_signals() -> None:
    """A job in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Place:
    """The folder of results and checkpoints of some runs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "LORA_RESULTS_DIR": str(self.folder / "results"),
            "LORA_CHECKPOINT_DIR": str(self.folder / "checkpoints"),
        }
        return os.environ | own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(self, *words: str, act: str = "count", moment: int = 0) -> subprocess.Popen[str]:
        """`reproduce.py WORDS`, hurt at a moment as `hurt.py` says; its output goes to a file."""
        command = [sys.executable, str(Path(__file__).with_name("hurt.py")), act, str(moment), *words]
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                command, env=self.environment, cwd=ROOT, text=True, preexec_fn=ordinary_signals,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def do(self, *words: str, act: str = "count", moment: int = 0) -> int:
        return self.start(*words, act=act, moment=moment).wait()

    def output(self) -> str:
        """What the newest process printed."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def files(self) -> dict[str, tuple[int, int]]:
        """(bytes, time of the last change) of every file but the output."""
        paths = [p for p in self.folder.rglob("*") if p.is_file() and p.name != "output.txt"]
        return {str(p.relative_to(self.folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}

    def outcomes(self) -> dict[tuple[str, int], Outcome]:
        """What came of each finished run, by its name and seed."""
        found = {}
        for path in sorted((self.folder / "results" / "runs" / "quick").glob("*.json")):
            record = {key: value for key, value in json.loads(path.read_text()).items() if key not in OF_THE_MOMENT}
            predictions = self.folder / "results" / "predictions" / "quick" / record["predictions"]
            adapter = self.folder / "checkpoints" / "adapters" / "quick" / path.stem
            digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(adapter.iterdir())}
            found[record["name"], record["seed"]] = record, predictions.read_text(), digests
        return found

    def leftovers(self) -> list[str]:
        """Files that nobody needs once the runs have ended."""
        return [name for name in self.files() if name.endswith(".tmp") or "/checkpoint-" in name]

    def notes(self) -> list[dict[str, Any]]:
        """The notes of failed and interrupted runs."""
        folder = self.folder / "results" / "runs" / "quick" / "unfinished"
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def new_place() -> Place:
    """A place that is gone with the session."""
    folder = TemporaryDirectory(prefix="breaking-")
    atexit.register(folder.cleanup)
    return Place(Path(folder.name))


@dataclass(frozen=True)
class Whole:
    """A run in one go: the reference for those that are hurt."""

    place: Place
    outcome: dict[tuple[str, int], Outcome]
    seconds: float
    changes: int


@cache
def whole(kind: str) -> Whole:
    """The run of RUNS[kind] in one go, made once a session."""
    place, started = new_place(), time.monotonic()
    assert place.do("run", RUNS[kind]) == 0, place.output()
    changes = int(re.findall(r"(\d+) changes", place.output())[-1])
    return Whole(place, place.outcomes(), time.monotonic() - started, changes)
