"""The command line: list, run, sweep, table, figure.

python code/reproduce.py list
python code/reproduce.py run table3/gpt2-mini/lora-r4 --seed 0 --data-dir data
python code/reproduce.py sweep table3 --scale quick --seeds 0
python code/reproduce.py table table3 --scale quick
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import files
from analysis.quantities import remarks, shown_scores
from experiments.catalogue import EXPERIMENTS, find, select
from experiments.settings import SCALES, Experiment
from runs import records
from runs.run import AGAIN, Run, RunTaken, first_process
from runs.sweep import Sweep, in_order
from runs.workers import INTERRUPTED, TAKEN, InProcess, Processes, RayCluster

if TYPE_CHECKING:
    from costs.estimate import Estimate


def _estimate(experiment: Experiment) -> Estimate:
    from costs.estimate import estimate

    return estimate(experiment.settings, experiment.scale, records.read_records(experiment.scale))


def _minutes(experiments: list[Experiment]) -> dict[str, float]:
    """{name: minutes of a run}."""
    return {experiment.name: _estimate(experiment).minutes for experiment in experiments}


def _minutes_apart(experiments: list[Experiment]) -> dict[str, float]:
    """`_minutes` by a process that ends: on a GPU it opens a context, whose memory the runs of this sweep need."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(_minutes, experiments).result()


def list_command(arguments: argparse.Namespace) -> None:
    if arguments.table and arguments.table not in (tables := dict.fromkeys(e.table for e in EXPERIMENTS.values())):
        raise ValueError(f"no table is called {arguments.table!r}; the tables are {', '.join(tables)}")
    for experiment in EXPERIMENTS.values():
        if arguments.table in (None, experiment.table) and arguments.scale in (None, experiment.scale):
            print(f"{experiment.name:52} {experiment.scale:6} {experiment.about}")


def dry_run(chosen_runs: list[Run]) -> None:
    """Print the settings and the cost of each run, and of what it starts from; start nothing.

    What is recorded is not run again, so it adds no time to the sum.
    """
    minutes, runs = 0.0, in_order(chosen_runs)
    todo = [run for run in runs if not run.recorded]
    for experiment in {run.experiment.name: run.experiment for run in runs}.values():
        seeds = [run.seed for run in runs if run.experiment is experiment]
        cost = _estimate(experiment)
        minutes += cost.minutes * sum(run.experiment is experiment for run in todo)
        print(f"{experiment.name} at scale {experiment.scale}, seeds {' '.join(map(str, seeds))}")
        print(cost.described(experiment.settings))
    recorded = f", {len(runs) - len(todo)} of them recorded already" if len(todo) < len(runs) else ""
    print(f"runs: {len(runs)}{recorded}, about {minutes:.0f} min in all; nothing was started")


def run_command(arguments: argparse.Namespace) -> None:
    run = Run(find(arguments.name, arguments.scale), arguments.seed, arguments.data_dir)
    if arguments.dry_run:
        return dry_run([run])
    if first_process() and not run.recorded and not run.obstacle:
        for each in in_order([run]):
            print(f"{each}: about {_estimate(each.experiment).minutes:.1f} min", flush=True)
    from runs.execute import do, leave_process_group

    say = print if first_process() else lambda _: None
    try:
        record = do(run, say)
        say("\n".join((shown_scores(record, run.experiment.settings), *remarks(record))))
    finally:
        leave_process_group()


def sweep_command(arguments: argparse.Namespace) -> None:
    if arguments.address and arguments.engine != "ray":
        raise ValueError("--address needs --engine ray: give that too, or leave --address out")
    experiments = select(arguments.table, arguments.scale, arguments.rows, arguments.variant)
    chosen_runs = [Run(e, seed, arguments.data_dir) for seed in arguments.seeds for e in experiments]
    if arguments.dry_run:
        return dry_run(chosen_runs)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a sweep does one run a GPU, `accelerate launch` one run on several GPUs: launch `run`")
    runs = in_order(chosen_runs)
    open_runs = [run for run in runs if not run.recorded]
    for folder in (files.RESULTS, files.CHECKPOINTS) if open_runs else ():
        files.check_room(folder)
    print(
        f"runs at scale {experiments[0].scale}: {len(runs)}, recorded already: {len(runs) - len(open_runs)}", flush=True
    )
    open_experiments = list({run.experiment.name: run.experiment for run in open_runs}.values())
    if arguments.engine == "ray":
        workers = RayCluster(arguments.address, arguments.workers)
    else:
        workers = InProcess() if arguments.workers in (None, 1) else Processes(arguments.workers)
    apart = open_experiments and not isinstance(workers, InProcess)
    minutes = _minutes_apart(open_experiments) if apart else _minutes(open_experiments)
    sweep = Sweep(runs, workers, minutes)
    try:
        sweep.run()
    except KeyboardInterrupt as stop:
        again = shlex.join(["python", *sys.argv])
        raise KeyboardInterrupt(f"{stop or 'the sweep'}\n{sweep.summary()}\nto continue: {again}") from None
    print(f"\n{sweep.summary()}")
    if sweep.failed:
        sys.exit(1)


def table_command(arguments: argparse.Namespace) -> None:
    from publish.tables import as_text, table

    experiments = select(arguments.table, arguments.scale, arguments.rows, arguments.variant)
    print(as_text(table(experiments), arguments.table, experiments[0].scale))
    if any(records.damage(path) for experiment in experiments for path in records.record_paths(experiment)):
        sys.exit(1)  # which was named; the table is of the others


def figure_command(arguments: argparse.Namespace) -> None:
    from publish.figures import draw

    scale = arguments.scale or select(arguments.table)[0].scale
    print(draw(arguments.kind, arguments.table, scale)[0])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    scale = argparse.ArgumentParser(add_help=False)
    scale.add_argument(
        "--scale", choices=SCALES,
        help="only rows of this scale. quick: minutes, built-in data and model, proves the pipeline; cpu: real data, "
        "small real models; paper: the paper's models and settings, one A100. A full name needs none",
    )  # fmt: skip
    doing = argparse.ArgumentParser(add_help=False)
    doing.add_argument(
        "--data-dir", type=Path, help="folder with e2e/ and glue/; else LORA_DATA_DIR, data/cache, the internet"
    )
    doing.add_argument(
        "--dry-run", action="store_true", help="resolved settings, parameters, time and memory; start nothing"
    )

    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("table", help="such as table3")
    chosen.add_argument("--rows", nargs="+", help="only these rows, by a part of their names: lora-r4, mrpc, mrpc/full")
    chosen.add_argument("--variant", choices=("paper", "official-code"), default="paper", help="where the two disagree")

    command = commands.add_parser("list", help="every experiment by name", parents=[scale])
    command.add_argument("table", nargs="?", help="only those of one table, such as table3")
    command.set_defaults(call=list_command)
    command = commands.add_parser("run", help="one run, one record", parents=[scale, doing])
    command.add_argument("name", help="an experiment's name, as `list` prints it")
    command.add_argument(
        "--seed", type=int, default=0, help="of the rows' order, dropout and new parameters (default: 0)"
    )
    command.set_defaults(call=run_command)
    command = commands.add_parser(
        "sweep", help="all of a table; skips what is recorded", parents=[chosen, scale, doing]
    )
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of every row for each (default: 0)")
    command.add_argument(
        "--workers", type=_positive, metavar="N", help="runs at a time, a process each (default: 1, in this process)"
    )
    command.add_argument("--engine", choices=("processes", "ray"), default="processes", help="ray: one run a GPU of a "
                         "Ray cluster whose nodes share the repository, its results and its checkpoints")  # fmt: skip
    command.add_argument("--address", help="of the Ray cluster; without it RAY_ADDRESS, else one on this machine")
    command.set_defaults(call=sweep_command)
    command = commands.add_parser("table", help="ours beside the paper's", parents=[chosen, scale])
    command.set_defaults(call=table_command)
    command = commands.add_parser("figure", help="one figure of a table's runs", parents=[scale])
    command.add_argument("table", help="such as table3")
    command.add_argument(
        "--kind", default="parameters", help="such as training or costs; an unknown kind lists all of them "
        "(default: parameters, the score against trained parameters)",
    )  # fmt: skip
    command.set_defaults(call=figure_command)
    return parser


def main() -> None:
    files.show_any_text()
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was done is kept
    try:
        arguments.call(arguments)
    except BrokenPipeError:  # `| head` has read enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(f"\nstopped: {stop or AGAIN}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except RunTaken as taken:
        print(f"error: {taken}", file=sys.stderr)
        sys.exit(TAKEN)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
