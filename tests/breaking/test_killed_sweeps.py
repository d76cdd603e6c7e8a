"""Sweeps of real runs that are killed, doubled, or whose worker dies: nothing is done twice, the rest goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from real_runs import RUNS, new_place, whole

ROWS = ("sentiment-builtin/lora-r8", "paraphrase-builtin/lora-r8")
SWEEP = ("sweep", "table2", "--scale", "quick", "--rows", *ROWS, "--seeds", "0", "1", "--workers", "2")
NAMES = {f"table2/minilm/{row}" for row in ROWS}


def finished(place):
    """(name, seed) of every record."""
    return sorted(place.outcomes())


def all_of_them():
    return sorted((name, seed) for name in NAMES for seed in (0, 1))


def workers_of(process):
    """The runs that the sweep is doing: its children."""
    return psutil.Process(process.pid).children()


def doing(worker):
    """The words of its command; none if it has just ended."""
    try:
        return worker.cmdline()
    except psutil.NoSuchProcess:  # a zombie is one too
        return []


@pytest.mark.parametrize("with_workers", [True, False], ids=["with its workers", "alone"])
def test_a_sweep_that_is_killed_goes_on_when_it_is_started_again(with_workers, tally):
    draw, kills, workers = random.Random(with_workers), 0, []
    what = "SIGKILL of a sweep and its workers" if with_workers else "SIGKILL of a sweep alone"
    while kills < 5:
        place, here, ended = new_place(), 0, False
        while kills + here < 5 and not ended:
            process = place.start(*SWEEP)
            try:
                ended = process.wait(draw.uniform(5, 2 * whole("GLUE").seconds)) == 0
                continue
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGSTOP)  # so that it starts no other worker meanwhile
            working = workers_of(process)
            workers += working
            for worker in working if with_workers else ():
                with suppress(psutil.NoSuchProcess):  # it ended in this moment
                    worker.kill()
            process.kill()
            process.wait()
            here += 1
        assert place.do(*SWEEP) == 0, place.output()
        psutil.wait_procs(workers)  # those of a killed sweep end what they have begun
        assert finished(place) == all_of_them() and not place.notes() and not place.leftovers()
        assert place.outcomes()[RUNS["GLUE"], 0] == whole("GLUE").outcome[RUNS["GLUE"], 0]
        for _ in range(here):
            tally("sweeps", what, "it goes on; same scores")
        kills += here


def test_two_sweeps_on_one_folder_do_nothing_twice(tally):
    place = new_place()
    first, second = place.start(*SWEEP), place.start(*SWEEP)
    assert first.wait() == 0 and second.wait() == 0, place.output()
    started = [line for log in place.folder.rglob("*.log") for line in log.read_text().splitlines()]
    assert finished(place) == all_of_them() and not place.notes() and not place.leftovers()
    assert sum("recorded already" in line for line in started) == 0
    tally("sweeps", "two on one folder", "each run done once")


def test_a_run_that_dies_is_tried_once_more_then_marked_and_the_rest_goes_on(tally):
    place, killed = new_place(), []
    process = place.start(*SWEEP)
    while process.poll() is None:
        for worker in workers_of(process):
            if {f"table2/minilm/{ROWS[0]}", "1"} <= {*doing(worker)} and worker.pid not in killed:
                worker.kill()
                killed.append(worker.pid)
        time.sleep(0.2)
    assert process.returncode == 1 and len(killed) == 2, place.output()
    assert "2 times; see " in place.output() and "the same command tries it anew" in place.output()
    assert finished(place) == [each for each in all_of_them() if each != (f"table2/minilm/{ROWS[0]}", 1)]
    assert [note["status"] for note in place.notes()] == ["failed"]
    assert place.do(*SWEEP) == 0 and finished(place) == all_of_them()
    tally("sweeps", "a worker killed twice", "tried again, then marked; the rest went on; done by the next sweep")
