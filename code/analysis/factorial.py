"""What each factor of a designed experiment is worth: main effects over the cells of a full design.

    effects(scores_of(DESIGNS["gpt2-medium"], "BLEU"), FACTORS)    # a factor's two levels, their difference, its range

A factor's effect is the mean difference of its two levels over all cells that differ in nothing else, at the same
seeds (Box, Hunter and Hunter, Statistics for Experimenters, chapter 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from experiments.settings import Experiment
from runs.records import records_of
from tasks.catalogue import TASKS

Cell = tuple[str, ...]
Scores = Mapping[Cell, Mapping[int, float]]  # cell -> seed -> score


@dataclass(frozen=True)
class Effect:
    """A factor's effect: the score at level `end` minus that at level `start`."""

    factor: str
    start: str
    end: str
    pairs: int  # of cells, each at one seed
    mean: float | None  # None where no pair is measured
    least: float | None = None
    most: float | None = None


def scores_of(design: Mapping[Cell, Experiment], metric: str) -> dict[Cell, dict[int, float]]:
    """{cell: {seed: score in table units}} of what is recorded.

    A cell of official text whose run had to rebuild it is left out: it would show no effect of the text.
    """
    scores: dict[Cell, dict[int, float]] = {}
    for cell, experiment in design.items():
        unit = TASKS[experiment.settings.task].metrics[metric].unit
        asked = "official" if experiment.settings.official_text else None
        for record in records_of(experiment):
            if record["scores"].get(metric) is not None and record.get("text") == asked:
                scores.setdefault(cell, {})[record["seed"]] = record["scores"][metric] / unit
    return scores


def effects(scores: Scores, factors: Mapping[str, Iterable[str]]) -> list[Effect]:
    """The effect of each factor, named with its two levels, in the order of a cell's levels.

    Raises ValueError for a cell with another number of levels than there are factors, or an unknown level.
    """
    names = list(factors)
    for cell in scores:
        if len(cell) != len(names) or not all(level in factors[name] for name, level in zip(names, cell, strict=True)):
            raise ValueError(f"expected a level of each of {factors}, found the cell {cell}: name levels as declared")
    all_effects = []
    for place, (name, (start, end)) in enumerate(factors.items()):
        differences = [
            at_end[seed] - score
            for cell, at_start in scores.items()
            if cell[place] == start and (at_end := scores.get((*cell[:place], end, *cell[place + 1 :])))
            for seed, score in at_start.items()
            if seed in at_end
        ]
        if differences:
            all_effects.append(
                Effect(name, start, end, len(differences), fmean(differences), min(differences), max(differences))
            )
        else:
            all_effects.append(Effect(name, start, end, 0, None))
    return all_effects
