"""One free-form run into a folder of its own: a declared experiment, changed by flags.

    python code/train.py --task mnli --r 8 --alpha 16 --lora_target_weights query value --output_dir runs/mnli
    python code/train.py --task mrpc --model minilm --lr 1e-3 --epochs 5 --output_dir runs/mrpc --dry-run
    python code/train.py --task e2e-builtin --method full --output_dir runs/e2e
    python code/train.py --task rte --method adapter-h --bottleneck 64 --lr 1e-4 --output_dir runs/rte

Without a flag, a setting is that of Table 2 or 3 (RoBERTa-base: Table 9 of the paper, without the MNLI start). The
flags are an experiment's settings (`experiments/settings.py`); a flag of another method or task is refused. The folder
gets `record.json` (as `results/runs`, with scale `free`), `metrics.csv` (a row an epoch), `predictions.jsonl` and, in
`adapter/`, what was trained beside a frozen base. The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from analysis.quantities import remarks, shown_scores
from experiments.catalogue import EXPERIMENTS
from experiments.settings import SCALES, Job, Settings
from files import read_json, remove_leftovers, show_any_text, write_atomically, write_json
from runs.run import AGAIN, RunTaken, lock, run_identity
from tasks.catalogue import TASKS

SCALE = "free"
FLAGS = {  # setting -> its flag, where it is not the setting's name
    "rank": "--r", "learning_rate": "--lr", "max_length": "--max_seq_length", "lora_dropout": "--dropout",
    "targets": "--lora_target_weights", "b_learning_rate_ratio": "--b_lr_ratio",
}  # fmt: skip
ASKED_FIRST = ("task", "model", "method")
OF_EXPERIMENTS = ("start_from", "evaluate")  # settings that only a declared experiment has
ENTRIES = {"status", "settings", "seed", "task_version"}  # of every record, by which a run is known
DEFAULTS = {field.name: field.default for field in fields(Settings)}


def flag(setting: str) -> str:
    """The flag of a setting: --r, --lr, --bottleneck."""
    return FLAGS.get(setting, f"--{setting}")


def defaults(task: str, method: str, model: str | None = None) -> tuple[str, Settings]:
    """Name and settings of the row of Table 2 or 3 that a run without further flags follows, at the largest scale.

    Where no row has the model, the smallest model's row counts. Where none has the method, LoRA's row counts; where
    none has the task, another task's. The released adapters have rows of their own, with their scale.
    """
    from models import BASES

    table, lora_row = TASKS[task].paper_table, TASKS[task].lora_row
    rows = [
        e
        for e in EXPERIMENTS.values()
        if e.table in (table, method)
        and (e.variant, e.settings.method) == ("paper", method)
        and (method != "lora" or e.row == lora_row)
    ]
    if rows := [e for e in rows if e.settings.task == task] or (rows if method == "lora" else []):
        rows.sort(
            key=lambda e: (-SCALES.index(e.scale), e.settings.dropped_layers, list(BASES).index(e.settings.model))
        )
        row = next((e for e in rows if e.settings.model == model), rows[0])
        changes = {"task": task, "model": model or row.settings.model, "start_from": None}
        return f"{row.name} at scale {row.scale}", replace(row.settings, **changes)
    return defaults(task, "lora", model)


def free_settings(arguments: argparse.Namespace) -> tuple[str, Settings]:
    """The row of `defaults` by name, and its settings changed by the flags; ValueError for contradicting flags."""
    from methods.catalogue import METHODS

    name, settings = defaults(arguments.task, arguments.method, arguments.model)
    given = {key: value for key, value in vars(arguments).items() if key in DEFAULTS and value is not None}
    for kind, chosen, entries in (("--method", arguments.method, METHODS), ("--task", arguments.task, TASKS)):
        foreign = {key for entry in entries.values() for key in entry.settings} - {*entries[chosen].settings}
        if odd := [flag(key) for key in given if key in foreign]:
            raise ValueError(f"{', '.join(odd)}: {kind} {chosen} has no such setting; leave it out")
    if settings.method != arguments.method:
        if METHODS[arguments.method].trains and "learning_rate" not in given:
            raise ValueError(
                f"Tables 2 and 3 have no {arguments.method} on {arguments.task}, so no learning rate for it: "
                f"give {flag('learning_rate')}"
            )
        lora_only = {*METHODS["lora"].settings} - {*METHODS[arguments.method].settings}
        settings = replace(settings, **{key: DEFAULTS[key] for key in lora_only})
    if {"warmup_steps", "warmup_ratio"} <= given.keys():
        raise ValueError("--warmup_steps and --warmup_ratio each say how long the warm-up is: leave one of them out")
    if "warmup_ratio" in given:
        given["warmup_steps"] = 0  # any number of steps would come before the ratio
    return name, replace(settings, **given)


def train(job: Job, folder: Path) -> dict[str, Any]:
    """Do the run in `folder`, continue it there, or return the record of a finished one.

    Raises ValueError where `folder` holds a run of other settings or other data, which stays as it is.
    """
    import pandas as pd

    from runs.execute import begin, measure, unfinished
    from runs.identity import data_fingerprint, other_data

    path, settings = folder / "record.json", job.settings
    row = f"lora-r{settings.rank}" if settings.method == "lora" else settings.method
    record = begin(f"train/{settings.model}/{settings.task}/{row}", SCALE, job.seed, settings)
    earlier = read_json(path) if path.exists() else {}
    if path.exists():
        _refuse_another(earlier, record, folder)
    for name in ("record.json", "metrics.csv", "predictions.jsonl"):
        remove_leftovers(folder / name)
    if not (finished := earlier.get("status") == "finished"):
        record["data_fingerprint"] = data_fingerprint(job)  # fetches what is not on this machine
    if differing := other_data(earlier, job):
        raise ValueError(
            f"{folder} holds a run ({earlier['status']}) of other data: {differing}. Name its data (--data-dir, "
            "LORA_DATA_DIR), choose another --output_dir, or delete that one"
        )
    if finished:
        print(f"{folder} holds this run, finished; nothing to do")
        return earlier
    job = replace(job, folder=job.folder / run_identity(settings, job.seed, record["data_fingerprint"]))
    write_json(path, record | {"status": "interrupted"})  # its status if the process is killed
    try:
        measured, predictions = measure(job, folder / "adapter")
    except (Exception, KeyboardInterrupt) as error:
        with suppress(OSError):  # on a full disk `error` says so
            write_json(path, record | unfinished(error))
        raise
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions]
    write_atomically(folder / "predictions.jsonl", "".join(lines).encode(errors="backslashreplace"))
    record |= measured | {"predictions": "predictions.jsonl"}
    if rows := metrics(record):
        write_atomically(folder / "metrics.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_json(path, record)
    shutil.rmtree(job.folder, ignore_errors=True)
    with suppress(OSError):  # other checkpoints may lie beside it
        job.folder.parent.rmdir()
    return record


def metrics(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an epoch: training loss, validation loss and, for GLUE, the task's metrics on the reported split.

    There is none where nothing was trained.
    """
    from runs.glue import HELD_OUT, mean_training_loss

    if "epochs" in record:
        split = next(name for name in record["rows"] if name not in ("train", HELD_OUT))
        return [
            {"epoch": row["epoch"], "training_loss": row["training_loss"], "validation_loss": row[split]["loss"]}
            | {metric: row[split][metric] for metric in TASKS[record["settings"]["task"]].metrics}
            for row in record["epochs"]
        ]
    history = record.get("history", [])
    validated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return [
        {"epoch": epoch, "training_loss": mean_training_loss(history, epoch), "validation_loss": loss}
        for epoch, loss in enumerate(validated, start=1)
    ]


def _refuse_another(earlier: dict[str, Any], record: dict[str, Any], folder: Path) -> None:
    def decisive(facts: dict[str, Any]) -> dict[str, Any]:
        settings = DEFAULTS | facts["settings"]  # a run that is older than a setting has its default
        return json.loads(json.dumps(settings)) | {key: facts[key] for key in ("seed", "task_version")}

    if lacking := sorted(ENTRIES - earlier.keys()):
        raise ValueError(
            f"expected in {folder / 'record.json'} the record of a run, found no {', '.join(lacking)} in it; choose "
            "another --output_dir, or delete that file"
        )
    theirs, ours = decisive(earlier), decisive(record)
    if differing := [
        f"{key} {theirs.get(key)}, not {ours.get(key)}" for key in ours | theirs if theirs.get(key) != ours.get(key)
    ]:
        raise ValueError(
            f"{folder} holds a run ({earlier['status']}) of other settings: {'; '.join(differing)}. "
            "Choose another --output_dir, or delete that one"
        )


def _folder(text: str) -> Path:
    path = Path(text)
    if not (existing := next(place for place in (path, *path.parents) if place.exists())).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, found the file {existing}")
    return path


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag of the right type for every setting; the comment beside the setting is its help."""
    comments = dict(re.findall(r"^    (\w+): [^#\n]*  # (.*)$", inspect.getsource(Settings), re.MULTILINE))
    for field in fields(Settings):
        if field.name in (*ASKED_FIRST, *OF_EXPERIMENTS):
            continue
        kind = re.search("int|float|str|bool", field.type)[0]
        options: dict[str, Any] = {"type": {"int": int, "float": float, "str": str, "bool": bool}[kind]}
        if kind == "bool":
            options = {"action": argparse.BooleanOptionalAction}
        elif "tuple" in field.type:
            options |= {"nargs": "+", "action": _Tuple}
        parser.add_argument(
            flag(field.name), dest=field.name, help=comments.get(field.name, "").replace("%", "%%"), **options
        )


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: list, option: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="train.py --task TASK --output_dir FOLDER [settings, of which --help has the list]",
    )  # fmt: skip
    add = parser.add_argument
    add("--task", choices=TASKS, required=True)
    add("--model", help="such as roberta-base, minilm, gpt2-medium (default: that of the task's row)")
    add(
        "--method",
        default="lora",
        help="such as full, bitfit, adapter-h; any other word prints the list (default: lora)",
    )
    add("--seed", type=int, default=0)
    add("--output_dir", type=_folder, required=True)
    add("--data-dir", type=Path, help="folder with glue/ and e2e/; else LORA_DATA_DIR, data/cache, the internet")
    add("--dry-run", action="store_true", help="print settings, parameters, time and memory; start nothing")
    _add_settings(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from methods.catalogue import method

    method(arguments.method)  # ValueError with the list for an unknown one
    name, settings = free_settings(arguments)
    from costs.estimate import estimate
    from training.int8 import require_torchao

    if settings.int8_base:
        require_torchao()
    job = Job(settings, arguments.seed, arguments.output_dir / "checkpoints", arguments.data_dir)
    cost = estimate(settings, SCALE)  # before anything is written: a model that does not fit the task ends here
    print(f"as {name}, where no flag says otherwise:\n{cost.described(settings)}", flush=True)
    if arguments.dry_run:
        return print("nothing was started")
    folder = arguments.output_dir
    with lock(folder / ".lock", f"a run in {folder}"):
        record = train(job, folder)
    print(shown_scores(record, settings), *remarks(record), sep="\n")


def main() -> None:
    show_any_text()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        _run(_parser().parse_args())
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        sys.exit(f"\nstopped: {stop or AGAIN}")
    except (ValueError, OSError, FloatingPointError, ImportError, RunTaken) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
