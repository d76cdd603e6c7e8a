"""The optimizer of the official code, and which of a model's parameters it trains at which rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from settings import Settings


class OfficialAdamW(torch.optim.AdamW):
    """AdamW as the official code writes it: epsilon is added before the bias correction.

    torch divides by sqrt(v / c) + eps, the official optimizer.py by (sqrt(v) + eps) / sqrt(c) with
    c = 1 - beta2^t; so eps / sqrt(c) as torch's epsilon gives the same step. The official code decays
    after the step, torch before it: a difference of lr * weight_decay of the step, 2e-6 with GPT-2's
    LoRA and 5e-5 with RoBERTa-base's, which is left as it is.
    """

    def __init__(self, params: Any, epsilon: float, **settings: Any):
        super().__init__(params, eps=epsilon, fused=True, **settings)
        self.epsilon = epsilon
        self.taken: dict[nn.Parameter, int] = {}  # steps; torch's own count is on the GPU, where to read it is to wait

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
        """The group in parts that have one epsilon each: pairs that are added later have taken fewer steps."""
        parts: dict[int, list[nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault(self.taken.get(p, 0), []).append(p)
        decay = group["betas"][1]
        return [
            group | {"params": params, "eps": self.epsilon / math.sqrt(1 - decay ** (taken + 1))}
            for taken, params in parts.items()
        ]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What requires a gradient, and all pairs: those of an earlier stage may be frozen by now (rank_schedule.py)."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad or ".lora_" in name}


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name, detached: what a checkpoint holds."""
    return {name: p.detach() for name, p in trained_parameters(model).items()}


def parameter_groups(
    model: nn.Module, settings: Settings, decayed: Collection[str], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What is trained, by weight decay and highest learning rate; the first group has the rate of the settings.

    `decayed` names what decays where the settings say "matrices"; `factors` multiply the rate of what they name: an
    earlier stage may have a lower one, at zero it is frozen. B may have another rate than A (LoRA+, arXiv:2402.12354).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(settings.weight_decay, settings.learning_rate): []}
    for name, p in trained_parameters(model).items():
        factor = factors.get(name, 1.0) * (settings.b_learning_rate_ratio if ".lora_B" in name else 1.0)
        decay = settings.weight_decay if settings.decay == "all" or name in decayed else 0.0
        groups.setdefault((decay, settings.learning_rate * factor), []).append(p.requires_grad_(factor > 0))
    return [{"params": params, "weight_decay": decay, "lr": rate} for (decay, rate), params in groups.items()]


def regroup(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, groups: list[dict[str, Any]]) -> None:
    """Let the optimizer follow a model that has gained or lost pairs; whatever stays keeps its moments."""
    course = scheduler.lr_lambdas[0]  # warm-up and decay, the same for all groups
    now = course(scheduler.last_epoch)
    optimizer.param_groups = []
    for group in groups:
        optimizer.add_param_group(group | {"initial_lr": group["lr"], "lr": group["lr"] * now})
    for parameter in set(optimizer.state).difference(*(group["params"] for group in groups)):
        del optimizer.state[parameter]
    scheduler.base_lrs, scheduler.lr_lambdas = [group["lr"] for group in groups], [course] * len(groups)
