"""Runs that are killed or stopped at random moments end as one in one go: same scores, same adapter, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import pytest
from real_runs import RUNS, new_place, whole

from runs.workers import INTERRUPTED

SAME = "same scores and adapter in the end"
KILLS = {"E2E": 20, "GLUE": 20, "Sequential": 10, "adaptive": 10}


def killed(process, seconds):
    """Whether the process was still running after so many seconds, and was killed; and how long it ran."""
    started = time.monotonic()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() != 0, time.monotonic() - started


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("how", ["at a random time", "before a change of a file"])
def test_a_run_that_is_killed_again_and_again_ends_as_one_in_one_go(kind, how, tally):
    draw, kills, reference = random.Random(f"{kind} {how}"), 0, whole(kind)
    longest = reference.seconds  # of a run here and now: one that ends before its kill was faster
    wanted = KILLS[kind] if how == "at a random time" else KILLS[kind] // 2
    while kills < wanted:
        place, here = new_place(), 0
        while kills + here < wanted:
            if how == "at a random time":
                dead, seconds = killed(place.start("run", RUNS[kind]), draw.uniform(0, longest))
                longest = longest if dead else min(longest, seconds)
            else:
                dead = place.do("run", RUNS[kind], act="kill", moment=draw.randint(1, reference.changes)) != 0
            if not dead:
                break
            here += 1
        assert place.do("run", RUNS[kind]) == 0, place.output()
        assert place.outcomes() == reference.outcome
        assert not place.leftovers() and not place.notes()
        for _ in range(here):
            tally("interruption", f"SIGKILL of a run, {kind}, {how}", SAME)
        kills += here


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_run_that_is_stopped_saves_says_how_to_go_on_and_ends_as_one_in_one_go(kind, number, tally):
    draw, reference = random.Random(f"{kind} {number}"), whole(kind)
    for _ in range(3):
        place, stops = new_place(), 0
        while not stops:
            process = place.start("run", RUNS[kind])
            while process.poll() is None and not list(place.folder.rglob("*.holder")):
                time.sleep(0.1)
            time.sleep(draw.uniform(0.5, reference.seconds / 2))
            process.send_signal(number)
            if process.wait() == 0:  # it had ended
                place = new_place()
                continue
            stops += 1
            assert process.returncode == INTERRUPTED, place.output()
            assert "stopped" in place.output() and "continue" in place.output() and "Traceback" not in place.output()
            assert [note["status"] for note in place.notes()] == ["interrupted"]
        assert place.do("run", RUNS[kind]) == 0, place.output()
        assert place.outcomes() == reference.outcome and not place.leftovers()
        tally("interruption", f"{signal.Signals(number).name} to a run, {kind}", f"saved, said so; {SAME}")


@pytest.mark.parametrize("kind", RUNS)
def test_a_finished_run_that_is_started_again_does_nothing_and_says_so(kind, tally):
    place = whole(kind).place
    before = place.files()
    assert place.do("run", RUNS[kind]) == 0 and "recorded already" in place.output()
    changed = {name for name, found in place.files().items() if before.get(name) != found}
    assert {name.rpartition(".")[2] for name in changed} <= {"lock", "holder"} and not before.keys() - place.files()
    tally("interruption", f"a finished run started again, {kind}", "nothing done, and said")
