"""The command line: list, run, sweep, table, figure.

python code/reproduce.py list
python code/reproduce.py run table3/gpt2/lora-r4 --scale cpu --seed 0 --data-dir ../shared/data
python code/reproduce.py sweep table3 --scale quick --seeds 0
python code/reproduce.py table table3 --scale quick
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import records
from experiments import EXPERIMENTS, SCALES, Experiment, find, resolve, select


def _estimate(experiment: Experiment, scale: str):
    from costs import estimate

    return estimate(resolve(experiment, scale), scale, records.read_records(scale))


def list_command(arguments: argparse.Namespace) -> None:
    for experiment in EXPERIMENTS.values():
        if arguments.table in (None, experiment.table):
            scales = experiment.only or ", ".join(SCALES)
            print(f"{experiment.name:48} {experiment.about}  [{scales}]")


def dry_run(experiments: list[Experiment], scale: str, seeds: list[int]) -> None:
    """Print the resolved settings and the cost of each run; start nothing."""
    minutes = 0.0
    for experiment in experiments:
        cost = _estimate(experiment, scale)
        minutes += cost.minutes * len(seeds)
        print(f"{experiment.name} at scale {scale}, seeds {' '.join(map(str, seeds))}")
        for key, value in asdict(resolve(experiment, scale)).items():
            print(f"  {key:18} {value}")
        print(f"  parameters         {cost.trainable:,} trainable of {cost.total:,}")
        print(f"  optimizer steps    {cost.steps:,}")
        print(f"  about              {cost.minutes:.1f} min, {cost.gigabytes:.1f} GiB a run ({cost.basis})")
    print(f"{len(experiments) * len(seeds)} runs, about {minutes:.0f} min; nothing was started")


def run_command(arguments: argparse.Namespace) -> None:
    experiment = find(arguments.name)
    if arguments.dry_run:
        return dry_run([experiment], arguments.scale, [arguments.seed])
    _run_all([(experiment, arguments.seed)], arguments)


def sweep_command(arguments: argparse.Namespace) -> None:
    experiments = select(arguments.table, arguments.scale, arguments.rows, arguments.variant)
    if arguments.dry_run:
        return dry_run(experiments, arguments.scale, arguments.seeds)
    _run_all([(e, seed) for seed in arguments.seeds for e in experiments], arguments)


def _run_all(work: list[tuple[Experiment, int]], arguments: argparse.Namespace) -> None:
    scale = arguments.scale
    open_work = [(e, seed) for e, seed in work if not records.record_path(e.name, scale, seed).exists()]
    print(f"{len(work)} runs at scale {scale}, {len(work) - len(open_work)} of them recorded already", flush=True)
    if open_work:
        costs = {e.name: _estimate(e, scale) for e, _ in open_work}
        print(f"about {sum(costs[e.name].minutes for e, _ in open_work):.0f} min on this machine", flush=True)
        from runs import run
    for number, (experiment, seed) in enumerate(open_work, start=1):
        cost = costs[experiment.name]
        print(f"\n[{number}/{len(open_work)}] {experiment.name} seed {seed}: about {cost.minutes:.1f} min", flush=True)
        record = run(experiment, scale, seed, arguments.data_dir)
        shown = record.get("scores") or {k: record[k] for k in ("dev_loss", "selection_score") if k in record}
        print("  ".join(f"{k} {v:.4f}" for k, v in shown.items() if v is not None), flush=True)


def table_command(arguments: argparse.Namespace) -> None:
    from result_tables import as_text, table

    frame = table(arguments.table, arguments.scale, arguments.rows, arguments.variant)
    print(as_text(frame, arguments.table, arguments.scale))


def figure_command(arguments: argparse.Namespace) -> None:
    from figures import score_against_parameters

    print(score_against_parameters(arguments.table, arguments.scale))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    scale = argparse.ArgumentParser(add_help=False)
    scale.add_argument(
        "--scale", choices=SCALES, default="quick",
        help="quick: minutes, built-in data and model, proves the pipeline; cpu: real data, small real models; "
        "paper: the paper's models and settings, one A100 (default: quick)",
    )  # fmt: skip
    doing = argparse.ArgumentParser(add_help=False)
    doing.add_argument(
        "--data-dir", type=Path, help="folder with e2e/*.csv; else LORA_DATA_DIR, data/cache, the internet"
    )
    doing.add_argument(
        "--dry-run", action="store_true", help="resolved settings, parameters, time and memory; start nothing"
    )

    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("table", help="such as table3")
    chosen.add_argument("--rows", nargs="+", help="only these rows, such as full lora-r4")
    chosen.add_argument("--variant", choices=("paper", "official-code"), default="paper", help="where the two disagree")

    command = commands.add_parser("list", help="every experiment by name")
    command.add_argument("table", nargs="?", help="only those of one table, such as table3")
    command.set_defaults(call=list_command)
    command = commands.add_parser("run", help="one run, one record", parents=[scale, doing])
    command.add_argument("name", help="an experiment's name, as `list` prints it")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(call=run_command)
    command = commands.add_parser(
        "sweep", help="all of a table; skips what is recorded", parents=[chosen, scale, doing]
    )
    command.add_argument("--seeds", type=int, nargs="+", default=[0])
    command.set_defaults(call=sweep_command)
    command = commands.add_parser("table", help="ours beside the paper's", parents=[chosen, scale])
    command.set_defaults(call=table_command)
    command = commands.add_parser("figure", help="score against trainable parameters", parents=[scale])
    command.add_argument("table", help="such as table3")
    command.set_defaults(call=figure_command)
    return parser


def main() -> None:
    arguments = _parser().parse_args()
    try:
        arguments.call(arguments)
    except KeyboardInterrupt as stop:
        sys.exit(f"\nstopped: {stop or 'interrupted'}")
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
