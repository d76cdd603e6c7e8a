"""One GLUE run: train an encoder and its head, score every epoch, report by two rules (Table 2).

The paper takes each run's best epoch, chosen on the validation split that it reports. Beside that
figure every run holds the honest one: the epoch is chosen on a tenth of the training rows, which the
model is not trained on, and the validation split is scored at that epoch only. So that both come
from one training, the paper's figure too is of a model trained on nine tenths of the rows.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import glue_data
import glue_metrics
from batches import Batch
from evaluation import classify
from rank_schedule import conclude, schedule_of
from records import write_atomically
from settings import Settings
from tasks import GlueTask, glue_task
from training import train

HELD_OUT = "held_out"


def train_and_score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    seed: int,
    folder: Path,
    data_dir: Path | None,
    keep_adapter: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the record says, and the predictions of the best epoch; `keep_adapter(model)` gets that epoch's model."""
    task = glue_task(settings.task)
    splits, facts = _load(task, settings, data_dir)
    encoded = {name: glue_data.encode(rows, tokenizer, settings.max_length) for name, rows in splits.items()}
    facts["truncated"] = {name: split.truncated for name, split in encoded.items()}
    pad = tokenizer.pad_token_id

    def collate(rows: list[dict[str, Any]]) -> Batch:
        return glue_data.collate(rows, pad, settings.max_length if settings.pad_to_maximum else None)

    def predict(m: nn.Module, names: list[str]) -> dict[str, dict[str, Any]]:
        found = {name: classify(m, encoded[name].rows, collate, settings) for name in names}
        return {name: {"predictions": predictions, "loss": loss} for name, (predictions, loss) in found.items()}

    reported = [name for name in splits if name not in ("train", HELD_OUT)]
    if settings.method == "released":  # its epoch was chosen by its authors: there is no honest figure
        return _reported(task, splits, predict(model, reported), facts)

    def validate(m: nn.Module, epoch: int) -> dict[str, float]:
        outputs = predict(m, [*reported, HELD_OUT])
        write_atomically(folder / f"epoch-{epoch}.json", json.dumps(outputs))
        scores = {name: _score(task, splits[name], output) for name, output in outputs.items()}
        return {"loss": outputs[HELD_OUT]["loss"]} | {name: s[task.main_metric] for name, s in scores.items()}

    best = reported[0] if reported else HELD_OUT
    rows = encoded["train"].rows
    schedule = schedule_of(settings, lambda m, some: classify(m, some, collate, settings)[1], encoded[HELD_OUT].rows)
    result = train(
        model, rows, settings, seed, folder, _loss, validate, best=(best, True), collate=collate, schedule=schedule
    )
    reached = conclude(model) if schedule else {}
    keep_adapter(model)
    epochs = _epochs(task, splits, folder, result.history)
    measured = facts | asdict(result) | reached | {"epochs": epochs}
    chosen = {rule: _best_epoch(epochs, rule, task.main_metric) for rule in (best, HELD_OUT)}
    measured["selected_epoch"] = {"held_out": chosen[HELD_OUT]["epoch"]}
    if not reported:
        return measured | {"selection_score": chosen[HELD_OUT][HELD_OUT][task.main_metric]}, []
    measured["selected_epoch"]["reported"] = chosen[best]["epoch"]
    measured["honest_scores"] = chosen[HELD_OUT][best]
    outputs = json.loads((folder / f"epoch-{chosen[best]['epoch']}.json").read_text(encoding="utf-8"))
    return _reported(task, splits, {name: outputs[name] for name in reported}, measured)


def _reported(
    task: GlueTask, splits: dict[str, list[glue_data.Example]], outputs: dict[str, dict[str, Any]], measured: dict
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`measured` with the scores of the reported splits, the first of which is the task's, and its predictions."""
    first, *others = outputs
    scores = {name: {"loss": output["loss"]} | _score(task, splits[name], output) for name, output in outputs.items()}
    predictions = [
        {"texts": example.texts, "label": example.label, "prediction": prediction}
        for example, prediction in zip(splits[first], outputs[first]["predictions"], strict=True)
    ]
    return measured | {"scores": scores[first]} | {f"scores_{name}": scores[name] for name in others}, predictions


def _load(
    task: GlueTask, settings: Settings, data_dir: Path | None
) -> tuple[dict[str, list[glue_data.Example]], dict[str, Any]]:
    """Rows by split: nine tenths of the training rows, the held-out tenth, and what is reported, if it is."""
    loaded = {"train": glue_data.load_glue(task.name, "train", data_dir)}
    absent = []
    for number, name in enumerate(task.validation if settings.evaluate == "test" else ()):
        try:
            loaded[name] = glue_data.load_glue(task.name, name, data_dir)
        except FileNotFoundError:
            if number == 0:
                raise
            absent.append(name)  # MNLI's mismatched split is not in every copy of the data
    kept, held_out = glue_data.held_out_tenth(loaded["train"].examples)
    if settings.train_rows and settings.train_rows < len(kept):
        random.Random(0).shuffle(kept)
        kept = kept[: settings.train_rows]
    splits = {name: split.examples for name, split in loaded.items()} | {"train": kept, HELD_OUT: held_out}
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
    found = []
    for epoch, _ in enumerate(folder.glob("epoch-*.json"), start=1):  # fewer than the settings say, if it ended early
        outputs = json.loads((folder / f"epoch-{epoch}.json").read_text(encoding="utf-8"))
        row: dict[str, Any] = {"epoch": epoch, "training_loss": mean_training_loss(history, epoch)}
        for name, output in outputs.items():
            row[name] = {"loss": output["loss"]} | _score(task, splits[name], output)
        found.append(row)
    return found


def mean_training_loss(history: list[dict[str, float]], epoch: int) -> float | None:
    """Of an epoch (from 1), out of the logged means, each of which is over the steps since the log before it.

    A mean whose steps lie in two epochs counts in each by its share; None if no step of the epoch was logged.
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
