"""What the tests of this folder do to the project is counted: `make break` writes results/robustness.json.

Each test really does its fault: to a subprocess, to files, or to what is given to a function. It notes each outcome
with `tally`, and asserts which outcomes may be. All are `slow`; a short form of most stands in the ordinary suite.

The tally of a file of tests is written once all of them have passed; it stands in the place of an older one. So an hour
that is cut short keeps what was done, and `make break` need not begin anew where one file has failed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from files import read_json, write_json
from runs.records import provenance

HERE = Path(__file__).parent
TALLIES: defaultdict[str, Counter[tuple[str, str, str]]] = defaultdict(
    Counter
)  # file -> (kind, fault, outcome) -> times
FAILED: set[str] = set()  # files of which a test failed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tally", type=Path, help="the JSON file of what was done and what came of it")


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("keyword") or any("::" in word for word in config.args)
    if config.getoption("--tally", None) and chosen:
        raise pytest.UsageError("--tally counts whole files of tests: give no -k and no single test with it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slow")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """Notes one outcome: `tally("interruption", "SIGKILL of an E2E run", "same scores and adapter")`."""

    def note(kind: str, fault: str, outcome: str) -> None:
        TALLIES[request.path.stem][kind, fault, outcome] += 1

    return note


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        FAILED.add(Path(report.fspath).stem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
    ran = yield
    path, name = item.config.getoption("--tally", None), item.path.stem
    last = nextitem is None or nextitem.path != item.path
    if path and last and TALLIES[name] and name not in FAILED:
        made = provenance()
        part = {key: made[key] for key in ("git_commit", "git_dirty", "python", "platform")} | {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "torch": torch.__version__, "transformers": transformers.__version__, "outcomes": rows(name),
        }  # fmt: skip
        before = read_json(path) if path.exists() else {}
        write_json(path, {key: value for key, value in before.items() if key != "digest"} | {name: part})
    return ran


def rows(name: str) -> list[dict[str, Any]]:
    """What the tests of a file did, in a fixed order."""
    return [
        {"kind": kind, "fault": fault, "outcome": outcome, "times": times}
        for (kind, fault, outcome), times in sorted(TALLIES[name].items())
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(TALLIES.values()):
        terminalreporter.section("tally")
    for name in TALLIES:
        for row in rows(name):
            terminalreporter.write_line("{times:6d}  {kind}: {fault}: {outcome}".format(**row))
