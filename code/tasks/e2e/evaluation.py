"""A language model and token rows of E2E -> dev loss; texts -> scores. The numbers of Table 3.

Every distinct test context is decoded (`beam_search.py`) and scored against all its references with the official
metrics (`metrics.py`). Beside them stands what the paper does not print: slot errors, lengths, and the scores of the
`course` protocol.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from experiments.settings import Settings
from tasks.e2e import metrics as e2e_metrics
from tasks.e2e.data import Inputs
from tasks.e2e.loss import completion_loss
from training.batches import IGNORED, batches_by_length, pad_right
from training.precision import autocast


@torch.no_grad()
def validation_loss(model: nn.Module, rows: list[dict[str, list[int]]], settings: Settings) -> float:
    """Unsmoothed cross-entropy per completion token (end token included) over all rows, in nats.

    Raises FloatingPointError if it is not finite.
    """
    if not rows:
        raise ValueError("expected rows to take the loss of, found none")
    total, tokens = 0.0, 0
    for _, batch in batches_by_length(model, rows, pad_right):
        count = int((batch["labels"] != IGNORED).sum())
        with autocast(settings, batch["labels"].device):
            total += completion_loss(model, batch).item() * count
        tokens += count
    if not math.isfinite(total):
        raise FloatingPointError(f"expected a finite loss on {len(rows)} rows, found {total / tokens}")
    return total / tokens


def score_texts(
    inputs: list[Inputs], texts: list[str], settings: Settings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores of all texts, in the units of the official script; and the slot errors of each text."""
    references = [item.references[:1] if settings.single_reference else item.references for item in inputs]
    slots = e2e_metrics.slot_errors([item.mr for item in inputs], texts)
    course, lengths = e2e_metrics.course_score(texts, references), e2e_metrics.output_lengths(texts, references)
    scores = e2e_metrics.score(texts, references)
    scores |= {
        "slot_error_rate": slots["rate"], "course_BLEU": course["BLEU"], "course_ROUGE_L": course["ROUGE_L"],
        "mean_words": lengths["prediction_length"], "mean_reference_words": lengths["reference_length"],
        "brevity_penalty": lengths["brevity_penalty"], "BLEU_unpenalised": scores["BLEU"] / lengths["brevity_penalty"],
    }  # fmt: skip
    return scores, [{"slot_errors": errors} for errors in slots["per_output"]]
