"""One declared experiment, one run, one record.

    prepare -> train -> fold or keep -> score -> record

The command line, the notebooks and the sweeps call `do`.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

import files
from adapter_files import base_fingerprint, base_parameters
from experiments.catalogue import EXPERIMENTS, find
from experiments.settings import Experiment, Job, Settings
from families import family_of, head_parameters, positions
from methods.catalogue import apply_method, count_trained, trains
from methods.released_adapters import load_released_adapter, released_file
from methods.saved import load_adapter, save_adapter
from models import architecture, base_revision, load_model, load_tokenizer
from runs import e2e, glue, records
from runs.identity import job_of, of_other_data, on_machines, with_own_folder
from runs.run import ORIGIN_FILE, Run, first_process, run_lock
from tasks.catalogue import TASKS
from training.int8 import as_numbers, hold_in_int8, require_torchao
from training.memory import keep_to_share, recomputes
from training.precision import keep_frozen_in_bfloat16, set_products, uses_bfloat16
from training.quick_layers import use_quick_layers
from training.trainer import ShareDone, TrainingDiverged

WORKFLOWS = {"e2e": e2e.train_and_score, "glue": glue.train_and_score}  # `Task.workflow` -> its function


def do(run: Run, say: Callable[[str], None] = print, for_adapter: bool = False) -> dict[str, Any]:
    """Do a run in this process, after the run that it starts from; return its record, which may exist already.

    A stopped run continues from its checkpoints. A failed or interrupted run is recorded apart, and its exception is
    raised again. With `for_adapter`, a recorded run whose adapter is missing (as in a fresh clone) is trained again;
    its record stands.

    Raises RunTaken where another process is doing the run or its start. Raises ValueError where a record of other
    settings, other data or another task version has its path, or its start's. Under `accelerate launch` the processes
    share this one run, so it raises ValueError where its start's adapter is missing.
    """
    trained = for_adapter or not run.recorded
    for needed in (run, run.start) if run.start and trained else (run,):
        if obstacle := needed.obstacle or of_other_data(needed):
            raise ValueError(f"{needed}: {obstacle}")
    if run.lacks_start and trained:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"{run} starts from {run.start}, found no {run.start.adapter}: run that one first")
        do(run.start, say, for_adapter=True)
    with run_lock(run):
        return _do(run, say, for_adapter)


def _do(run: Run, say: Callable[[str], None], for_adapter: bool) -> dict[str, Any]:
    experiment, settings, recorded = run.experiment, run.experiment.settings, run.recorded
    if recorded and not (for_adapter and not run.adapter.exists()):
        say(f"{run}: recorded already")
        return records.read_record(run.record)
    if recorded:
        say(f"{run}: recorded, but {run.adapter} is missing: it is trained again")
    if not trains(settings) and not first_process():
        raise ShareDone  # there is nothing to share
    if run.start:
        run.start.require_own_adapter()
    start = run.start.adapter if run.start else None
    if first_process() and not recorded:  # before all the training
        files.check_room(run.record.parent)
        files.check_room(records.predictions_path(experiment.name, experiment.scale, run.seed).parent)
    record = begin(experiment.name, experiment.scale, run.seed, settings)
    try:
        started_from = run.start.origin if run.start else None
        job = with_own_folder(job_of(run), started_from)
        measured, predictions = measure(job, run.adapter, start, keep_whole=_is_a_start(experiment))
    except (Exception, KeyboardInterrupt) as error:
        if first_process():
            ended = unfinished(error)
            try:
                say(f"{run}: {ended['status']}, noted in {records.write_unfinished(record | ended)}")
            except OSError as unwritten:
                say(f"{run}: {ended['status']}, not noted: {unwritten}")
        raise
    if recorded:
        record = records.read_record(run.record)
    else:
        if predictions:
            path = records.write_predictions(experiment.name, experiment.scale, run.seed, predictions)
            measured |= {"predictions": path.name, "predictions_digest": files.digest(predictions)}
        record |= measured | ({"started_from": started_from} if started_from else {})
        records.write_record(record)
    shutil.rmtree(job.folder, ignore_errors=True)
    return record


def leave_process_group() -> None:
    """End what `accelerate launch` has begun, so that none of its threads outlives the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_a_start(experiment: Experiment) -> bool:
    return any(other.settings.start_from == experiment.name for other in EXPERIMENTS.values())


def begin(name: str, scale: str, seed: int, settings: Settings) -> dict[str, Any]:
    """The record before anything is measured, with the status of a run that ends well."""
    return {
        "name": name, "scale": scale, "seed": seed, "status": "finished",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "settings": asdict(settings),
        "task_version": TASKS[settings.task].version, **records.provenance(),
    }  # fmt: skip


def unfinished(error: BaseException) -> dict[str, str]:
    """The status and error in the record of a run that this error ended."""
    interrupted = isinstance(error, KeyboardInterrupt)
    status = "interrupted" if interrupted else "diverged" if isinstance(error, TrainingDiverged) else "failed"
    return {"status": status, "error": f"{type(error).__name__}: {error}"}


def measure(
    job: Job, adapter: Path, start: Path | None = None, keep_whole: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and score; return facts for the record, and the predictions.

    What was learnt goes to the folder `adapter`, a whole model only with `keep_whole`. `start` is the adapter of
    `settings.start_from`, which is trained on or, with no epochs, scored; FileNotFoundError where it is missing.
    """
    settings, task = job.settings, TASKS[job.settings.task]
    if start and not start.exists():
        raise FileNotFoundError(
            f"expected the adapter of {settings.start_from} in {start}, found no such folder; `reproduce.py run` of "
            "this experiment makes it first"
        )
    if trains(settings):
        _require_memory(settings)
        if settings.int8_base:
            require_torchao()
    keep_to_share()
    tf32 = set_products(settings)
    torch.manual_seed(job.seed)
    model = load_model(settings.model, task.outputs, settings.head_dropout, job.data_dir)
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    measured = {
        "base_fingerprint": base_fingerprint(model, head_parameters(model)),
        "base_revision": base_revision(settings.model),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "bfloat16": uses_bfloat16(settings),  # "auto" is decided by the machine
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    if device.type == "cuda":
        measured["tf32"] = tf32
    if not settings.epochs:
        _load_start(model, start)
    elif trains(settings):
        apply_method(model, settings)
        if start:
            _carry_over(model, settings, start)
    else:
        file = released_file(settings.model, settings.task, job.data_dir)
        load_released_adapter(model, file, settings.alpha, settings.rank)
    trained, head, total = count_trained(model)
    measured["parameters"] = {"trainable": trained, "head": head, "total": total}

    if settings.int8_base and trains(settings):
        hold_in_int8(model)
    if uses_bfloat16(settings):
        keep_frozen_in_bfloat16(model)
    if device.type == "cpu":
        use_quick_layers(model)

    def keep_adapter(trained_model: nn.Module) -> None:
        as_numbers(trained_model)
        if settings.new_tokens or not settings.train_head:
            return  # what it learnt belongs to weights that are drawn anew in every run
        if trained < total - head or keep_whole:
            (adapter / ORIGIN_FILE).unlink(missing_ok=True)
            save_adapter(trained_model, settings, adapter)
            files.write_atomically(adapter / ORIGIN_FILE, job.folder.name)

    machines = on_machines(job.folder, measured) if trains(settings) else []
    checkpoint = 12 * trained + files.MEGABYTE  # in bytes: weights, the optimizer's two moments, and small files
    with files.room(job.folder, checkpoint if trains(settings) else files.MEGABYTE):
        results, predictions = WORKFLOWS[task.workflow](
            model.to(device), load_tokenizer(settings.model, job.data_dir), job, keep_adapter
        )
    if device.type == "cuda" and trains(settings):
        measured["gradient_checkpointing"] = model.is_gradient_checkpointing  # None is decided by the GPU's memory
    if len(machines) > 1:
        measured["machines"] = machines
    return measured | results, predictions


def _require_memory(settings: Settings) -> None:
    """Raise ValueError where a training step does not fit the GPU, if there is one: before the weights are fetched."""
    if not torch.cuda.is_available():
        return
    task = TASKS[settings.task]
    model = architecture(settings.model, task.outputs)
    apply_method(model, replace(settings, rank_stages=settings.rank_stages[-1:]))
    recomputes(model, settings, task.row_tokens(settings, positions(model))[1])


def _load_start(model: nn.Module, folder: Path) -> None:
    try:
        load_adapter(model, folder)
    except ValueError as error:
        raise ValueError(f"{error}; or delete {folder}, and `reproduce.py run` makes it anew") from error


def _carry_over(model: nn.Module, settings: Settings, folder: Path) -> None:
    """Put what the method learnt on MNLI into the model (section 5.2: MRPC, RTE, STS-B).

    The head stays new, since it has other outputs: RoBERTa's whole head, but only DeBERTa's classifier, for
    the official code carries its pooler over. Raises ValueError where the model has no such parameters.
    """
    start = _with_body_of(model, TASKS[find(settings.start_from).settings.task].outputs)
    _load_start(start, folder)
    fresh = f"{family_of(model).head[-1]}."  # the classifier
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


def _with_body_of(model: nn.Module, outputs: int) -> nn.Module:
    """A plain model with a head of so many outputs whose other weights are the model's own, in the same memory."""
    config = copy.deepcopy(model.config)
    config.num_labels = outputs
    with torch.device("meta"):
        plain = type(model)(config)
    names, head = dict(plain.named_parameters()).keys(), head_parameters(plain)
    weights = {name: p.detach() for name, p in base_parameters(model).items() if name in names and name not in head}
    weights |= {name: torch.empty(p.shape) for name, p in head.items()}
    plain.load_state_dict(weights, strict=False, assign=True)
    return plain
