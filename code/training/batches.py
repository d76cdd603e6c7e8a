"""Rows -> batches: formed by length, padded to their own longest row, shared between processes.

The official code pads every row to 512 tokens (examples/NLG/src/data_utils.py of microsoft/LoRA at
c4593f0). Padding never touches the loss, so without it only the time differs. The official batches
mix rows of any length; here the rows of a batch have similar lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

Batch = dict[str, Tensor]
IGNORED = -100  # a label that carries no loss
SCORED_ROWS = 64  # of a batch that is scored, not trained on


def pad_right(rows: list[dict[str, list[int]]], pad_to: int | None = None) -> Batch:
    """Rows of different lengths -> (rows, longest), or (rows, `pad_to`): token 0 and no label in the padding.

    There is no attention mask, as in the official code: the model is causal, so no label sees the
    padding behind it.
    """
    longest = pad_to or max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": IGNORED}
    return {
        key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


class RowsByLength(Sampler[int]):
    """Row numbers whose consecutive batches hold rows of similar length, shuffled for each epoch.

    The order depends on nothing but seed and epoch, so that a continued run sees the same batches.
    """

    POOL = 50  # batches that are sorted together

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.POOL * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            rows = sorted(order[start : start + pool], key=self.lengths.__getitem__)
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        ragged = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return iter([row for batch in shuffled + ragged for row in batch])


def batches_by_length(
    model: nn.Module, rows: list[dict[str, Any]], collate: Callable[[list[dict[str, Any]]], Batch]
) -> Iterator[tuple[list[int], Batch]]:
    """Row numbers and their batch on the model's device, by length; the model is in eval mode meanwhile."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    try:
        for start in range(0, len(order), SCORED_ROWS):
            chosen = order[start : start + SCORED_ROWS]
            yield chosen, {k: v.to(device) for k, v in collate([rows[i] for i in chosen]).items()}
    finally:
        model.train(was_training)


def share_of(batch: Batch, process: int, processes: int) -> tuple[Batch, float]:
    """One process's rows of a batch, and the weight of their mean loss.

    The mean over processes of weight times loss is the loss of the whole batch, and the gradients
    likewise. It is so however unevenly the labels (tokens of E2E, rows of GLUE) are spread. Rows are
    dealt in turn; a batch with fewer rows than processes goes whole to each.
    """
    if processes == 1 or len(batch["labels"]) < processes:
        return batch, 1.0
    share = {key: value[process::processes] for key, value in batch.items()}
    return share, processes * losses(share["labels"]) / losses(batch["labels"])


def losses(labels: Tensor) -> int:
    """The number of labels with a loss: (rows,), or (rows, tokens), where nothing predicts a row's first token."""
    predicted = labels[:, 1:] if labels.dim() == 2 else labels
    return (predicted != IGNORED).sum().item()
