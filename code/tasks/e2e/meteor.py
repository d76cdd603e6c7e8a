"""METEOR 1.5, the one E2E metric that needs Java: the jar of the package pycocoevalcap, kept as one process.

Table 3's METEOR is this jar's, run as the official script runs it (`-l en -norm`). Starting it takes longer than
scoring a test set, so it is started once and answers all further evaluations.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

Tokens = list[str]
AT_A_TIME = 64  # requests; the pipe has room for their answers, so that neither side waits for ever


class Meteor:
    """METEOR 1.5's jar as one process that answers line by line, started at the first use and kept until exit."""

    # The -XX option changes no figure: on the E2E test set it halves the memory.
    command = ("java", "-XX:+UseSerialGC", "-Xmx2G", "-Dfile.encoding=UTF-8")
    command += ("-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.failure: str | None = None
        self.lock = threading.Lock()

    def unavailable(self) -> str | None:
        if self.failure:
            return self.failure
        if shutil.which(self.command[0]) is None:
            return "METEOR needs Java, and there is no `java` on the path: install a Java runtime, version 8 or later"
        if not (jar := meteor_jar()) or not jar.is_file():
            return "METEOR needs meteor-1.5.jar of the package pycocoevalcap: pip install pycocoevalcap"
        return None

    def score(self, outputs: list[Tokens], references: list[list[Tokens]], limit: float | None = None) -> float | None:
        """The corpus score; None where the jar is missing, fails, or needs more than `limit` seconds."""
        with self.lock:
            if self.unavailable():
                return None
            limit = limit or 300 + 2 * len(outputs)
            value = None
            self.process = self.process or self._start()
            # Killing the process ends any read that waits for it: nothing here can hang.
            watchdog = threading.Timer(limit, self.process.kill)
            watchdog.start()
            try:
                requests = [
                    _line("SCORE", *map(" ".join, targets), " ".join(output))
                    for output, targets in zip(outputs, references, strict=True)
                ]
                parts = [requests[i : i + AT_A_TIME] for i in range(0, len(requests), AT_A_TIME)]
                statistics = chain.from_iterable(map(self._ask, parts))
                self._ask([_line("EVAL", *statistics)])  # answers with a score a text, then the corpus score
                for _ in outputs[1:]:
                    self.process.stdout.readline()
                value = float(self.process.stdout.readline())
            except (OSError, ValueError):
                self.failure = f"METEOR's process (`{' '.join(self.command)}`) broke off or took more than {limit} s"
            finally:
                watchdog.cancel()
                if value is None:  # also when interrupted: the next score would read the rest of this answer
                    self._stop()
            return value

    def close(self) -> None:
        with self.lock:
            self._stop()

    def _start(self) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.command, cwd=meteor_jar().parent, encoding="utf-8", **pipes)

    def _stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()  # reaps it and closes its pipes
            self.process = None

    def _ask(self, requests: Sequence[str]) -> list[str]:
        self.process.stdin.writelines(requests)
        self.process.stdin.flush()
        answers = [self.process.stdout.readline().strip() for _ in requests]
        for answer in answers:
            float(answer.partition(" ")[0])  # ValueError if the answer is empty or a complaint
        return answers


def _line(*fields: str) -> str:
    return " ||| ".join(fields) + "\n"


def meteor_jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    return Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar" if package else None


def meteor_unavailable() -> str | None:
    """Why METEOR has no value on this machine and what to do about it, or None if it can be computed."""
    return METEOR.unavailable()


METEOR = Meteor()
atexit.register(METEOR.close)
