"""METEOR 1.5, the one E2E metric that needs Java: the jar of the package pycocoevalcap, kept as one process.

Table 3's METEOR is this jar's, run as the official script runs it (`-l en -norm`). Starting it takes longer than
scoring a test set, so it is started once and answers all further evaluations. One that has died is started anew.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

Tokens = list[str]
# Of Java's options. They outdo those of `Meteor.command`, or add to them: user.language.format is not user.language.
JAVA_VARIABLES = ("_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
AT_A_TIME = 64  # requests; the pipe has room for their answers, so that neither side waits for ever


class Meteor:
    """METEOR 1.5's jar as one process that answers line by line, started at the first use and kept until exit."""

    # Without the language, a machine's own decides how numbers are written: 0,5 in Italian, which the jar cannot read.
    # The -XX option changes no figure: on the E2E test set it halves the memory.
    command = ("java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-XX:+UseSerialGC", "-Xmx2G")
    command += ("-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.failure: str | None = None  # of the last evaluation
        self.lock = threading.Lock()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
            os.register_at_fork(after_in_child=self._leave_to_parent)

    def unavailable(self) -> str | None:
        if self.failure:
            return self.failure
        if shutil.which(self.command[0]) is None:
            return "METEOR needs Java, and there is no `java` on the path: install a Java runtime, version 8 or later"
        if not (jar := meteor_jar()) or not jar.is_file():
            return "METEOR needs meteor-1.5.jar of the package pycocoevalcap: pip install pycocoevalcap"
        return None

    def score(self, outputs: list[Tokens], references: list[list[Tokens]], limit: float | None = None) -> float | None:
        """The corpus score; None, and a reason, where the jar is missing, fails, or needs more than `limit` seconds."""
        requests = [
            _line("SCORE", *map(" ".join, targets), " ".join(output))
            for output, targets in zip(outputs, references, strict=True)
        ]
        limit = limit or 300 + 2 * len(outputs)
        with self.lock:
            self.failure = None
            if self.unavailable():
                return None
            kept = self.process is not None
            value = self._evaluate(requests, limit)
            if value is None and kept:  # it may have died since the last evaluation
                value = self._evaluate(requests, limit)
            return value

    def close(self) -> None:
        with self.lock:
            self._stop()

    def _evaluate(self, requests: list[str], limit: float) -> float | None:
        value, self.failure, started = None, None, time.monotonic()
        try:
            self.process = self.process or self._start()
            # Killing the process ends any read that waits for it: nothing here can hang.
            watchdog = threading.Timer(limit, self.process.kill)
            watchdog.start()
            try:
                parts = [requests[i : i + AT_A_TIME] for i in range(0, len(requests), AT_A_TIME)]
                statistics = chain.from_iterable(self._ask(part, len(part)) for part in parts)
                *_, answer = self._ask([_line("EVAL", *statistics)], len(requests) + 1)  # a score a text, then of all
                value = float(answer)
            finally:
                watchdog.cancel()
        except (OSError, ValueError) as error:
            how = "broke off" if time.monotonic() - started < limit else f"took more than {limit} s"
            self.failure = f"METEOR's process (`{' '.join(self.command)}`) {how}: {error}. {self._stop()}".rstrip()
        finally:
            if value is None:  # also when interrupted: the next score would read the rest of this answer
                self._stop()
        return value

    def _start(self) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # An interrupt of this process, from a terminal or a notebook, is not the jar's.
        apart = {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        environment = {name: value for name, value in os.environ.items() if name not in JAVA_VARIABLES}
        return subprocess.Popen(self.command, bufsize=0, cwd=meteor_jar().parent, env=environment, **pipes, **apart)

    def _stop(self) -> str:
        """End the process; the beginning of what it wrote on its standard error."""
        if not self.process:
            return ""
        self.process.kill()
        _, written = self.process.communicate()  # reaps it and closes its pipes
        self.process = None
        return " ".join(written.decode(errors="replace").split())[:300]

    def _leave_to_parent(self) -> None:
        """In a forked child: forget the parent's process, since two that share a pipe read each other's answers."""
        self.lock = threading.Lock()  # the parent's may have been taken, by a thread that the child lacks
        if self.process:
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                pipe.close()
            self.process.returncode = 0  # it is not the child's to wait for
            self.process = None

    def _ask(self, requests: Sequence[str], number: int) -> list[str]:
        """The answers to the requests, `number` lines; ValueError if one of them is no number."""
        unsent = memoryview("".join(requests).encode(errors="replace"))  # a lone surrogate becomes a question mark
        while unsent:
            unsent = unsent[self.process.stdin.write(unsent) :]
        received = b""
        while received.count(b"\n") < number and (more := self.process.stdout.read(1 << 16)):
            received += more
        answers = received.decode(errors="replace").splitlines()
        complaint = [answer for answer in answers if not answer[:1].isdigit()]
        if complaint or received.count(b"\n") != number:
            raise ValueError(f"expected {number} lines of numbers, found {complaint[0] if complaint else len(answers)}")
        return answers


def _line(*fields: str) -> str:
    return " ||| ".join(fields) + "\n"


def meteor_jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    return Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar" if package else None


def meteor_unavailable() -> str | None:
    """Why METEOR had no value last time, or cannot have one on this machine, and what to do; None if all is well."""
    return METEOR.unavailable()


METEOR = Meteor()
