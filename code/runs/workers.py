"""The workers that do runs: this process, processes beside it, or a Ray cluster.

A group of workers has `slots`, the runs at a time, and `slowdown`, how much longer a run takes on a shared machine.
`start(run, slot)` gives a handle; `poll(handle)` gives the exit code, or None while the run goes on. `stop(handles)`
returns when every run has saved its state. `sweep.py` decides which run starts when.

A worker's run is a process of its own, `reproduce.py run NAME ...`. Its output goes to the run's log.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import files
from runs.run import Run, RunTaken, taken

TAKEN = 75  # exit code of a run that another process is doing: EX_TEMPFAIL, which Windows has no name for
INTERRUPTED = 128 + signal.SIGINT  # exit code of a run that was stopped, as shells have it
POLL_SECONDS = 0.5


def launch(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Start Python in a session of its own: Ctrl-C reaches it only through its starter. Its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *command], env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def folders() -> dict[str, str]:
    """Environment variables that give another process this one's results and checkpoints."""
    return {"LORA_RESULTS_DIR": str(files.RESULTS), "LORA_CHECKPOINT_DIR": str(files.CHECKPOINTS)}


class InProcess:
    """One run after the other in this process; a handle is the exit code that another process would have."""

    slots, slowdown = 1, 1.0

    def start(self, run: Run, slot: int) -> int:
        from runs.execute import do

        try:
            do(run)
        except RunTaken:
            return TAKEN
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except Exception:
            traceback.print_exc()
            return 1
        return 0

    def poll(self, code: int) -> int:
        return code

    def stop(self, codes: list[int]) -> None:
        """Do nothing: the stop has reached the run itself."""


class Processes:
    """Several runs on this machine, evenly on its GPUs; each has its share of the threads and of a GPU's memory."""

    def __init__(self, slots: int):
        import torch

        self.slots = slots
        everywhere = ",".join(map(str, range(torch.cuda.device_count())))
        self.gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", everywhere).split(",") if gpu]
        self.threads = max(1, torch.get_num_threads() // slots)
        self.slowdown = slots / max(1, min(slots, len(self.gpus)))

    def environment(self, slot: int) -> dict[str, str]:
        from training.memory import RUNS_PER_GPU

        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        share = {RUNS_PER_GPU: str(-(-self.slots // len(self.gpus)))} if self.gpus else {}
        return folders() | {"OMP_NUM_THREADS": str(self.threads)} | gpu | share

    def start(self, run: Run, slot: int) -> subprocess.Popen:
        return launch(run.command, self.environment(slot), run.log)

    def poll(self, process: subprocess.Popen) -> int | None:
        return process.poll()

    def stop(self, processes: list[subprocess.Popen]) -> None:
        for process in processes:
            process.terminate()
        try:
            for process in processes:
                process.wait()
        except KeyboardInterrupt:  # a second Ctrl-C: at once, without saving
            for process in processes:
                process.kill()
            raise


def on_node(command: list[str], environment: dict[str, str], log: Path) -> int:
    """A Ray task: do the run in a process of the node. Cancelling the task stops the process and waits for it."""
    if not Path(command[0]).exists():
        raise FileNotFoundError(
            f"{socket.gethostname()} has no {command[0]}: the repository, its results and its checkpoints have to be "
            "in the same place on every node, on a file system that they share"
        )
    # What Ray cancels a task with, and what a node that was started in the background ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = launch(command, environment, log)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        process.terminate()
    return process.wait()


class RayCluster:
    """One run a GPU of a Ray cluster, or `slots` runs that share its processors where it has no GPU.

    `address` is that of `ray.init`: None is the cluster of RAY_ADDRESS, or a new one on this machine. Raises
    ValueError where Ray is not installed, or no cluster answers.
    """

    slowdown = 1.0

    def __init__(self, address: str | None = None, slots: int | None = None):
        cluster = address or os.environ.get("RAY_ADDRESS")
        if cluster:
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # of 40 s each; Ray's 20 take a quarter of an hour
        try:
            import ray
        except ModuleNotFoundError:
            raise ValueError("--engine ray needs Ray, which is not installed: pip install 'ray>=2.40,<3'") from None
        self.ray = ray
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster answers at {cluster or 'the address that Ray remembers'}: {error}; start one there, "
                "or leave --address out (and RAY_ADDRESS; `ray stop` forgets a cluster that has crashed)"
            ) from error
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler would end the sweep before its runs stop
        resources = ray.cluster_resources()
        gpus, processors = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.slots = min(slots or gpus, gpus) if gpus else slots or 1
        self.threads = max(1, processors // self.slots)
        share = {"num_gpus": 1} if gpus else {"num_cpus": self.threads}
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node's Python does not know code/
        self.task = ray.remote(max_retries=0, **share)(on_node)

    def start(self, run: Run, slot: int) -> tuple[Any, Run]:
        environment = folders() | {"OMP_NUM_THREADS": str(self.threads)}
        return self.task.remote(run.command, environment, run.log), run

    def poll(self, handle: tuple[Any, Run]) -> int | None:
        task, run = handle
        if not self.ray.wait([task], timeout=0)[0]:
            return None
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:  # the node was lost, or does not see the repository
            run.log.parent.mkdir(parents=True, exist_ok=True)
            with run.log.open("a", encoding="utf-8") as log:
                log.write(f"{error}\n")
            return 1

    def stop(self, handles: list[tuple[Any, Run]]) -> None:
        for task, _ in handles:
            self.ray.cancel(task)
        while any(taken(run) for _, run in handles):  # Ray ends a cancelled task before its process ends
            time.sleep(POLL_SECONDS)
