"""The loss of a language model on E2E: cross-entropy of the completion, with label smoothing (Table 11).

With GPT-2's 50,257 tokens the loss passes over more numbers than a layer does, and torch's keeps several copies of
them. Here the softmax overwrites the logits and becomes their gradient: the same value and gradient, with fewer passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.batches import IGNORED, Batch


class _SmoothedCrossEntropy(torch.autograd.Function):
    """loss = log sum exp z - (1 - s) z[label] - s mean z;  gradient = softmax z - (1 - s) onehot - s / classes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        label_logits, mean = logits.gather(-1, labels[:, None])[:, 0], logits.mean(-1)
        highest = logits.amax(-1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        ctx.save_for_backward(exponentials, labels, total)
        ctx.smoothing = smoothing
        return ((total.log() + highest)[:, 0] - (1 - smoothing) * label_logits - smoothing * mean).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        exponentials, labels, total = ctx.saved_tensors
        share = gradient / len(labels)
        logits_gradient = exponentials.mul_(share / total).sub_(share * ctx.smoothing / exponentials.shape[-1])
        logits_gradient.scatter_add_(-1, labels[:, None], (share * (ctx.smoothing - 1)).expand(len(labels), 1))
        return logits_gradient, None, None


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the rows of `F.cross_entropy(logits, labels, label_smoothing=smoothing)`, differentiable once.

    `logits` (rows, classes) are overwritten, so nothing else may need them. Those of a precision below float32 are
    copied to float32 first, as autocast does. `labels` (rows,) are class ids, none to be ignored.
    """
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    return _SmoothedCrossEntropy.apply(logits.to(at_least_float32), labels, smoothing)


def completion_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the labelled tokens, with logits computed at their positions only.

    Position t predicts token t + 1, so the first labelled token is predicted at the separator.
    Equal to the plain computation over all logits (tests/test_training.py).
    """
    hidden = model.base_model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    kept = labels != IGNORED
    return smoothed_cross_entropy(model.get_output_embeddings()(hidden[kept]), labels[kept], label_smoothing)
