"""Adaptive rank: a budget of rank-1 pairs that moves to where it matters, as in ALoRA (Liu et al. 2024).

ALoRA: Allocating Low-Rank Adaptation, arXiv:2403.16187, section 3 and algorithm 1. Every adapted projection starts
with the same rank. Every `schedule_every` steps the importance of each pair is measured (`importances`), the least
important ones are pruned, and what they free goes to the projections that lost none (`reallocate`). As in the paper
an eighth of the budget moves at a time, at most eight times (section 4.3: n_A of R_target, N_A); the rest of
training settles. Different from it: a round follows a number of steps, not a quarter of an epoch, and the first one
as many as all others. Ours too is that a round prunes no more than it can give back (`prunable`), so that the budget
stays whole. There is no code of the authors to follow. A round takes two evaluations of 32 validation rows (the same
each time) for every pair.

The budget is checked after every step. The trainer's log, and so the record's `history`, has the ranks of all
projections after every round: what a heat map of layer x projection x step is drawn from. With it an interrupted
run needs no further state (`rank_schedule.py`). The scale is alpha / r for the rank r that all start with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from statistics import fmean

import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from lora import projections
from settings import Settings
from stacked_lora import adapted_projections, ranks

SHARE_MOVED = 1 / 8  # of the budget, at a time
ROUNDS = 8

PairName = tuple[str, int]  # ("0.query", 3): the fourth pair of the first layer's query


def uniform_rank(model: nn.Module, settings: Settings) -> int:
    """The rank that each adapted projection of a plain model starts with.

    Raises ValueError for a budget of less than one pair a projection or more than they can take, without targets, and
    without `schedule_every`.
    """
    highest = [  # rank of each; the parts of c_attn are square
        min(module.weight.shape)
        for name, module in model.named_modules()
        for _ in {*projections(name)} & {*settings.targets}
    ]
    if not highest:
        raise ValueError(f"targets are matrices of the model, as ('query', 'value'); found {settings.targets!r}")
    places, most = len(highest), min(highest)
    if not places <= (settings.rank_budget or 0) <= places * most:
        raise ValueError(
            f"rank_budget is to give each of the {places} adapted projections a pair of rank 1 at least, and {most} at "
            f"most; found {settings.rank_budget}"
        )
    if (settings.schedule_every or 0) < 1:
        raise ValueError(
            f"schedule_every is the number of steps between two reallocations; found {settings.schedule_every}"
        )
    return settings.rank_budget // places


def spread_budget(model: nn.Module, budget: int) -> None:
    """Give all projections the same number of rank-1 pairs, of what remains one each to the first."""
    places = adapted_projections(model).values()
    for i, (layer, target) in enumerate(places):
        number = budget // len(places) + (i < budget % len(places))
        layer.set_pairs(target, [layer.fresh_pair(1) for _ in range(number)])


@torch.no_grad()
def importances(model: nn.Module, loss: Callable[[nn.Module], float]) -> dict[PairName, float]:
    """Equation 6 of ALoRA for every pair r, in nats: loss without r, less the loss with r alone.

    The first term is what would be lost by pruning r now. The second keeps one of two pairs that do the same, of which
    neither is missed alone, when many are pruned at once. (The paper's S(M) is the same for all and left out.)
    """
    Bs = {
        (place, i): B
        for place, (layer, target) in adapted_projections(model).items()
        for i, (_, B) in enumerate(layer.pairs(target))
    }
    trained = {pair: B.clone() for pair, B in Bs.items()}

    def keep(on: set[PairName]) -> None:  # a pair whose B is zero is not there
        for pair, B in Bs.items():
            B.copy_(trained[pair]) if pair in on else B.zero_()

    def loss_with(on: set[PairName]) -> float:
        keep(on)
        return loss(model)

    found = {pair: loss_with(Bs.keys() - {pair}) - loss_with({pair}) for pair in Bs}
    keep(set(Bs))
    return found


def prunable(scores: dict[PairName, float], room: dict[str, int], number: int) -> set[PairName]:
    """The `number` least important pairs, but for those that nobody could take if they were pruned.

    `room` is how many more pairs each projection can take: those that lose none are to take all that is pruned.
    """
    pruned: set[PairName] = set()
    for pair in sorted(scores, key=scores.__getitem__):
        spared = {place: pairs for place, pairs in room.items() if place != pair[0]}
        if len(pruned) < min(number, sum(spared.values())):
            pruned, room = pruned | {pair}, spared
    return pruned


def reallocate(model: nn.Module, scores: dict[PairName, float], number: int) -> None:
    """Prune the `number` least important pairs and give as many new ones to the projections that lost none.

    New pairs (B zero) are dealt out in turn, beginning with the projection whose pairs are the most important on
    average, and passing over those that are full. A projection without any pair gets none. What could not be given
    back is not pruned: every projection may lose a pair but one.
    """
    places, held = adapted_projections(model), ranks(model)
    room = {place: layer.highest_rank - held[place] for place, (layer, _) in places.items() if held[place]}
    pruned = prunable(scores, room, number)
    mean = {}
    for place, (layer, target) in places.items():
        names = [(place, i) for i in range(held[place])]
        if names and pruned.isdisjoint(names):
            mean[place] = fmean(scores[name] for name in names)
        kept = [pair for name, pair in zip(names, layer.pairs(target), strict=True) if name not in pruned]
        layer.set_pairs(target, kept)
    turns = cycle(sorted(mean, key=mean.__getitem__, reverse=True))
    for _ in pruned:
        place = next(place for place in turns if room[place])
        layer, target = places[place]
        layer.set_pairs(target, [*layer.pairs(target), layer.fresh_pair(1)])
        room[place] -= 1


class AdaptiveRank:
    """When the budget is reallocated; `validation(model)` is the loss by which a pair's importance is measured."""

    def __init__(self, settings: Settings, validation: Callable[[nn.Module], float]):
        self.budget, self.every, self.validation = settings.rank_budget, settings.schedule_every, validation

    def rate_factors(self, model: nn.Module) -> dict[str, float]:
        """All pairs have the same learning rate."""
        return {}

    def after_step(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> bool:
        """Reallocate if it is time; whether the model's pairs have changed."""
        rounds, rest = divmod(state.global_step, self.every)
        due = rest == 0 and rounds <= ROUNDS and state.global_step < state.max_steps
        if due:
            reallocate(model, importances(model, self.validation), max(1, int(self.budget * SHARE_MOVED)))
        used = sum(ranks(model).values())
        if used != self.budget:
            raise RuntimeError(
                f"expected the budget of {self.budget} pairs of rank 1 after step {state.global_step}, found {used}: "
                "`reallocate` gave more or fewer than it pruned. Correct it, and start the run anew"
            )
        return due
