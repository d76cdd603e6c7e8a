"""An encoder and token rows -> predictions, which Table 2's scores are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from experiments.settings import Settings
from training.batches import Batch, batches_by_length
from training.precision import autocast


@torch.no_grad()
def classify(
    model: nn.Module,
    rows: list[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Batch],
    settings: Settings,
) -> tuple[list[float], float]:
    """Predictions in the rows' order (class ids, or numbers where the head has one output), and the mean loss.

    Raises FloatingPointError if the loss is not finite: the class with the highest of logits that are NaN is no answer.
    """
    predictions: list[float] = [0.0] * len(rows)
    total = 0.0
    if not rows:
        raise ValueError("expected rows to classify, found none")
    for chosen, batch in batches_by_length(model, rows, collate):
        with autocast(settings, batch["labels"].device):
            output = model(**batch)
        logits = output.logits.float().view(len(chosen), -1)  # DeBERTa's come flat where there is one output
        answers = logits.argmax(-1) if logits.shape[1] > 1 else logits[:, 0]
        for i, answer in zip(chosen, answers.tolist(), strict=True):
            predictions[i] = answer
        total += output.loss.item() * len(chosen)
    if not math.isfinite(total):
        raise FloatingPointError(f"expected a finite loss on {len(rows)} rows, found {total / len(rows)}")
    return predictions, total / len(rows)
