"""Cross-entropy with label smoothing in the memory of its logits: the loss of the GPT-2 runs (Table 11).

With GPT-2's 50,257 tokens the loss passes over more numbers than a layer does, and torch's keeps several copies of
them. Here the softmax overwrites the logits and becomes their gradient: the same value and gradient, with fewer passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SmoothedCrossEntropy(torch.autograd.Function):
    """loss = log sum exp z - (1 - s) z[label] - s mean z;  gradient = softmax z - (1 - s) onehot - s / classes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        at_label, mean = logits.gather(-1, labels[:, None])[:, 0], logits.mean(-1)
        highest = logits.amax(-1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        ctx.save_for_backward(exponentials, labels, total)
        ctx.smoothing = smoothing
        return ((total.log() + highest)[:, 0] - (1 - smoothing) * at_label - smoothing * mean).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        exponentials, labels, total = ctx.saved_tensors
        share = gradient / len(labels)
        found = exponentials.mul_(share / total).sub_(share * ctx.smoothing / exponentials.shape[-1])
        found.scatter_add_(-1, labels[:, None], (share * (ctx.smoothing - 1)).expand(len(labels), 1))
        return found, None, None


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the rows of `F.cross_entropy(logits, labels, label_smoothing=smoothing)`, differentiable once.

    `logits` (rows, classes) must be needed nowhere else: they are overwritten, but those of a precision below float32,
    which are computed in float32, as autocast does. `labels` (rows,) are class ids, none to be ignored.
    """
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    return _SmoothedCrossEntropy.apply(logits.to(at_least_float32), labels, smoothing)
