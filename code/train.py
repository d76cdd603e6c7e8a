"""One free-form run with flags, into a folder of its own: a declared experiment, and what you change of it.

    python code/train.py --task mnli --r 8 --alpha 16 --lora_target_weights query value --output_dir runs/mnli
    python code/train.py --task mrpc --model minilm --lr 1e-3 --epochs 5 --output_dir runs/mrpc --dry-run
    python code/train.py --task e2e-builtin --method full --output_dir runs/e2e
    python code/train.py --task rte --method adapter-h --bottleneck 64 --lr 1e-4 --output_dir runs/rte

What no flag says is as in Table 2 or 3 (RoBERTa-base: Table 9 of the paper, without the MNLI start). The
folder gets `record.json` (as `results/runs`, with scale `free`), `metrics.csv` (a row an epoch),
`predictions.jsonl` and, in `adapter/`, what was trained beside a frozen base. The same command continues a
run that was stopped. Ranks that change over time are experiments of `reproduce.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from experiments import EXPERIMENTS, resolve
from records import write_atomically
from settings import SCALES, Settings
from tasks import TASKS, GlueTask
from work import RunTaken, lock

SCALE = "free"
ADAPTERS, PREFIXES = ("adapter-h", "adapter-l", "adapter-p"), ("preembed", "prelayer")
METHODS = ("full", "lora", "bitfit", "top-layers", *ADAPTERS, *PREFIXES)
TARGETS = ("query", "key", "value", "output", "mlp_in", "mlp_out")
METHODS_WITH = {  # setting -> its flag, the methods that have it
    "rank": ("--r", ("lora",)),
    "alpha": ("--alpha", ("lora",)),
    "lora_dropout": ("--dropout", ("lora",)),
    "targets": ("--lora_target_weights", ("lora",)),
    "rank_stabilised": ("--rank_stabilised", ("lora",)),
    "b_learning_rate_ratio": ("--b_lr_ratio", ("lora",)),
    "top_layers": ("--top_layers", ("top-layers",)),
    "bottleneck": ("--bottleneck", ADAPTERS),
    "dropped_layers": ("--dropped_layers", ADAPTERS),
    "prefix_tokens": ("--prefix_tokens", PREFIXES),
}
SIZES = ("top_layers", "bottleneck", "prefix_tokens")


def defaults(task: str, method: str, model: str | None = None) -> tuple[str, Settings]:
    """The row of Table 2 or 3, at the largest scale, that a run without further flags is; and what it is called.

    Where no row has the model, it takes the settings of the smallest one's; where none has the method, LoRA's row.
    """
    from models import BASES

    row = "lora-r8" if isinstance(TASKS[task], GlueTask) else "lora-r4"
    candidates = [
        (f"{experiment.name} at scale {scale}", replace(resolve(experiment, scale), start_from=None), experiment.row)
        for scale in reversed(SCALES)
        for experiment in EXPERIMENTS.values()
        if experiment.table in ("table2", "table3") and experiment.variant == "paper" and scale in experiment.scales
    ]
    found = [
        (name, settings)
        for name, settings, its_row in candidates
        if (settings.task, settings.method) == (task, method) and (method != "lora" or its_row == row)
    ]
    if not found:
        return defaults(task, "lora", model)
    found.sort(key=lambda pair: (pair[1].dropped_layers, list(BASES).index(pair[1].model)))  # all layers, small first
    name, settings = next((pair for pair in found if pair[1].model == model), found[0])
    return name, replace(settings, model=model or settings.model)


def free_settings(arguments: argparse.Namespace) -> tuple[str, Settings]:
    """The settings of the flags, and of `defaults` without; ValueError for flags that do not go together."""
    method = arguments.method
    name, settings = defaults(arguments.task, method, arguments.model)
    known = {field.name for field in fields(Settings)}
    given = {key: value for key, value in vars(arguments).items() if key in known and value is not None}
    if odd := [flag for key, (flag, methods) in METHODS_WITH.items() if key in given and method not in methods]:
        raise ValueError(f"{', '.join(odd)}: --method {method} has no such setting; leave it out")
    if "max_length" in given and not isinstance(TASKS[arguments.task], GlueTask):
        raise ValueError(f"--max_seq_length is of the GLUE tasks; {arguments.task} takes what the model takes")
    if settings.method != method:
        sizes = {key: flag for key, (flag, methods) in METHODS_WITH.items() if key in SIZES and method in methods}
        if lacking := [flag for key, flag in ({"learning_rate": "--lr"} | sizes).items() if key not in given]:
            raise ValueError(f"Tables 2 and 3 have no {method} on {arguments.task}: give {' and '.join(lacking)}")
        settings = replace(settings, method=method, rank=None, alpha=None, lora_dropout=0.0, targets=())
    if "targets" in given:
        given["targets"] = tuple(given["targets"])
    if "warmup_ratio" in given:
        given["warmup_steps"] = 0  # which would come first
    return name, replace(settings, **given)


def train(settings: Settings, seed: int, folder: Path, data_dir: Path | None = None) -> dict[str, Any]:
    """Do the run in `folder`, continue it there, or return the record of a finished one.

    Raises ValueError where `folder` holds a run of other settings, which stays as it is.
    """
    import pandas as pd

    from runs import begin, measure, unfinished

    path, checkpoints = folder / "record.json", folder / "checkpoints"
    row = f"lora-r{settings.rank}" if settings.method == "lora" else settings.method
    record = begin(f"train/{settings.model}/{settings.task}/{row}", SCALE, seed, settings)
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        _refuse_another(held, record, folder)
        if held["status"] == "finished":
            print(f"{folder} holds this run, finished; nothing to do")
            return held
    _write(path, record | {"status": "interrupted"})  # what it stays if the process is killed
    try:
        measured, predictions = measure(settings, seed, checkpoints, folder / "adapter", data_dir)
    except (Exception, KeyboardInterrupt) as error:
        _write(path, record | unfinished(error))
        raise
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions]
    write_atomically(folder / "predictions.jsonl", "".join(lines))
    record |= measured | {"predictions": "predictions.jsonl"}
    write_atomically(folder / "metrics.csv", pd.DataFrame(metrics(record)).to_csv(index=False, lineterminator="\n"))
    _write(path, record)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return record


def metrics(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an epoch: training loss, validation loss and, for GLUE, the task's metrics on the reported split."""
    from glue_run import mean_training_loss

    task, history = TASKS[record["settings"]["task"]], record["history"]
    if isinstance(task, GlueTask):
        split = next(iter(task.validation))
        return [
            {"epoch": row["epoch"], "training_loss": row["training_loss"], "validation_loss": row[split]["loss"]}
            | {metric: row[split][metric] for metric in task.metrics}
            for row in record["epochs"]
        ]
    validated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return [
        {"epoch": epoch, "training_loss": mean_training_loss(history, epoch), "validation_loss": loss}
        for epoch, loss in enumerate(validated, start=1)
    ]


def _refuse_another(held: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    def decides(record: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(record["settings"])) | {key: record[key] for key in ("seed", "task_version")}

    there, here = decides(held), decides(asked)
    if differing := [
        f"{key} {there.get(key)}, not {here.get(key)}" for key in here | there if there.get(key) != here.get(key)
    ]:
        raise ValueError(
            f"{folder} holds a run ({held['status']}) of other settings: {'; '.join(differing)}. "
            "Choose another --output_dir, or delete that one"
        )


def _write(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def _not_negative(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, found {number}")
    return number


def _share(text: str) -> float:
    if not 0 <= (number := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to below 1, found {text}")
    return number


def _folder(text: str) -> Path:
    path = Path(text)
    if not (there := next(place for place in (path, *path.parents) if place.exists())).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, found the file {there}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", choices=TASKS, required=True)
    add("--model", help="such as roberta-base, minilm, gpt2-medium (default: that of the task's row)")
    add("--method", choices=METHODS, default="lora", help="(default: lora)")
    add("--r", dest="rank", type=_positive, metavar="RANK", help="LoRA's rank")
    add("--alpha", type=float, help="LoRA's alpha; the pair is scaled by alpha / r")
    add("--dropout", dest="lora_dropout", type=float, help="on the input of LoRA's pairs")
    add("--lora_target_weights", dest="targets", nargs="+", choices=TARGETS, help="the matrices that get a pair")
    add("--rank_stabilised", action="store_true", default=None, help="rsLoRA: scaled by alpha / sqrt(r)")
    add("--b_lr_ratio", dest="b_learning_rate_ratio", type=float, metavar="RATIO", help="LoRA+: B learns at RATIO * lr")
    add("--top_layers", type=_positive, help="so many of the last layers are trained")
    add("--bottleneck", type=_positive, help="width of an adapter")
    add("--dropped_layers", type=_not_negative, help="AdapterDrop: so many of the first layers have no adapter")
    add("--prefix_tokens", type=_positive, help="trained positions before the input")
    add("--epochs", type=_positive)
    add("--batch_size", type=_positive)
    add("--lr", dest="learning_rate", type=float, help="at its highest, after the warm-up")
    add("--max_seq_length", dest="max_length", type=_positive, help="tokens; GLUE only")
    add("--warmup_ratio", type=_share, help="share of all steps")
    add("--weight_decay", type=float)
    add("--train_rows", type=_positive, help="so many training rows, of a fixed shuffle")
    add("--seed", type=int, default=0)
    add("--output_dir", type=_folder, required=True)
    add("--data-dir", type=Path, help="folder with glue/ and e2e/; else LORA_DATA_DIR, data/cache, the internet")
    add("--dry-run", action="store_true", help="print settings, parameters, time and memory; start nothing")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    name, settings = free_settings(arguments)
    from costs import estimate

    cost = estimate(settings, SCALE)  # before anything is written: a model that does not fit the task ends here
    print(f"as {name}, where no flag says otherwise:\n{cost.described(settings)}", flush=True)
    if arguments.dry_run:
        return print("nothing was started")
    folder = arguments.output_dir
    with lock(folder / ".lock", f"a run in {folder}"):
        record = train(settings, arguments.seed, folder, arguments.data_dir)
    print("  ".join(f"{key} {value:.4f}" for key, value in record["scores"].items() if isinstance(value, float)))
    if record["scores"].get("alarm"):
        print(f"alarm: {record['scores']['alarm']}")


def main() -> None:
    try:
        _run(_parser().parse_args())
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        sys.exit(f"\nstopped: {stop or 'interrupted'}")
    except (ValueError, FileNotFoundError, FloatingPointError, RunTaken) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
