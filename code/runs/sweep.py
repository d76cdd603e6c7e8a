"""All runs of a table that are not recorded, several at a time, each after the run that it starts from.

    python code/reproduce.py sweep table2 --scale cpu --seeds 0 1 2 3 4 --workers 2

An interrupted run continues from its checkpoint. A run that another process is doing is left to it, so that two sweeps
share the work. A run whose worker dies is tried once more, then marked as failed and passed over.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from runs import records
from runs.run import Run, taken
from runs.workers import INTERRUPTED, POLL_SECONDS, TAKEN, InProcess, Processes, RayCluster
from tasks.catalogue import Metric

ATTEMPTS = 2
LOG_LINES = 20  # of a dead worker's log, kept with the note of its failure


def in_order(work: list[Run]) -> list[Run]:
    """The work, with the missing runs that it starts from; each run comes after the one it starts from."""
    ordered: list[Run] = []

    def add(run: Run) -> None:
        if not run.recorded and run.lacks_start:
            add(run.start)
        if run not in ordered:
            ordered.append(run)

    for run in work:
        add(run)
    return ordered


Minutes = list[tuple[float, float]]  # (estimated, spent) of each run


def minutes_left(waiting: list[float], running: Minutes, finished: Minutes, slots: int, slow: float) -> float:
    """Minutes until all is done, from the estimates of waiting runs and the `Minutes` of running and finished ones.

    Estimates are corrected by what the finished runs took, or by the factor `slow` while none has finished.
    """
    pace = sum(spent for _, spent in finished) / sum(minutes for minutes, _ in finished) if finished else slow
    left = [pace * minutes for minutes in waiting] + [max(0.0, pace * minutes - spent) for minutes, spent in running]
    return sum(left) / slots


def alarming(record: dict[str, Any]) -> bool:
    """Whether the scores of the record are those of a model that has learnt nothing."""
    return bool(record.get("scores", {}).get("alarm"))


@dataclass
class Started:
    """A run that a worker is doing."""

    run: Run
    handle: Any
    started: float  # seconds of time.time()

    @property
    def minutes(self) -> float:
        return (time.time() - self.started) / 60


class Sweep:
    """The runs of a sweep and how far they are: `run` does them, `failed` says which were not finished, and why."""

    def __init__(self, work: list[Run], workers: InProcess | Processes | RayCluster, minutes: dict[str, float]):
        """`minutes` estimates a run of each experiment, by name."""
        self.runs, self.workers, self.minutes = in_order(work), workers, minutes
        self.waiting = [run for run in self.runs if not run.recorded]
        self.running: dict[int, Started] = {}  # by slot
        self.spent: Minutes = []  # of finished runs
        self.attempts: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.of_these_data: set[tuple[str, str]] = set()  # task and data of records that were compared

    def run(self) -> None:
        """Do all runs that are not recorded; after a stop, KeyboardInterrupt when all states are saved."""
        for run in self.runs:
            if run.recorded:
                self.compare_data(run)
        if elsewhere := sum(map(taken, self.waiting)):
            self.say(f"{elsewhere} of them are being done by another process")
        try:
            while self.waiting or self.running:
                self.leave_out()
                self.start()
                if not self.collect():
                    time.sleep(POLL_SECONDS)
        except BaseException:  # else the workers, which an interrupt does not reach, would go on alone
            self.say(f"stopping; {len(self.running)} runs save their state first")
            self.workers.stop([started.handle for started in self.running.values()])
            raise

    def compare_data(self, run: Run) -> None:
        """Give up a run whose record is of other data than it reads now; records of the same data are compared once."""
        from runs.identity import of_other_data

        data = run.experiment.settings.task, str(records.read_record(run.record).get("data_fingerprint"))
        if data in self.of_these_data:
            return
        try:
            obstacle = of_other_data(run)
        except (ValueError, OSError) as error:  # of a file that cannot be read; the other runs go on
            obstacle = str(error)
        if obstacle:
            self.give_up(run, obstacle)
        else:
            self.of_these_data.add(data)

    def leave_out(self) -> None:
        """Leave out runs that another process has finished, and those that cannot be started."""
        for run in list(self.waiting):
            if run.recorded:
                self.waiting.remove(run)
                self.say(f"{run}: recorded by another process")
                self.compare_data(run)
            elif run.obstacle:
                self.give_up(run, run.obstacle)
            elif str(run.start) in self.failed:
                self.give_up(run, f"not started: {run.start}, which it starts from, was not finished")

    def start(self) -> None:
        """Give every free worker a run that nobody is doing and that does not wait for another one."""
        for slot in set(range(self.workers.slots)) - self.running.keys():
            open_runs = [*self.waiting, *(started.run for started in self.running.values())]
            ready = (run for run in self.waiting if run.start not in open_runs)
            if run := next((run for run in ready if not taken(run) and not (run.start and taken(run.start))), None):
                self.say(f"{run} starts, about {self.minutes[run.experiment.name]:.1f} min")
                self.waiting.remove(run)
                self.attempts[str(run)] += 1
                now = time.time()
                self.running[slot] = Started(run, self.workers.start(run, slot), now)

    def collect(self) -> bool:
        """Settle the runs that have ended; return whether there were any."""
        codes = {slot: self.workers.poll(started.handle) for slot, started in self.running.items()}
        ended = {slot: code for slot, code in codes.items() if code is not None}
        for slot, code in ended.items():
            self.settle(self.running.pop(slot), code)
        return bool(ended)

    def settle(self, ended: Started, code: int) -> None:
        run, ending = (
            ended.run,
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}",
        )
        if code == 0 or run.recorded:
            self.spent.append((self.minutes[run.experiment.name], ended.minutes))
            self.say(f"{run}: {self.shown(run)} in {ended.minutes:.1f} min")
        elif code == TAKEN:  # another process was faster
            self.attempts[str(run)] -= 1
            self.waiting.append(run)
        elif code == INTERRUPTED:
            self.give_up(run, "interrupted; the same command continues it")
        elif self.attempts[str(run)] < ATTEMPTS:
            self.waiting.insert(0, run)
            self.say(f"{run} {ending} and is tried once more; see {run.log}")
        else:
            self.mark_failed(ended, code, ending)
            self.give_up(run, f"{ending}, {ATTEMPTS} times; see {run.log}; the same command tries it anew")

    def mark_failed(self, ended: Started, code: int, how: str) -> None:
        """Record the failure if the run did not: a run that is killed cannot."""
        run = ended.run
        notes = records.notes(run.experiment.name, run.experiment.scale, run.seed)
        if any(note.stat().st_mtime >= ended.started for note in notes):
            return
        log = run.log.read_text(encoding="utf-8", errors="replace").splitlines() if run.log.exists() else []
        note = {
            "name": run.experiment.name, "scale": run.experiment.scale, "seed": run.seed, "status": "failed",
            "error": f"its worker {how}, {ATTEMPTS} times", "exit_code": code, "log": log[-LOG_LINES:],
            "settings": asdict(run.experiment.settings), **records.provenance(),
        }  # fmt: skip
        try:
            records.write_unfinished(note)
        except OSError as unwritten:
            self.say(f"{run}: not noted: {unwritten}")

    def give_up(self, run: Run, why: str) -> None:
        if run in self.waiting:
            self.waiting.remove(run)
        self.failed[str(run)] = why
        self.say(f"{run}: {why}")

    def shown(self, run: Run) -> str:
        record = records.read_record(run.record)
        if record is None:
            return "recorded"
        name, metric, value = records.main_score(record)
        return f"{name} {metric.shown(value) or 'not measured'}"

    def say(self, message: str) -> None:
        waiting = [self.minutes[run.experiment.name] for run in self.waiting]
        running = [(self.minutes[s.run.experiment.name], s.minutes) for s in self.running.values()]
        left = minutes_left(waiting, running, self.spent, self.workers.slots, self.workers.slowdown)
        done = len(self.runs) - len(waiting) - len(running) - len(self.failed)
        print(f"[{done} of {len(self.runs)} done, about {left:.0f} min left] {message}", flush=True)

    def summary(self) -> str:
        """A table, a row an experiment: number of seeds, median, minimum, maximum, and each seed's main metric."""
        seeds = sorted({run.seed for run in self.runs})
        rows = [["experiment", "metric", "n", "median", "min", "max", *(f"seed {seed}" for seed in seeds)]]
        for experiment in {run.experiment.name: run.experiment for run in self.runs}.values():
            recorded = [r for r in records.records_of(experiment) if str(Run(experiment, r["seed"])) not in self.failed]
            by_seed = {r["seed"]: r for r in recorded if r["seed"] in seeds}
            scores = {seed: records.main_score(record) for seed, record in by_seed.items()}
            name, metric, _ = next(iter(scores.values()), ("-", Metric(), None))
            values = {seed: value for seed, (*_, value) in scores.items() if value is not None}
            spread = [metric.shown(f(values.values())) if values else "-" for f in (median, min, max)]
            cells = [
                f"{metric.shown(values[seed])}{'!' if alarming(by_seed[seed]) else ''}" if seed in values
                else "failed" if f"{experiment.name} seed {seed}" in self.failed else "-"
                for seed in seeds
            ]  # fmt: skip
            rows.append([experiment.name, name, str(len(values)), *spread, *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if any("!" in line for line in lines):
            lines.append("!: one class takes nearly all predictions, or the score is no better than the largest class")
        lines += [f"not finished: {run}: {why}" for run, why in self.failed.items()]
        return "\n".join(lines)
