"""Adaptive rank: a budget of rank-1 pairs that moves to where it matters, as in ALoRA (Liu et al. 2024).

ALoRA: Allocating Low-Rank Adaptation, arXiv:2403.16187, section 3 and algorithm 1; the authors have published no code.
All adapted projections start with the same rank. Every `schedule_every` steps, a round measures the importance of each
pair (`importances`). It prunes the least important pairs and gives as many new ones to the projections that lost none
(`reallocate`). It evaluates the same 32 validation rows twice for every pair. As in the paper, an eighth of the budget
moves in a round, and there are at most eight rounds (section 4.3: n_A of R_target, N_A). Three things differ:

    when     a round comes after a number of steps, not after a quarter of an epoch
    first    the first round comes after as many steps as the others
    limit    a round prunes no more than it can give back (`prunable`), so that the budget stays whole

The budget is checked after every step. After every round the trainer's log, and so the record's `history`, gets the
ranks of all projections. A heat map of layer x projection x step is drawn from them, and an interrupted run needs no
further state (`rank_changes.py`). The scale is alpha / r for the rank r that all start with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from statistics import fmean

import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from experiments.settings import Settings
from lora import projections
from methods.stacked_lora import adapted_projections, ranks

SHARE_MOVED = 1 / 8  # of the budget, at a time
ROUNDS = 8

PairName = tuple[str, int]  # ("0.query", 3): the fourth pair of the first layer's query


def uniform_rank(model: nn.Module, settings: Settings) -> int:
    """The rank that each adapted projection of a plain model starts with.

    Raises ValueError for a budget below one pair a projection or above what they can take, for missing targets, and
    for a missing `schedule_every`.
    """
    highest = [  # that each can take; the parts of c_attn are square
        min(module.weight.shape)
        for name, module in model.named_modules()
        for _ in {*projections(name)} & {*settings.targets}
    ]
    if not highest:
        raise ValueError(f"targets must name matrices of the model, as ('query', 'value'); found {settings.targets!r}")
    places, most = len(highest), min(highest)
    if not places <= (settings.rank_budget or 0) <= places * most:
        raise ValueError(
            f"rank_budget must give each of the {places} adapted projections 1 to {most} pairs of rank 1; "
            f"found {settings.rank_budget}, expected {places} to {places * most}"
        )
    if (settings.schedule_every or 0) < 1:
        raise ValueError(
            f"schedule_every, the steps between two reallocations, must be at least 1; found {settings.schedule_every}"
        )
    return settings.rank_budget // places


def spread_budget(model: nn.Module, budget: int) -> None:
    """Share the rank-1 pairs out evenly; if the budget does not divide, the first projections get one more."""
    places = adapted_projections(model).values()
    for i, (layer, target) in enumerate(places):
        number = budget // len(places) + (i < budget % len(places))
        layer.set_pairs(target, [layer.fresh_pair(1) for _ in range(number)])


@torch.no_grad()
def importances(model: nn.Module, loss: Callable[[nn.Module], float]) -> dict[PairName, float]:
    """The importance of every pair r in nats, equation 6 of ALoRA: the loss without r, less the loss with r alone.

    The first term is what pruning r alone would cost. The second protects two pairs that do the same: neither is missed
    alone, but both together are. (The paper's S(M) is the same for all pairs and left out.)
    """
    Bs = {
        (place, i): B
        for place, (layer, target) in adapted_projections(model).items()
        for i, (_, B) in enumerate(layer.pairs(target))
    }
    trained = {pair: B.clone() for pair, B in Bs.items()}

    def keep(kept: set[PairName]) -> None:  # a pair with B zero adds nothing
        for pair, B in Bs.items():
            B.copy_(trained[pair]) if pair in kept else B.zero_()

    def loss_with(kept: set[PairName]) -> float:
        keep(kept)
        return loss(model)

    scores = {pair: loss_with(Bs.keys() - {pair}) - loss_with({pair}) for pair in Bs}
    keep(set(Bs))
    return scores


def prunable(scores: dict[PairName, float], room: dict[str, int], number: int) -> set[PairName]:
    """The `number` least important pairs, but no more than the projections that lose none have room for.

    `room` is how many more pairs each projection can take.
    """
    pruned: set[PairName] = set()
    for pair in sorted(scores, key=scores.__getitem__):
        spared = {place: pairs for place, pairs in room.items() if place != pair[0]}
        if len(pruned) < min(number, sum(spared.values())):
            pruned, room = pruned | {pair}, spared
    return pruned


def reallocate(model: nn.Module, scores: dict[PairName, float], number: int) -> None:
    """Prune the `number` least important pairs and give as many new ones to the projections that lost none.

    New pairs (B zero) are dealt out in turn, first to the projection with the most important pairs on average. Full
    projections are passed over, and one without any pair gets none. At least one projection loses no pair, so that
    what is pruned can be given back.
    """
    places, counts = adapted_projections(model), ranks(model)
    highest = min(layer.highest_rank for layer, _ in places.values())  # at the end all have the rank of the highest
    room = {place: highest - count for place, count in counts.items() if count}
    pruned = prunable(scores, room, number)
    mean = {}
    for place, (layer, target) in places.items():
        names = [(place, i) for i in range(counts[place])]
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
    """The schedule of adaptive rank; `validation(model)` is the loss that measures a pair's importance."""

    validation_rows = 32  # of the validation split: B_val of ALoRA, section 4.3

    def __init__(self, settings: Settings, validation: Callable[[nn.Module], float]):
        self.budget, self.every, self.validation = settings.rank_budget, settings.schedule_every, validation

    def rate_factors(self, model: nn.Module) -> dict[str, float]:
        """All pairs have the same learning rate."""
        return {}

    def after_step(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> bool:
        """Reallocate if it is time; return whether the model's pairs have changed."""
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
