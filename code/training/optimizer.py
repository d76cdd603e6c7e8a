"""The optimizer of the official code, and the learning rate of each trained parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from experiments.settings import Settings


class OfficialAdamW(torch.optim.AdamW):
    """AdamW as the official code writes it: epsilon is added before the bias correction.

    torch divides by sqrt(v / c) + eps, the official optimizer.py by (sqrt(v) + eps) / sqrt(c) with
    c = 1 - beta2^t; so eps / sqrt(c) as torch's epsilon gives the same step. The official code decays
    after the step, torch before it. The difference, lr * weight_decay of the step, is left as it is: 2e-6
    with GPT-2's LoRA and 5e-5 with RoBERTa-base's.
    """

    def __init__(self, params: Any, epsilon: float, **settings: Any):
        super().__init__(params, eps=epsilon, fused=True, **settings)
        self.epsilon = epsilon
        self.taken: dict[nn.Parameter, int] = {}  # steps; torch's own count is on the GPU, and reading it would wait

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.taken = {p: int(state["step"]) for p, state in self.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in self._by_steps_taken(group)]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups
            moved = (p for group in groups for p in group["params"] if p.grad is not None)
            self.taken |= {p: self.taken.get(p, 0) + 1 for p in moved}

    def _by_steps_taken(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """The group in parts of one epsilon each: pairs that are added later have taken fewer steps."""
        parts: dict[int, list[nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault(self.taken.get(p, 0), []).append(p)
        decay = group["betas"][1]
        return [
            group | {"params": params, "eps": self.epsilon / math.sqrt(1 - decay ** (taken + 1))}
            for taken, params in parts.items()
        ]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, and all pairs, even an earlier stage's frozen ones (rank_stages.py)."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad or ".lora_" in name}


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name, detached: the content of a checkpoint."""
    return {name: p.detach() for name, p in trained_parameters(model).items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of a step by what an error calls them."""
    return {f"the gradient of {n}": p.grad for n, p in trained_parameters(model).items() if p.grad is not None}


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity, if there is one; a frozen matrix in int8 has none."""
    tensors = {name: tensor for name, tensor in tensors.items() if type(tensor) in (Tensor, nn.Parameter)}
    if get_total_norm(tensors.values()).isfinite():  # ten times as fast as to look at every number
        return None
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)  # a norm may overflow


def parameter_groups(
    model: nn.Module, settings: Settings, decayed: Collection[str], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The trained parameters by weight decay and highest learning rate; the first group has the settings' rate.

    `decayed` names the parameters that decay with "matrices". `factors` multiplies the rates by name: below 1 for
    an earlier stage, 0 freezes it. B may have another rate than A (LoRA+, arXiv:2402.12354).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(settings.weight_decay, settings.learning_rate): []}
    for name, p in trained_parameters(model).items():
        factor = factors.get(name, 1.0) * (settings.b_learning_rate_ratio if ".lora_B" in name else 1.0)
        decay = settings.weight_decay if settings.decay == "all" or name in decayed else 0.0
        groups.setdefault((decay, settings.learning_rate * factor), []).append(p.requires_grad_(factor > 0))
    return [{"params": params, "weight_decay": decay, "lr": rate} for (decay, rate), params in groups.items()]


def regroup(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, groups: list[dict[str, Any]]) -> None:
    """Let the optimizer follow a model that has gained or lost pairs; parameters that stay keep their moments."""
    course = scheduler.lr_lambdas[0]  # warm-up and decay, the same for all groups
    factor = course(scheduler.last_epoch)
    optimizer.param_groups = []
    for group in groups:
        optimizer.add_param_group(group | {"initial_lr": group["lr"], "lr": group["lr"] * factor})
    for parameter in set(optimizer.state).difference(*(group["params"] for group in groups)):
        del optimizer.state[parameter]
    scheduler.base_lrs, scheduler.lr_lambdas = [group["lr"] for group in groups], [course] * len(groups)
