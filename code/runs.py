"""One declared experiment, one run, one record.

    prepare -> train -> fold or keep -> score -> record

`do` is what the command line, the notebooks and the sweeps call.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

import e2e_run
import glue_run
import paths
import records
from experiments import EXPERIMENTS, resolve
from lora import base_fingerprint, load_lora, lora_layers, save_lora
from machine import uses_bfloat16
from methods import TRAINED_FILE, apply_method, count_trained, load_trained, save_trained
from models import HEADS, base, head_parameters, load_model, load_tokenizer
from released_adapters import load_released_adapter, released_file
from settings import Experiment, Settings
from tasks import TASKS, GlueTask
from training import ShareDone, TrainingDiverged
from work import Run, first_process, run_lock


def do(run: Run, say: Callable[[str], None] = print, for_adapter: bool = False) -> dict[str, Any]:
    """The run in this process, its start before it; its record, made now or there already.

    A stopped run leaves its checkpoints and continues here. A failed or interrupted run is recorded apart and its
    exception raised again. `for_adapter`: what a recorded run learnt is learnt again where it is not at hand, as in a
    fresh clone, and its record stands.

    Raises RunTaken where another process is doing it or its start, and ValueError where the record in its place has
    other settings or is of another task version. Under `accelerate launch` the processes share this one run, so what
    its start learnt has to be there: ValueError if not.
    """
    if run.obstacle:
        raise ValueError(f"{run}: {run.obstacle}")
    if run.lacks_start and (for_adapter or not run.recorded):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"{run} starts from {run.start}, and {run.start.adapter} is not there: run that first")
        do(run.start, say, for_adapter=True)
    with run_lock(run):
        return _do(run, say, for_adapter)


def _do(run: Run, say: Callable[[str], None], for_adapter: bool) -> dict[str, Any]:
    experiment, scale, seed, recorded = run.experiment, run.scale, run.seed, run.recorded
    if recorded and not (for_adapter and not run.adapter.exists()):
        say(f"{run}: recorded already")
        return records.read_record(experiment.name, scale, seed)
    if recorded:
        say(f"{run}: recorded, but what it learnt is not in {run.adapter}: it is trained again for that")
    settings = resolve(experiment, scale)
    if settings.method == "released" and not first_process():
        raise ShareDone  # nothing is trained, so there is nothing to share
    start = run.start.adapter if run.start else None
    record = begin(experiment.name, scale, seed, settings)
    # Settings changed since a run was stopped are another run: its checkpoints are not continued.
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    folder = paths.CHECKPOINTS / scale / f"{records.run_id(experiment.name, seed)}--{digest}"
    whole = _is_a_start(experiment)
    try:
        measured, predictions = measure(settings, seed, folder, run.adapter, run.data_dir, start, whole)
    except (Exception, KeyboardInterrupt) as error:
        if first_process():
            ended = unfinished(error)
            path = records.write_unfinished(record | ended)
            say(f"{run}: {ended['status']}, noted in {path}")
        raise
    if recorded:
        record = records.read_record(experiment.name, scale, seed)
    else:
        if predictions:
            path = records.write_predictions(experiment.name, scale, seed, predictions)
            measured["predictions"] = path.name
        record |= measured
        records.write_record(record)
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _is_a_start(experiment: Experiment) -> bool:
    return any(other.paper.start_from == experiment.name for other in EXPERIMENTS.values())


def begin(name: str, scale: str, seed: int, settings: Settings) -> dict[str, Any]:
    """What a record says before anything is measured; its status is that of a run that ends well."""
    return {
        "name": name, "scale": scale, "seed": seed, "status": "finished",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "settings": asdict(settings),
        "task_version": TASKS[settings.task].version, **records.provenance(),
    }  # fmt: skip


def unfinished(error: BaseException) -> dict[str, str]:
    """What the record of a run that this error ended says of it."""
    interrupted = isinstance(error, KeyboardInterrupt)
    status = "interrupted" if interrupted else "diverged" if isinstance(error, TrainingDiverged) else "failed"
    return {"status": status, "error": f"{type(error).__name__}: {error}"}


def measure(
    settings: Settings,
    seed: int,
    folder: Path,
    adapter: Path,
    data_dir: Path | None = None,
    start: Path | None = None,
    keep_whole: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and score; what the record says of it, and the predictions.

    `folder` has the checkpoints, from which a stopped run continues; `adapter` gets what was learnt, full fine-tuning's
    whole model only if `keep_whole`; `start` is that folder of `settings.start_from`.
    """
    task = TASKS[settings.task]
    torch.manual_seed(seed)
    model = load_model(settings.model, task.outputs, settings.head_dropout)
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    measured = {
        "base_fingerprint": base_fingerprint(model, head_parameters(model)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "bfloat16": uses_bfloat16(settings),  # "auto" is decided by the machine
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    if settings.method == "released":
        load_released_adapter(
            model, released_file(settings.model, settings.task, data_dir), settings.alpha, settings.rank
        )
    else:
        apply_method(model, settings)
    if start:
        _carry_over(model, settings, start)
    trained, head, total = count_trained(model)
    measured["parameters"] = {"trainable": trained, "head": head, "total": total}

    def keep_adapter(trained_model: nn.Module) -> None:
        if settings.new_tokens or not settings.train_head:
            return  # what it learnt belongs to weights that are drawn anew in every run
        if lora_layers(trained_model) and not settings.packed_pair:
            save_lora(trained_model, adapter)
        elif settings.method != "full" or keep_whole:
            save_trained(trained_model, settings, adapter)

    workflow = glue_run.train_and_score if isinstance(task, GlueTask) else e2e_run.train_and_score
    tokenizer = load_tokenizer(settings.model)
    results, predictions = workflow(model.to(device), tokenizer, settings, seed, folder, data_dir, keep_adapter)
    return measured | results, predictions


def _carry_over(model: nn.Module, settings: Settings, folder: Path) -> None:
    """Start with what the method learnt on MNLI (section 5.2: MRPC, RTE, STS-B): LoRA's pairs, another's parameters.

    The head is fresh, since it has other outputs: RoBERTa's whole head, DeBERTa's classifier but not its
    pooler, which the official code carries over. Raises FileNotFoundError where the adapter is not at hand,
    ValueError where the model has no such parameters.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"expected what {settings.start_from} learnt in {folder}, found no such folder; `reproduce.py run` of "
            "what starts from it trains it first"
        )
    outputs = TASKS["mnli"].outputs
    start = load_model(settings.model, outputs)
    load = load_trained if (folder / TRAINED_FILE).exists() else load_lora
    load(start, folder)
    fresh = "classifier." if HEADS[base(settings.model).family] != ("classifier",) else tuple(head_parameters(model))
    parameters = dict(model.named_parameters())
    carried = {n: p for n, p in start.named_parameters() if p.requires_grad and not n.startswith(fresh)}
    if lacking := sorted(carried.keys() - parameters.keys()):
        raise ValueError(
            f"{settings.start_from} trained {lacking[0]}; expected the same here, found no such parameter with method "
            f"{settings.method!r}. Start from a run of that method, or without start_from"
        )
    with torch.no_grad():
        for name, parameter in carried.items():
            parameters[name].copy_(parameter)
