"""One E2E run: train GPT-2 on the completions, fold the adapter, decode the test set, score (Table 3)."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import e2e_data
from batches import pad_right
from evaluation import evaluate_generation, validation_loss
from generation import OFFICIAL_LENGTH
from methods import finish
from rank_schedule import conclude, schedule_of
from settings import Settings
from training import completion_loss, train


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


def add_new_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give both <MR>, to stand before a context, and <TEXT>, as separator: rows that are random, trained if others are.

    As data.py of https://github.com/edwinlin13/cs4782-lora-replication at 51fa444.
    """
    tokenizer.add_special_tokens({"cls_token": "<MR>", "sep_token": "<TEXT>"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def train_and_score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    seed: int,
    folder: Path,
    data_dir: Path | None,
    keep_adapter: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the record says of training and test, and the predictions; `keep_adapter(model)` comes before folding."""
    reported = ("test",) if settings.evaluate == "test" else ()
    splits = {split: load_split(settings, split, data_dir) for split in ("train", "dev", *reported)}
    measured: dict[str, Any] = {
        "data_fingerprint": {name: e2e_data.data_fingerprint(rows) for name, rows in splits.items()},
        "rows": {name: len(rows) for name, rows in splits.items()},
    }
    if settings.new_tokens:
        add_new_tokens(model, tokenizer)
        for split, examples in splits.items():
            splits[split] = [replace(example, context=f"<MR> {example.context}") for example in examples]
    if settings.method != "released":
        measured |= _train(model, tokenizer, splits, settings, seed, folder)
        keep_adapter(model)
    if not reported:
        return measured, []
    started = time.monotonic()
    finish(model)
    inputs = e2e_data.group_by_context(splits["test"])
    evaluation = evaluate_generation(model, tokenizer, inputs, settings)
    measured |= {"evaluation_seconds": round(time.monotonic() - started, 1), "scores": evaluation.scores}
    return measured | {"inputs": len(inputs)}, evaluation.predictions


def _train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, list[e2e_data.Example]],
    settings: Settings,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    limit = model.config.n_positions
    mistakes = {"prompt_loss": settings.prompt_loss, "end_loss": settings.end_loss}  # of training, not of its judge
    rows = [e2e_data.encode(example, tokenizer, limit, **mistakes) for example in splits["train"]]
    dev = [e2e_data.encode(example, tokenizer, limit) for example in splits["dev"]]
    schedule = schedule_of(settings, validation_loss, dev)
    result = train(
        model,
        rows,
        settings,
        seed,
        folder,
        loss=lambda m, batch: completion_loss(m, batch, settings.label_smoothing),
        validate=lambda m, _: {"loss": validation_loss(m, dev)},
        collate=partial(pad_right, pad_to=min(OFFICIAL_LENGTH, limit)) if settings.pad_to_maximum else pad_right,
        schedule=schedule,
    )
    by_step = {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}
    reached = conclude(model) if schedule else {}
    return asdict(result) | reached | {"dev_loss": by_step[result.kept_step]}
