"""Every row of every table by name, as its difference from the paper's settings, for each scale.

A name reads `table/model/row[/variant]`: `table3/gpt2-medium/lora-r4` has the paper's settings,
`table3/gpt2-medium/lora-r4/official-code` those of microsoft/LoRA at c4593f0 wherever the two
disagree. Experiments are added, never edited. A scale replaces what a smaller machine cannot do
and nothing else: `resolve(experiment, scale)`.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from experiments_e2e import E2E_EXPERIMENTS
from experiments_glue import GLUE_EXPERIMENTS
from experiments_methods import METHOD_EXPERIMENTS
from experiments_pitfalls import PITFALL_EXPERIMENTS
from settings import SCALES, Experiment, Settings

EXPERIMENTS: dict[str, Experiment] = {
    e.name: e for e in (*E2E_EXPERIMENTS, *GLUE_EXPERIMENTS, *METHOD_EXPERIMENTS, *PITFALL_EXPERIMENTS)
}


def find(name: str) -> Experiment:
    """The experiment of that name; ValueError with the nearest names otherwise."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=3, cutoff=0.3)
        raise ValueError(
            f"no experiment is called {name!r}; nearest: {', '.join(near) or 'none'} (see `reproduce.py list`)"
        )
    return EXPERIMENTS[name]


def resolve(experiment: Experiment, scale: str) -> Settings:
    """The settings of the experiment at a scale; ValueError where it does not exist there."""
    if scale not in SCALES:
        raise ValueError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    if scale not in experiment.scales:
        raise ValueError(f"{experiment.name} exists at scale {' and '.join(experiment.scales)} only, not at {scale}")
    return replace(experiment.paper, **experiment.changes.get(scale, {}))


def select(table: str, scale: str, rows: list[str] | None = None, variant: str = "paper") -> list[Experiment]:
    """The table's experiments of a variant at the scale, each piece of work once; `rows` keeps some.

    Two names with the same settings at a smaller scale (gpt2 and gpt2-medium both become
    gpt2-mini) are one piece of work; the first name stands for it.
    """
    there = [e for e in EXPERIMENTS.values() if e.table == table and scale in e.scales and e.variant == variant]
    if not there:
        known = ", ".join(sorted({e.table for e in EXPERIMENTS.values()}))
        raise ValueError(f"no experiment of {table!r} ({variant}) at scale {scale!r}; the tables are {known}")
    for row in rows or ():
        if not any(e.is_row(row) for e in there):
            known = ", ".join(dict.fromkeys(e.row for e in there))
            raise ValueError(f"{table} has no row {row}; its rows: {known}, or parts of their names: mrpc/full")
    chosen: dict[Settings, Experiment] = {}
    for experiment in there:
        if not rows or any(experiment.is_row(row) for row in rows):
            chosen.setdefault(resolve(experiment, scale), experiment)
    return list(chosen.values())
