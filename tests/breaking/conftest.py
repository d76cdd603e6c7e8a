"""What the tests of this folder do to the project is counted: `make break` writes results/robustness.json.

Each test really does its fault: to a subprocess, to files, or to what is given to a function. It notes each outcome
with `tally`, and asserts which outcomes may be. All are `slow`; a short form of most stands in the ordinary suite.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
import transformers

from files import write_json

HERE = Path(__file__).parent
TALLY: Counter[tuple[str, str, str]] = Counter()  # (kind, fault, outcome) -> times


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tally", type=Path, help="the JSON file of what was done and what came of it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slow")


@pytest.fixture
def tally() -> Callable[[str, str, str], None]:
    """Notes one outcome: `tally("interruption", "SIGKILL of an E2E run", "same scores and adapter")`."""

    def note(kind: str, fault: str, outcome: str) -> None:
        TALLY[kind, fault, outcome] += 1

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    rows = [
        {"kind": kind, "fault": fault, "outcome": outcome, "times": times}
        for (kind, fault, outcome), times in sorted(TALLY.items())
    ]
    if not rows:
        return
    terminalreporter.section("tally")
    for row in rows:
        terminalreporter.write_line("{times:6d}  {kind}: {fault}: {outcome}".format(**row))
    path = config.getoption("--tally", None)
    if path and exitstatus == pytest.ExitCode.OK:
        made = {
            "date": datetime.now(timezone.utc).date().isoformat(), "python": platform.python_version(),
            "system": platform.system(), "torch": torch.__version__, "transformers": transformers.__version__,
        }  # fmt: skip
        write_json(path, made | {"outcomes": rows})
