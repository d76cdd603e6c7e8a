"""Sweeps: what is started when, what a dead, stopped or rival worker leaves behind, and what the summary says.

The runs are small scripts that lock, journal and record as real ones do; one test sweeps real training runs.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import filelock
import pytest

import files
import reproduce
from experiments import catalogue
from experiments.settings import Experiment, Settings
from runs import execute, identity, records, workers
from runs.run import Run, RunTaken, run_lock
from runs.sweep import Sweep, in_order, minutes_left
from runs.workers import INTERRUPTED, InProcess, Processes, RayCluster
from tasks.catalogue import TASKS

SETTINGS = Settings("e2e-builtin", "gpt2-mini", "lora", learning_rate=1e-3, epochs=1, batch_size=8)

FAKE_RUN = """
import json, os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from runs import records
from runs.run import Run, RunTaken, run_lock
from runs.workers import INTERRUPTED, TAKEN
record, plan, journal = json.loads(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
run = Run(SimpleNamespace(name=record["name"], scale=record["scale"]), record["seed"])
saved = run.log.with_suffix(".saved")

def note(what):
    with journal.open("a") as file:
        file.write(json.dumps([what, str(run), time.time(), os.environ["OMP_NUM_THREADS"]]) + "\\n")

def stop(*_):
    saved.write_text("state")
    note("saved")
    sys.exit(INTERRUPTED)

signal.signal(signal.SIGTERM, stop)
try:
    with run_lock(run):
        if records.read_record(run.record):  # as `execute.do`: another process may just have finished it
            sys.exit(0)
        note("continues" if saved.exists() else "starts")
        tried = sum(json.loads(line)[:2] == ["starts", str(run)] for line in journal.open())
        act = plan[min(tried, len(plan)) - 1]
        print("this is what the log says", flush=True)
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "note":
            records.write_unfinished(record | {"status": "diverged"})
        if act in ("fail", "note"):
            sys.exit(3)
        if act in ("interrupted", "taken"):
            sys.exit(INTERRUPTED if act == "interrupted" else TAKEN)
        deadline = time.monotonic() + 600 * (act == "long" and not saved.exists())
        while time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        records.write_record(record)
        note("ends")
except RunTaken:
    sys.exit(TAKEN)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Results, checkpoints and the journal of fake runs in tmp_path; `plan` says what each attempt of a run does."""
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.02)
    monkeypatch.setattr("runs.sweep.POLL_SECONDS", 0.02)
    return FakeRuns(tmp_path, monkeypatch)


class FakeRuns:
    def __init__(self, folder, monkeypatch):
        self.folder, self.plan = folder, {}
        (folder / "fake_run.py").write_text(FAKE_RUN)
        self.experiments = {
            f"t/m/{row}": Experiment(f"t/m/{row}", row, replace(SETTINGS, rank=rank), "quick")
            for rank, row in enumerate("abcd", 1)
        }
        monkeypatch.setattr(catalogue, "EXPERIMENTS", self.experiments)
        monkeypatch.setattr(Run, "command", property(self.command))

    def start_from(self, row, start):
        experiment = self.experiments[f"t/m/{row}"]
        settings = replace(experiment.settings, start_from=f"t/m/{start}")
        self.experiments[experiment.name] = replace(experiment, settings=settings)

    def record(self, run, score=0.5):
        return {
            "name": run.experiment.name, "scale": "quick", "seed": run.seed, "status": "finished", "task_version": 1,
            "settings": asdict(run.experiment.settings), "scores": {"BLEU": score + run.seed / 10},
        }  # fmt: skip

    def command(self, run):
        plan = self.plan.get(str(run), ["ok"])
        record, plan = json.dumps(self.record(run)), json.dumps(plan)
        return [str(self.folder / "fake_run.py"), str(files.ROOT / "code"), record, plan, str(self.folder / "journal")]

    def runs(self, rows, seeds=(0,)):
        return [Run(self.experiments[f"t/m/{row}"], seed) for seed in seeds for row in rows]

    def sweep(self, rows, group, seeds=(0,)):
        return Sweep(self.runs(rows, seeds), group, {name: 1.0 for name in self.experiments})

    def journal(self):
        path = self.folder / "journal"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def happened(self):
        return [(what, run) for what, run, *_ in self.journal()]

    def wait_for(self, *events):
        deadline = time.monotonic() + 60
        while not {*events} <= {*self.happened()}:
            assert time.monotonic() < deadline, self.happened()
            time.sleep(0.02)


def test_runs_are_done_two_at_a_time_by_processes_that_share_the_threads(place, capsys):
    import torch

    sweep = place.sweep("abcd", Processes(2))
    sweep.run()
    assert [record["name"] for record in records.read_records("quick")] == ["t/m/a", "t/m/b", "t/m/c", "t/m/d"]
    events = sorted(place.journal(), key=lambda event: event[2])
    at_once = [sum(1 if what == "starts" else -1 for what, *_ in events[: i + 1]) for i in range(len(events))]
    assert max(at_once) == 2
    assert {threads for *_, threads in events} == {str(max(1, torch.get_num_threads() // 2))}
    assert not sweep.failed
    assert "[4 of 4 done, about 0 min left]" in capsys.readouterr().out


def test_what_is_recorded_is_not_run_again(place):
    records.write_record(place.record(place.runs("a")[0]))
    place.sweep("ab", Processes(2)).run()
    assert place.happened() == [("starts", "t/m/b seed 0"), ("ends", "t/m/b seed 0")]


@pytest.mark.parametrize("changed", [{"task_version": 0}, {"settings": asdict(replace(SETTINGS, rank=99))}], ids=str)
def test_a_record_that_does_not_count_keeps_its_place_and_its_run_is_open_but_not_tried(place, changed):
    place.start_from("c", "a")
    [run] = place.runs("a")
    path = records.write_record(place.record(run) | changed)
    before = path.read_bytes()
    sweep = place.sweep("abc", Processes(1))
    assert sweep.waiting == place.runs("abc")
    sweep.run()
    assert place.happened() == [("starts", "t/m/b seed 0"), ("ends", "t/m/b seed 0")]
    assert sweep.failed["t/m/a seed 0"].endswith(f"delete {path} to measure anew")
    assert "t/m/a seed 0, which it starts from" in sweep.failed["t/m/c seed 0"]
    assert path.read_bytes() == before
    assert records.unfinished("quick", "failed") == 0
    with pytest.raises(ValueError, match=r"t/m/a seed 0: recorded with other settings or of another task version; del"):
        execute.do(run)
    path.unlink()
    place.sweep("a", Processes(1)).run()
    assert run.recorded and run.obstacle is None


def test_what_is_recorded_on_other_data_is_named_as_not_finished_and_is_no_result(place, monkeypatch):
    now, asked = {"train": "new"}, []
    monkeypatch.setattr(identity, "data_fingerprint", lambda job: asked.append(job.settings.rank) or now)
    for run in place.runs("a", seeds=(0, 1, 2)):
        records.write_record(place.record(run) | {"data_fingerprint": now})
    old, _ = place.runs("b", seeds=(0, 1))
    path = records.write_record(place.record(old) | {"data_fingerprint": {"train": "old"}})
    place.start_from("c", "b")
    sweep = place.sweep("abc", Processes(1), seeds=(0, 1, 2))
    sweep.run()
    assert asked == [1, 2]  # the same data are read once
    obstacle = sweep.failed["t/m/b seed 0"]
    assert obstacle.startswith("recorded with other data (train old, not new)") and f"delete {path} to" in obstacle
    assert all("which it starts from" in sweep.failed[f"t/m/c seed {seed}"] for seed in (0, 1, 2))
    cells = {line.split()[0]: line.split()[1:] for line in sweep.summary().splitlines()}
    assert cells["t/m/a"][1] == "3"
    assert cells["t/m/b"] == ["BLEU", "2", "65.00", "60.00", "70.00", "failed", "60.00", "70.00"]


def test_data_that_cannot_be_compared_with_a_records_do_not_end_the_sweep(place, monkeypatch):
    def unreadable(job):
        raise ValueError("train.parquet cannot be read")

    monkeypatch.setattr(identity, "data_fingerprint", unreadable)
    records.write_record(place.record(place.runs("a")[0]) | {"data_fingerprint": {"train": "old"}})
    sweep = place.sweep("ab", Processes(1))
    sweep.run()
    assert sweep.failed == {"t/m/a seed 0": "train.parquet cannot be read"}
    assert [run for what, run in place.happened() if what == "ends"] == ["t/m/b seed 0"]


def test_the_runs_of_all_seeds_wait_for_the_one_they_start_from(place):
    place.start_from("a", "c")
    sweep = place.sweep("ab", Processes(3), seeds=(0, 1))
    sweep.run()
    happened = place.happened()
    for seed in (0, 1):  # c was not asked for
        assert happened.index(("ends", "t/m/c seed 0")) < happened.index(("starts", f"t/m/a seed {seed}"))
    assert happened.index(("starts", "t/m/b seed 0")) < happened.index(("ends", "t/m/c seed 0"))  # nothing to wait for
    assert len(happened) == 10


def test_what_others_start_from_comes_first_and_only_where_it_is_missing(place):
    place.start_from("a", "b")
    place.start_from("b", "c")
    names = [str(run) for run in in_order(place.runs("abc", seeds=(0,)))]
    assert names == ["t/m/c seed 0", "t/m/b seed 0", "t/m/a seed 0"]
    [b] = place.runs("b")
    records.write_record(place.record(b))
    assert [str(run) for run in in_order(place.runs("a"))] == ["t/m/b seed 0", "t/m/a seed 0"]  # what b learnt lacks
    b.adapter.mkdir(parents=True)
    assert [str(run) for run in in_order(place.runs("a"))] == ["t/m/a seed 0"]


def test_runs_whose_start_is_being_trained_again_wait_for_it(place):
    place.start_from("a", "b")
    [b] = place.runs("b")
    records.write_record(place.record(b))  # without what it learnt
    sweep = place.sweep("a", Processes(2), seeds=(0, 1))
    with run_lock(b):  # as by the worker of the one seed
        sweep.start()
        assert not sweep.running
    sweep.run()
    assert not sweep.failed and all(run.recorded for run in place.runs("a", seeds=(0, 1)))


def test_a_worker_that_is_killed_once_is_tried_again_and_nothing_failed(place, capsys):
    place.plan = {"t/m/a seed 0": ["kill", "ok"]}
    sweep = place.sweep("ab", Processes(1))
    sweep.run()
    assert "t/m/a seed 0 was killed by SIGKILL and is tried once more" in capsys.readouterr().out
    assert [r["name"] for r in records.read_records("quick")] == ["t/m/a", "t/m/b"]
    assert not sweep.failed
    assert records.unfinished("quick", "failed") == 0


def test_a_worker_that_dies_twice_is_marked_failed_with_its_log_and_the_sweep_goes_on(place):
    place.plan = {"t/m/a seed 0": ["kill"], "t/m/b seed 0": ["fail"]}
    place.start_from("d", "a")
    sweep = place.sweep("abcd", Processes(2))
    sweep.run()
    starts = [run for what, run in place.happened() if what == "starts"]
    assert sorted(starts) == ["t/m/a seed 0"] * 2 + ["t/m/b seed 0"] * 2 + ["t/m/c seed 0"]
    assert records.unfinished("quick", "failed") == 2
    notes = records.record_path("t/m/a", "quick", 0).parent / "unfinished"
    note = json.loads((notes / "t--m--a--seed0--1.json").read_text())
    assert note["exit_code"] == -signal.SIGKILL
    assert note["log"] == ["this is what the log says"] * 2
    assert json.loads((notes / "t--m--b--seed0--1.json").read_text())["exit_code"] == 3
    assert set(sweep.failed) == {"t/m/a seed 0", "t/m/b seed 0", "t/m/d seed 0"}
    assert "not finished: t/m/b seed 0: ended with code 3, 2 times" in sweep.summary()
    assert "t/m/d seed 0: not started: t/m/a seed 0, which it starts from" in sweep.summary()


def test_a_failure_that_the_run_has_noted_itself_is_not_noted_twice(place):
    place.plan = {"t/m/a seed 0": ["note"]}
    sweep = place.sweep("a", Processes(1))
    sweep.run()
    assert list(sweep.failed) == ["t/m/a seed 0"]
    assert records.unfinished("quick", "diverged") == 2
    assert records.unfinished("quick", "failed") == 0


def test_a_run_that_somebody_stops_is_left_for_the_next_time(place):
    place.plan = {"t/m/a seed 0": ["interrupted"]}
    sweep = place.sweep("ab", Processes(1))
    sweep.run()
    assert place.happened()[:2] == [("starts", "t/m/a seed 0"), ("starts", "t/m/b seed 0")]
    assert "interrupted" in sweep.failed["t/m/a seed 0"]
    assert records.unfinished("quick", "failed") == 0


@pytest.mark.parametrize("at_once", [False, True])
def test_two_sweeps_side_by_side_share_the_work(place, monkeypatch, at_once):
    if at_once:  # both take a run for free, and one of the workers finds it locked
        monkeypatch.setattr("runs.sweep.taken", lambda run: False)
    sweeps = [place.sweep("abcd", Processes(1)), place.sweep("abcd", Processes(1))]
    threads = [threading.Thread(target=sweep.run) for sweep in sweeps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(place.happened()) == sorted((w, f"t/m/{row} seed 0") for row in "abcd" for w in ("starts", "ends"))
    assert not any(sweep.failed for sweep in sweeps)


def test_a_run_that_others_have_taken_first_is_looked_at_again_and_is_no_failed_attempt(place):
    place.plan = {"t/m/a seed 0": ["taken", "taken", "kill", "ok"]}
    sweep = place.sweep("a", Processes(1))
    sweep.run()
    assert place.happened() == [("starts", "t/m/a seed 0")] * 4 + [("ends", "t/m/a seed 0")]
    assert not sweep.failed


def test_a_lock_is_held_against_others_and_falls_with_its_holder(place):
    [run] = place.runs("a")
    place.plan = {str(run): ["long"]}
    holder = workers.launch(run.command, workers.folders() | {"OMP_NUM_THREADS": "1"}, run.log)
    place.wait_for(("starts", str(run)))
    assert os.getpgid(holder.pid) != os.getpgid(0)  # Ctrl-C in the terminal reaches it through the sweep alone
    with (
        pytest.raises(RunTaken, match=rf"t/m/a seed 0 is being done by process {holder.pid} on"),
        run_lock(run),
    ):
        pass
    holder.kill()
    holder.wait()
    assert run.log.with_name("t--m--a--seed0.lock").exists()
    with run_lock(run):
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_where_the_system_refuses_a_lock_the_error_says_what_to_do(place, monkeypatch, error):
    [run] = place.runs("a")

    def refuse(*_):
        raise error

    with pytest.raises(OSError, match="disk full"), run_lock(run):
        raise OSError("disk full")  # by the run itself: no matter of locks
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    advice = r"seed0.lock cannot be locked \(.*lock.*\): choose a folder on a local disk, with LORA_CHECKPOINT_DIR"
    with pytest.raises(ValueError, match=advice), run_lock(run):
        pass


def test_a_stop_waits_until_the_workers_have_saved_and_the_next_sweep_continues(place):
    place.plan = {"t/m/a seed 0": ["long"], "t/m/b seed 0": ["long"]}

    def stop_when_both_run():
        place.wait_for(("starts", "t/m/a seed 0"), ("starts", "t/m/b seed 0"))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop_when_both_run).start()
    with pytest.raises(KeyboardInterrupt):
        place.sweep("abc", Processes(2)).run()
    assert sorted(place.happened()[2:]) == [("saved", "t/m/a seed 0"), ("saved", "t/m/b seed 0")]
    place.sweep("abc", Processes(2)).run()
    assert [what for what, run in place.happened() if run == "t/m/a seed 0"] == ["starts", "saved", "continues", "ends"]
    assert len(records.read_records("quick")) == 3


def test_in_this_process_a_failing_run_is_passed_over_too(place, monkeypatch, capsys):
    done = []

    def do(run):
        done.append(str(run))
        if "m/a" in str(run):
            raise ValueError("no such data")
        records.write_record(place.record(run))

    monkeypatch.setattr(execute, "do", do)
    sweep = place.sweep("ab", InProcess())
    sweep.run()
    assert done == ["t/m/a seed 0", "t/m/a seed 0", "t/m/b seed 0"]
    assert list(sweep.failed) == ["t/m/a seed 0"]
    assert "no such data" in capsys.readouterr().err


def test_the_summary_has_median_spread_and_every_seed(place, capsys):
    for run in place.runs("a", seeds=(0, 1, 4)):
        records.write_record(place.record(run))
    other = place.record(place.runs("b")[0])
    records.write_record(other | {"scores": other["scores"] | {"alarm": "all the same"}})
    stale = place.record(place.runs("c")[0])
    records.write_record(stale | {"settings": stale["settings"] | {"rank": 99}})
    selection = {k: v for k, v in place.record(place.runs("d")[0]).items() if k != "scores"}
    records.write_record(selection | {"dev_loss": 2.5})
    lines = place.sweep("abcd", Processes(1), seeds=(0, 1, 4)).summary().splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert lines[0].split("  ")[-1] == "seed 4"
    assert cells["t/m/a"] == ["BLEU", "3", "60.00", "50.00", "90.00", "50.00", "60.00", "90.00"]
    assert cells["t/m/b"] == ["BLEU", "1", "50.00", "50.00", "50.00", "50.00!", "-", "-"]
    assert cells["t/m/c"] == ["-", "0", "-", "-", "-", "-", "-", "-"]  # a record of other settings is no result of this
    assert cells["t/m/d"][:3] == ["dev_loss", "1", "2.5000"]
    assert lines[-1].startswith("!:")


def test_minutes_left_are_corrected_by_what_the_finished_runs_took():
    assert minutes_left([10, 10], [], [], slots=2, slow=1) == 10
    assert minutes_left([10, 10], [], [], slots=2, slow=2) == 20  # two share the processor
    assert minutes_left([10], [(10, 15)], [(10, 20)], slots=1, slow=1) == 25
    assert minutes_left([], [(10, 50)], [(10, 20)], slots=1, slow=1) == 0


def test_each_worker_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    group = Processes(2)
    assert [group.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4", "7"]
    assert group.slowdown == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" not in Processes(2).environment(0)
    assert Processes(2).slowdown == 2


def command_line(place, monkeypatch, *words):
    monkeypatch.setattr(reproduce, "select", lambda *_: list(place.experiments.values())[:2])
    monkeypatch.setattr(reproduce, "_minutes_apart", lambda experiments: {e.name: 1.0 for e in experiments})
    monkeypatch.setattr(sys, "argv", ["code/reproduce.py", "sweep", "t", "--workers", "2", *words])
    reproduce.main()


@pytest.mark.parametrize("words", [("--workers", "3"), ()], ids=["three", "in this process"])
def test_the_parent_of_workers_opens_no_context_of_the_gpu_that_they_share(place, monkeypatch, capsys, words):
    for experiment in list(place.experiments.values()):
        settings = replace(experiment.settings, alpha=4.0, targets=("query", "value"))
        place.experiments[experiment.name] = replace(experiment, settings=settings)

    def opened():
        raise FloatingPointError("a context of the GPU")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda._lazy_init", opened)
    monkeypatch.setattr(reproduce, "select", lambda *_: list(place.experiments.values())[:3])
    monkeypatch.setattr(sys, "argv", ["code/reproduce.py", "sweep", "t", *words])
    if words:
        reproduce.main()
        assert [row["name"] for row in records.read_records("quick")] == ["t/m/a", "t/m/b", "t/m/c"]
        assert re.search(r"t/m/a seed 0 starts, about \d+\.\d min", capsys.readouterr().out)
    else:
        with pytest.raises(SystemExit, match="a context of the GPU"):
            reproduce.main()


def test_the_exit_code_and_the_last_lines_say_what_failed(place, monkeypatch, capsys):
    place.plan = {"t/m/b seed 1": ["fail"]}
    with pytest.raises(SystemExit, match=r"^1$"):
        command_line(place, monkeypatch, "--seeds", "0", "1")
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("not finished: t/m/b seed 1: ended with code 3")
    assert "t/m/b       BLEU    1  50.00   50.00  50.00  50.00   failed" in out


def test_a_terminated_sweep_stops_its_workers_and_prints_the_command_that_continues_it(place, monkeypatch, capsys):
    place.plan = {"t/m/a seed 0": ["long"]}

    def terminate():
        place.wait_for(("starts", "t/m/a seed 0"))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(SystemExit, match=f"^{INTERRUPTED}$"):
        command_line(place, monkeypatch)
    assert ("saved", "t/m/a seed 0") in place.happened()
    assert "to continue: python code/reproduce.py sweep t --workers 2" in capsys.readouterr().err


def test_a_sweep_does_not_go_under_accelerate_launch(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="launch `run`"):
        command_line(place, monkeypatch)


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_there_is_at_least_one_worker(place, monkeypatch, capsys, number):
    with pytest.raises(SystemExit):
        command_line(place, monkeypatch, "--workers", number)
    assert f"expected a whole number from 1 on, found '{number}'" in capsys.readouterr().err


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'ray>="):
        RayCluster()


def test_an_address_where_no_ray_cluster_answers_is_named(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r tests/requirements.txt")

    def refuse(**_):
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "there:1"})
    for address, where in (("here:1", "here:1"), (None, "there:1")):
        with pytest.raises(ValueError, match=f"no Ray cluster answers at {where}: Failed to connect; start one there"):
            RayCluster(address)
    assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "2"


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_an_address_without_ray_is_refused(place, monkeypatch, words):
    with pytest.raises(SystemExit, match="--address needs --engine ray"):
        command_line(place, monkeypatch, "--address", "here:1", *words)
    assert not place.happened()


@pytest.fixture(autouse=True)
def signals():
    """SIGINT stops, also where the tests run in the background; what `reproduce.main` sets does not outlive a test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory):
    """A Ray cluster of one node with two processors, beside the tests as in real use.

    Each of its seven processes imports jsonschema, which builds a grammar for three seconds where rfc3987_syntax is
    installed (Jupyter brings it); kept from that, the node is up before Ray loses patience on a busy machine.
    """
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r tests/requirements.txt")
    port, *agents = free_ports(5)
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--{name}-port={agent}" for name, agent in zip(names, agents, strict=True)]
    command += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000", "--include-dashboard=false"]
    command += ["--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    folder = tmp_path_factory.mktemp("ray")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    log = folder / "head.log"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with log.open("w") as output:
        head = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(folder)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as of a node started in the background
        )  # fmt: skip
    while "Ray runtime started" not in log.read_text():
        if head.poll() is not None:
            pytest.skip(f"Ray does not start here: {log.read_text().splitlines()[-1]}")
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.wait()
    del os.environ["RAY_AUTH_MODE"]


@pytest.fixture
def cluster(place, ray_address):
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    group = RayCluster(ray_address, slots=2)
    assert signal.getsignal(signal.SIGTERM) == on_sigterm
    yield group
    ray.shutdown()


def test_a_ray_cluster_does_the_same_work_and_is_stopped_and_continued_alike(place, cluster):
    place.plan = {"t/m/a seed 0": ["kill", "ok"], "t/m/c seed 0": ["long"]}
    place.start_from("b", "a")

    def stop():
        place.wait_for(("ends", "t/m/b seed 0"), ("starts", "t/m/c seed 0"))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        place.sweep("abc", cluster).run()
    happened = place.happened()
    assert happened[-1] == ("saved", "t/m/c seed 0")
    assert happened.index(("ends", "t/m/a seed 0")) < happened.index(("starts", "t/m/b seed 0"))
    place.sweep("abc", cluster).run()
    assert place.happened()[-2:] == [("continues", "t/m/c seed 0"), ("ends", "t/m/c seed 0")]
    assert len(records.read_records("quick")) == 3


def test_a_ray_node_without_the_repository_is_named(place, cluster, monkeypatch):
    monkeypatch.setattr(Run, "command", property(lambda run: ["/nowhere/reproduce.py"]))
    sweep = place.sweep("a", cluster)
    sweep.run()
    [note] = (records.record_path("t/m/a", "quick", 0).parent / "unfinished").glob("*.json")
    assert any("has no /nowhere/reproduce.py" in line for line in json.loads(note.read_text())["log"])


def shrunk():
    """Two learning rates whose runs at `quick` take seconds."""
    rows = [catalogue.find(f"learning-rate/gpt2-mini/e2e-builtin/lora/{rate}") for rate in ("0.002", "0.004")]
    return {e.name: replace(e, settings=replace(e.settings, train_rows=24)) for e in rows}


def few_dev_rows():
    """The built-in E2E with 24 rows in each split but that of training."""
    task = TASKS["e2e-builtin"]
    return replace(task, load=lambda split, *others: task.load(split, *others)[: None if split == "train" else 24])


SMALL_RUN = """
import sys
sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]
import reproduce
from experiments import catalogue
from tasks.catalogue import TASKS
from test_sweep import few_dev_rows, shrunk
catalogue.EXPERIMENTS, TASKS["e2e-builtin"] = shrunk(), few_dev_rows()
reproduce.main()
"""


@pytest.mark.slow
def test_real_runs_are_trained_and_recorded_by_two_workers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    (tmp_path / "small_run.py").write_text(SMALL_RUN)
    plain = Run.command.fget
    before = [str(tmp_path / "small_run.py"), str(files.ROOT / "code"), str(files.ROOT / "tests")]
    monkeypatch.setattr(Run, "command", property(lambda run: before + plain(run)[1:]))
    monkeypatch.setattr(catalogue, "EXPERIMENTS", shrunk())
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "sweep", "learning-rate", "--scale", "quick", "--workers", "2"])
    reproduce.main()
    first, second = records.read_records("quick")
    assert first["name"] == "learning-rate/gpt2-mini/e2e-builtin/lora/0.002"
    assert first["steps"] == second["steps"] == 3
    assert first["dev_loss"] != second["dev_loss"]
    assert f"dev_loss  1  {first['dev_loss']:.4f}" in capsys.readouterr().out
    left = sorted(path.suffix for path in (tmp_path / "checkpoints" / "quick").iterdir())
    assert left == [".holder", ".holder", ".lock", ".lock", ".log", ".log"]


def test_a_failure_that_cannot_be_noted_is_said_and_the_others_go_on(place, capsys, monkeypatch):
    place.plan = {"t/m/a seed 0": ["fail"]}

    def full_disk(note):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_unfinished", full_disk)
    sweep = place.sweep("ab", Processes(1))
    sweep.run()
    assert [record["name"] for record in records.read_records("quick")] == ["t/m/b"]
    assert "t/m/a seed 0: not noted: [Errno 28] No space left on device" in capsys.readouterr().out
    assert "2 times" in sweep.failed["t/m/a seed 0"]


def test_whatever_ends_a_sweep_stops_its_workers_first(place, monkeypatch):
    sweep, stopped = place.sweep("a", Processes(1)), []
    monkeypatch.setattr(sweep, "collect", lambda: 1 / 0)
    stop = sweep.workers.stop
    monkeypatch.setattr(sweep.workers, "stop", lambda handles: (stopped.append(len(handles)), stop(handles)))
    with pytest.raises(ZeroDivisionError):
        sweep.run()
    assert stopped == [1]
