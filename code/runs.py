"""One declared experiment, one run, one record.

    prepare -> train -> fold the adapter -> decode -> score -> record

`run` is what the command line, the notebooks and the sweeps call.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import e2e_data
import records
from evaluation import Evaluation, evaluate_generation, validation_loss
from experiments import RELEASED_FILES, Experiment, Settings, resolve
from lora import base_fingerprint, count_parameters
from methods import apply_method, finish
from models import load_model, load_tokenizer
from paths import CHECKPOINTS
from released_adapters import load_released_adapter, released_file
from tasks import TASKS
from training import TrainingDiverged, TrainingInterrupted, completion_loss, train


def load_split(settings: Settings, split: str, data_dir: Path | None) -> list[e2e_data.Example]:
    """The split's rows; of the training split the first `train_rows` of a fixed shuffle."""
    if settings.task == "e2e-builtin":
        examples = e2e_data.load_builtin(split, settings.protocol)
    else:
        examples = e2e_data.load_e2e(split, settings.protocol, data_dir)
    if split == "train" and settings.train_rows:
        random.Random(0).shuffle(examples)
        examples = examples[: settings.train_rows]
    return examples


def run(
    experiment: Experiment,
    scale: str,
    seed: int,
    data_dir: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Do the run, or return its record where there is one.

    A stopped run leaves its checkpoints and continues here. A failed or interrupted run is
    recorded apart and its exception raised again.
    """
    recorded = records.read_record(experiment.name, scale, seed)
    if recorded:
        say(f"{experiment.name} seed {seed}: recorded already")
        return recorded
    settings = resolve(experiment, scale)
    record = {
        "name": experiment.name, "scale": scale, "seed": seed, "status": "finished",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "settings": asdict(settings),
        "task_version": TASKS[settings.task].version, **records.provenance(),
    }  # fmt: skip
    folder = CHECKPOINTS / scale / records.run_id(experiment.name, seed)
    try:
        measured, predictions = _measure(settings, seed, folder, data_dir, say)
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = "interrupted" if interrupted else "diverged" if isinstance(error, TrainingDiverged) else "failed"
        path = records.write_unfinished(record | {"status": status, "error": f"{type(error).__name__}: {error}"})
        say(f"{experiment.name} seed {seed}: {status}, noted in {path}")
        raise
    if predictions:
        path = records.write_predictions(experiment.name, scale, seed, predictions)
        measured["predictions"] = path.name
    record |= measured
    records.write_record(record)
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _measure(
    settings: Settings, seed: int, folder: Path, data_dir: Path | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(settings.model)
    model = load_model(settings.model)
    measured: dict[str, Any] = {"base_fingerprint": base_fingerprint(model)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    measured["threads"] = torch.get_num_threads()
    held_out = "dev" if settings.evaluate == "dev-loss" else "test"
    splits = {split: load_split(settings, split, data_dir) for split in ("train", "dev", held_out)}
    measured["data_fingerprint"] = {name: e2e_data.data_fingerprint(rows) for name, rows in splits.items()}
    measured["rows"] = {name: len(rows) for name, rows in splits.items()}
    if settings.method == "released":
        load_released_adapter(model, released_file(RELEASED_FILES[settings.model], data_dir), settings.alpha)
    else:
        apply_method(model, settings)
    trainable, total = count_parameters(model)
    measured["parameters"] = {"trainable": trainable, "total": total}
    if settings.method != "released":
        measured |= _train(model, tokenizer, splits, settings, seed, folder, say)
    if settings.evaluate == "dev-loss":
        return measured, []
    started = time.monotonic()
    finish(model, settings)
    inputs = e2e_data.group_by_context(splits["test"])
    evaluation: Evaluation = evaluate_generation(model.to(device), tokenizer, inputs, settings)
    measured |= {"evaluation_seconds": round(time.monotonic() - started, 1), "scores": evaluation.scores}
    measured["inputs"] = len(inputs)
    return measured, evaluation.predictions


def _train(
    model: torch.nn.Module,
    tokenizer: Any,
    splits: dict[str, list[e2e_data.Example]],
    settings: Settings,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    limit = model.config.n_positions
    rows = [e2e_data.encode(example, tokenizer, limit) for example in splits["train"]]
    dev = [e2e_data.encode(example, tokenizer, limit) for example in splits["dev"]]
    result = train(
        model,
        rows,
        settings,
        seed,
        folder,
        loss=lambda m, batch: completion_loss(m, batch, settings.label_smoothing),
        validate=lambda m: {"loss": validation_loss(m, dev)},
    )
    say(f"trained {result.steps:,} steps in {result.seconds / 60:.1f} min")
    return {
        "steps": result.steps,
        "training_seconds": round(result.seconds, 1),
        "training_tokens": result.tokens,
        "peak_memory_gib": round(result.peak_memory_gib, 3),
        "kept_step": result.kept_step,
        "dev_loss": [h["eval_loss"] for h in result.history if "eval_loss" in h][-1],
        "history": result.history,
    }


__all__ = ["TrainingDiverged", "TrainingInterrupted", "load_split", "run"]
