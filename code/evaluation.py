"""Model and task -> predictions and scores.

Table 3's numbers: decode every distinct test context (generation.py), score against all its
references with the official metrics (nlg_metrics.py). Beside them what the paper does not print:
slot errors, lengths, the share of outputs cut at the cap, and the `course` protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

import nlg_metrics
from batches import IGNORED, Batch, pad_right
from e2e_data import Inputs
from generation import DecodingSettings, generate
from machine import uses_bfloat16
from settings import Settings
from training import completion_loss

ROWS = 64  # of a batch


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the decoded texts, in the units of the official script, and the texts."""

    scores: dict[str, float | None]
    predictions: list[dict[str, Any]]  # one an input: what the model read, what it wrote


def _batches(
    model: nn.Module, rows: list[dict[str, Any]], collate: Callable[[list[dict[str, Any]]], Batch]
) -> Iterator[tuple[list[int], Batch]]:
    """(numbers of rows of similar length, their batch on the model's device), the model in eval mode meanwhile."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        yield chosen, {k: v.to(device) for k, v in collate([rows[i] for i in chosen]).items()}
    model.train(was_training)


@torch.no_grad()
def validation_loss(model: nn.Module, rows: list[dict[str, list[int]]]) -> float:
    """Unsmoothed cross-entropy per completion token (end token included) over all rows, in nats."""
    total, tokens = 0.0, 0
    for _, batch in _batches(model, rows, pad_right):
        count = int((batch["labels"] != IGNORED).sum())
        total += completion_loss(model, batch).item() * count
        tokens += count
    return total / tokens


@torch.no_grad()
def classify(
    model: nn.Module,
    rows: list[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Batch],
    settings: Settings,
) -> tuple[list[float], float]:
    """Predictions in the rows' order (class ids, or numbers where the head has one output), and the mean loss."""
    predictions: list[float] = [0.0] * len(rows)
    total = 0.0
    for chosen, batch in _batches(model, rows, collate):
        with torch.autocast(batch["labels"].device.type, torch.bfloat16, enabled=uses_bfloat16(settings)):
            output = model(**batch)
        logits = output.logits.float().view(len(chosen), -1)  # DeBERTa's come flat where there is one output
        answers = logits.argmax(-1) if logits.shape[1] > 1 else logits[:, 0]
        for i, answer in zip(chosen, answers.tolist(), strict=True):
            predictions[i] = answer
        total += output.loss.item() * len(chosen)
    return predictions, total / len(rows)


def evaluate_generation(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, inputs: list[Inputs], settings: Settings
) -> Evaluation:
    """Decode and score; `model` is plain or merged. Metrics as printed by the official script."""
    decoding = DecodingSettings(
        beams=settings.beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram=settings.no_repeat_ngram,
        max_new_tokens=settings.max_new_tokens,
    )
    outputs = generate(model, tokenizer, [item.context for item in inputs], decoding)
    texts = [output.text for output in outputs]
    references = [item.references[:1] if settings.single_reference else item.references for item in inputs]
    slots = nlg_metrics.slot_errors([item.mr for item in inputs], texts)
    course, lengths = nlg_metrics.course_score(texts, references), nlg_metrics.output_lengths(texts, references)
    scores = nlg_metrics.score(texts, references) | {
        "slot_error_rate": slots["rate"],
        "course_BLEU": course["BLEU"],
        "course_ROUGE_L": course["ROUGE_L"],
        "mean_words": lengths["prediction_length"],
        "mean_reference_words": lengths["reference_length"],
        "share_at_cap": fmean(not output.ended for output in outputs),
    }
    predictions = [
        {
            "mr": item.mr,
            "context": item.context,
            "prediction": output.text,
            "ended": output.ended,
            "slot_errors": errors,
        }
        for item, output, errors in zip(inputs, outputs, slots["per_output"], strict=True)
    ]
    return Evaluation(scores, predictions)
