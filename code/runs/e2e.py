"""Train a language model on the completions, fold the adapter, decode the test set, score (Tables 3, 13, 14)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from statistics import fmean
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.settings import Job, Settings
from families import positions
from methods.catalogue import finish, schedule_of, trains
from methods.rank_changes import conclude
from tasks.catalogue import TASKS
from tasks.e2e import data as e2e_data
from tasks.e2e.beam_search import DecodingSettings, generate, room_for_prompt
from tasks.e2e.evaluation import validation_loss
from tasks.e2e.loss import completion_loss
from tasks.e2e.meteor import meteor_unavailable
from training.batches import pad_right
from training.memory import contexts_at_once
from training.precision import autocast, keep_frozen_in_bfloat16, uses_bfloat16
from training.trainer import train

Splits = dict[str, list[e2e_data.Example]]


def add_new_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add two tokens, <MR> before a context and <TEXT> as separator; their random rows are trained if others are.

    As data.py of https://github.com/edwinlin13/cs4782-lora-replication at 51fa444.
    """
    tokenizer.add_special_tokens({"cls_token": "<MR>", "sep_token": "<TEXT>"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def load_splits(job: Job) -> tuple[Splits, dict[str, str]]:
    """The rows by split, test only if it is reported; and, where the official text is asked for, which text it is.

    Of train these are the first `train_rows` of a fixed shuffle.
    """
    settings, task = job.settings, TASKS[job.settings.task]
    names = ("train", "dev", "test") if settings.evaluate == "test" else ("train", "dev")
    official = task.official(job.data_dir) if settings.official_text else None
    splits = {name: official[name] if official else task.load(name, settings.protocol, job.data_dir) for name in names}
    if settings.train_rows:
        random.Random(0).shuffle(splits["train"])
        splits["train"] = splits["train"][: settings.train_rows]
    return splits, {"text": "official" if official else "rebuilt"} if settings.official_text else {}


def data_fingerprint(job: Job) -> dict[str, str]:
    """The fingerprint of each split that the job reads."""
    return _fingerprints(load_splits(job)[0])


def _fingerprints(splits: Splits) -> dict[str, str]:
    return {name: e2e_data.data_fingerprint(rows) for name, rows in splits.items()}


def train_and_score(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, job: Job, keep_adapter: Callable[[nn.Module], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and test; return facts for the record, and predictions. `keep_adapter(model)` is called before folding."""
    settings, (splits, text) = job.settings, load_splits(job)
    measured: dict[str, Any] = {
        **text,
        "data_fingerprint": _fingerprints(splits),
        "rows": {name: len(rows) for name, rows in splits.items()},
    }
    if settings.new_tokens:
        add_new_tokens(model, tokenizer)
        for split, examples in splits.items():
            splits[split] = [replace(example, context=f"<MR> {example.context}") for example in examples]
    if settings.evaluate != "selection":
        measured["cut_prompts"] = _cut_prompts(model, tokenizer, splits[settings.evaluate], settings)
    if trains(settings):
        measured |= _train(model, tokenizer, splits, job)
        keep_adapter(model)
    if settings.evaluate == "selection":
        return measured, []
    results, predictions = _decode_and_score(model, tokenizer, splits[settings.evaluate], job)
    return measured | results, predictions


def _cut_prompts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[e2e_data.Example], settings: Settings
) -> int:
    """How many distinct inputs are cut at their beginning to leave room for an answer; ValueError if all are."""
    room, contexts = room_for_prompt(model, settings), {row.context for row in rows}
    longer = sum(len(tokenizer.encode(context, add_special_tokens=False)) + 1 > room for context in contexts)
    if longer == len(contexts):
        raise ValueError(
            f"{settings.max_new_tokens} new tokens leave room for {room} tokens of an input, found all {longer} inputs "
            "longer: allow fewer new tokens"
        )
    return longer


def _train(model: nn.Module, tokenizer: PreTrainedTokenizerBase, splits: Splits, job: Job) -> dict[str, Any]:
    settings, limit = job.settings, positions(model)
    mistakes = {"prompt_loss": settings.prompt_loss, "end_loss": settings.end_loss}  # in training rows only
    rows = [e2e_data.encode(example, tokenizer, limit, **mistakes) for example in splits["train"]]
    dev = [e2e_data.encode(example, tokenizer, limit) for example in splits["dev"]]
    schedule = schedule_of(settings, lambda m, rows: validation_loss(m, rows, settings), dev)
    result = train(
        model,
        rows,
        job,
        loss=lambda m, batch: completion_loss(m, batch, settings.label_smoothing),
        validate=lambda m, _: {"loss": validation_loss(m, dev, settings)},
        collate=partial(pad_right, pad_to=min(e2e_data.OFFICIAL_LENGTH, limit))
        if settings.pad_to_maximum
        else pad_right,
        schedule=schedule,
    )
    by_step = {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}
    reached = conclude(model) if schedule else {}
    cut = {"cut_rows": sum(row["input_ids"][-1] != tokenizer.eos_token_id for row in rows)}
    return asdict(result) | reached | cut | {"dev_loss": by_step[result.kept_step]}


def _decode_and_score(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[e2e_data.Example], job: Job
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Decode a text for each input with the folded model; return the scores, and each text with its input."""
    started, settings = time.monotonic(), job.settings
    finish(model)
    inputs = e2e_data.group_by_context(rows)
    decoding = DecodingSettings.of(settings, contexts_at_once(model, settings.beams, settings.max_new_tokens))
    if uses_bfloat16(settings):
        keep_frozen_in_bfloat16(model.requires_grad_(False))
    with autocast(settings, next(model.parameters()).device):
        outputs = generate(model, tokenizer, [item.context for item in inputs], decoding)
    scores, judgements = TASKS[settings.task].score(inputs, [output.text for output in outputs], settings)
    scores["share_at_cap"] = fmean(not output.ended for output in outputs)
    predictions = [
        {"mr": item.mr, "context": item.context, "prediction": output.text, "ended": output.ended, **judgement}
        for item, output, judgement in zip(inputs, outputs, judgements, strict=True)
    ]
    results = {"evaluation_seconds": round(time.monotonic() - started, 1), "scores": scores, "inputs": len(inputs)}
    if None in scores.values():  # of all scores, METEOR alone may be missing
        results["meteor_unavailable"] = meteor_unavailable()
    return results, predictions
