"""Train an encoder and its head, score every epoch, report by two rules (Table 2).

The paper takes each run's best epoch, chosen on the validation split that it reports. Beside that figure every run
has the held-out one. Its epoch is chosen on a tenth of the training rows, which the model is not trained on, and the
validation split is scored at that epoch only. Both figures come from one training, on nine
tenths of the rows. The variant `official-code` holds nothing out, as the official code, and has the first figure alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from experiments.settings import Job
from files import write_atomically
from methods.catalogue import schedule_of, trains
from methods.rank_changes import conclude
from tasks.catalogue import GlueTask, glue_task
from tasks.glue import data as glue_data
from tasks.glue import metrics as glue_metrics
from tasks.glue.evaluation import classify
from training.batches import Batch
from training.trainer import train

HELD_OUT = "held_out"


def data_fingerprint(job: Job) -> dict[str, str]:
    """The fingerprint of each split that the job reads."""
    return _load(glue_task(job.settings.task), job)[1]["data_fingerprint"]


def train_and_score(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, job: Job, keep_adapter: Callable[[nn.Module], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and score; return facts for the record, and the best epoch's predictions. `keep_adapter` gets its model."""
    settings, task, folder = job.settings, glue_task(job.settings.task), job.folder
    splits, facts = _load(task, job)
    encoded = {name: glue_data.encode(rows, tokenizer, settings.max_length) for name, rows in splits.items()}
    facts["truncated"] = {name: split.truncated for name, split in encoded.items()}
    pad = tokenizer.pad_token_id

    def collate(rows: list[dict[str, Any]]) -> Batch:
        return glue_data.collate(rows, pad, settings.max_length if settings.pad_to_maximum else None)

    def predict(m: nn.Module, names: list[str]) -> dict[str, dict[str, Any]]:
        outputs = {name: classify(m, encoded[name].rows, collate, settings) for name in names}
        return {name: {"predictions": predictions, "loss": loss} for name, (predictions, loss) in outputs.items()}

    reported = [name for name in splits if name not in ("train", HELD_OUT)]
    if not trains(settings):  # its epoch was chosen by its authors: there is no held-out figure
        return _reported(task, splits, predict(model, reported), facts)

    judge = HELD_OUT if settings.hold_out else reported[0]

    def validate(m: nn.Module, epoch: int) -> dict[str, float]:
        outputs = predict(m, [name for name in splits if name != "train"])
        write_atomically(folder / f"epoch-{epoch}.json", json.dumps(outputs))
        scores = {name: _score(task, splits[name], output) for name, output in outputs.items()}
        return {"loss": outputs[judge]["loss"]} | {name: s[task.main_metric] for name, s in scores.items()}

    best = reported[0] if reported else HELD_OUT
    rows = encoded["train"].rows
    schedule = schedule_of(settings, lambda m, few: classify(m, few, collate, settings)[1], encoded[judge].rows)
    result = train(model, rows, job, _loss, validate, best=(best, True), collate=collate, schedule=schedule)
    reached = conclude(model) if schedule else {}
    keep_adapter(model)
    epochs = _epochs(task, splits, folder, result.history)
    measured = facts | asdict(result) | reached | {"epochs": epochs}
    chosen = {rule: _best_epoch(epochs, rule, task.main_metric) for rule in (best, judge)}
    measured["selected_epoch"] = {HELD_OUT: chosen[HELD_OUT]["epoch"]} if settings.hold_out else {}
    if not reported:
        return measured | {"selection_score": chosen[HELD_OUT][HELD_OUT][task.main_metric]}, []
    measured["selected_epoch"]["reported"] = chosen[best]["epoch"]
    if settings.hold_out:
        measured["honest_scores"] = chosen[HELD_OUT][best]
    outputs = json.loads((folder / f"epoch-{chosen[best]['epoch']}.json").read_text(encoding="utf-8"))
    return _reported(task, splits, {name: outputs[name] for name in reported}, measured)


def _reported(
    task: GlueTask, splits: dict[str, list[glue_data.Example]], outputs: dict[str, dict[str, Any]], measured: dict
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Add the scores of the reported splits to `measured`; return it with the predictions on the first, the task's."""
    first, *others = outputs
    scores = {name: {"loss": output["loss"]} | _score(task, splits[name], output) for name, output in outputs.items()}
    predictions = [
        {"texts": example.texts, "label": example.label, "prediction": prediction}
        for example, prediction in zip(splits[first], outputs[first]["predictions"], strict=True)
    ]
    return measured | {"scores": scores[first]} | {f"scores_{name}": scores[name] for name in others}, predictions


def _load(task: GlueTask, job: Job) -> tuple[dict[str, list[glue_data.Example]], dict[str, Any]]:
    """The rows by split (for training, the reported splits and, last, the held-out tenth), and facts about them."""
    settings, data_dir = job.settings, job.data_dir
    loaded = {"train": glue_data.load_glue(task.name, "train", data_dir)}
    absent = []
    for number, name in enumerate(task.validation if settings.evaluate == "test" else ()):
        try:
            loaded[name] = glue_data.load_glue(task.name, name, data_dir)
        except FileNotFoundError:
            if number == 0:
                raise
            absent.append(name)  # MNLI's mismatched split is not in every copy of the data
    kept, held_out = list(loaded["train"].examples), {}
    if settings.hold_out:
        kept, held_out[HELD_OUT] = glue_data.held_out_tenth(kept)
    if settings.train_rows and settings.train_rows < len(kept):
        random.Random(0).shuffle(kept)
        kept = kept[: settings.train_rows]
    splits = {name: split.examples for name, split in loaded.items()} | {"train": kept} | held_out
    facts = {
        "data_fingerprint": {name: glue_data.data_fingerprint(rows) for name, rows in splits.items()},
        "rows": {name: len(rows) for name, rows in splits.items()},
        "subset": {name: split.subset for name, split in loaded.items()},
        "absent_splits": absent,
    }
    return splits, facts


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


def _score(task: GlueTask, examples: list[glue_data.Example], output: dict[str, Any]) -> dict[str, Any]:
    return glue_metrics.score(task, output["predictions"], [example.label for example in examples])


def _epochs(
    task: GlueTask, splits: dict[str, list[glue_data.Example]], folder: Path, history: list[dict]
) -> list[dict[str, Any]]:
    """Every epoch's scores on every split, with its mean training loss."""
    rows = []
    files = takewhile(Path.exists, (folder / f"epoch-{epoch}.json" for epoch in count(1)))  # fewer, if it ended early
    for epoch, file in enumerate(files, start=1):
        outputs = json.loads(file.read_text(encoding="utf-8"))
        row: dict[str, Any] = {"epoch": epoch, "training_loss": mean_training_loss(history, epoch)}
        for name, output in outputs.items():
            row[name] = {"loss": output["loss"]} | _score(task, splits[name], output)
        rows.append(row)
    return rows


def mean_training_loss(history: list[dict[str, float]], epoch: int) -> float | None:
    """The mean training loss of an epoch (from 1). Each logged loss is the mean over the steps since the log before.

    A mean whose steps lie in two epochs counts in each by its share. None if no step of the epoch was logged.
    """
    total = covered = before = 0.0
    for entry in history:
        if "loss" in entry:
            share = min(entry["epoch"], epoch) - max(before, epoch - 1)
            before = entry["epoch"]
            if share > 0:
                total, covered = total + share * entry["loss"], covered + share
    return total / covered if covered else None


def _best_epoch(epochs: list[dict[str, Any]], split: str, metric: str) -> dict[str, Any]:
    """The first of the epochs with the highest score."""
    return max(epochs, key=lambda row: row[split][metric])
