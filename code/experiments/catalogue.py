"""Every row of every table by name.

A name reads `table/base/row[/variant]`: `table3/gpt2-medium/lora-r4` has the paper's settings,
`table3/gpt2-medium/lora-r4/official-code` those of microsoft/LoRA at c4593f0 wherever the two disagree. The base in the
name is the model that is trained, and belongs to one scale. Experiments are added, never edited.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import replace

from experiments.bleu_gap import BLEU_GAP_EXPERIMENTS
from experiments.decoding import DECODING_EXPERIMENTS
from experiments.e2e import E2E_EXPERIMENTS
from experiments.glue import GLUE_EXPERIMENTS, QUICK_TASKS
from experiments.low_data import LOW_DATA_EXPERIMENTS
from experiments.other_methods import METHOD_EXPERIMENTS
from experiments.pitfalls import PITFALL_EXPERIMENTS
from experiments.settings import SCALES, Experiment
from experiments.smollm2 import SMOLLM2_EXPERIMENTS
from experiments.subspaces import SUBSPACE_EXPERIMENTS
from experiments.triples import TRIPLES_EXPERIMENTS


def by_name(declared: Iterable[Experiment]) -> dict[str, Experiment]:
    """Experiments by name. Two rows of the paper may be the same work on a small base: the first stands for both.

    Raises ValueError where two of one name have different settings.
    """
    experiments: dict[str, Experiment] = {}
    for experiment in declared:
        first = experiments.setdefault(experiment.name, experiment)
        if first.settings != experiment.settings:
            raise ValueError(f"{experiment.name} is declared twice, with different settings; rename one of them")
        experiments[experiment.name] = replace(first, cell=first.cell or experiment.cell)
    return experiments


EXPERIMENTS = by_name((
    *E2E_EXPERIMENTS, *GLUE_EXPERIMENTS, *METHOD_EXPERIMENTS, *PITFALL_EXPERIMENTS, *SMOLLM2_EXPERIMENTS,
    *DECODING_EXPERIMENTS, *SUBSPACE_EXPERIMENTS, *BLEU_GAP_EXPERIMENTS, *TRIPLES_EXPERIMENTS, *LOW_DATA_EXPERIMENTS,
))  # fmt: skip


def find(name: str, scale: str | None = None) -> Experiment:
    """The experiment of that name; ValueError, with the nearest names, if there is none or its scale is another."""
    _check_scale(scale)
    experiment = EXPERIMENTS.get(name)
    if experiment and scale in (None, experiment.scale):
        return experiment
    wrong = f"{name} is of scale {experiment.scale}" if experiment else f"no experiment is called {name!r}"
    alike = [e for e in EXPERIMENTS.values() if _without_base(e.name) == _without_base(name)]
    if near := [f"{e.name} (scale {e.scale})" for e in alike if scale in (None, e.scale)]:
        raise ValueError(f"{wrong}; a name has the base that is trained: expected {' or '.join(near)}")
    in_scale = [e.name for e in EXPERIMENTS.values() if scale in (None, e.scale)]
    near = difflib.get_close_matches(name, in_scale, n=3, cutoff=0.3)
    raise ValueError(f"{wrong}; nearest: {', '.join(near) or 'none'} (see `reproduce.py list`)")


def _check_scale(scale: str | None) -> None:
    if scale not in (None, *SCALES):
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, found {scale!r}")


def _without_base(name: str) -> list[str]:
    """The parts of a name that two bases share: table, task, row without its size, variant.

    Old names, which had no base, give the same: some began `learning-rate/e2e` or `pitfalls/glue-mrpc`.
    """
    for task, builtin in QUICK_TASKS.items():
        name = name.replace(builtin, task)
    bases = {experiment.settings.model for experiment in EXPERIMENTS.values()}
    parts = name.replace("-builtin", "").replace("glue-", "").split("/")
    return [re.sub(r"-([\d.]+M|wide)$", "", part) for part in parts if part not in {"e2e", *bases}]


def select(
    table: str, scale: str | None = None, rows: list[str] | None = None, variant: str = "paper"
) -> list[Experiment]:
    """The table's experiments of a variant and one scale, each piece of work once; `rows` are parts of names.

    Raises ValueError for an unknown table or row, and where rows of several scales are left.
    """
    _check_scale(scale)
    experiments = [e for e in EXPERIMENTS.values() if e.table == table and e.variant == variant]
    in_scale = [e for e in experiments if scale in (None, e.scale)]
    if not in_scale:
        tables = ", ".join(sorted({e.table for e in EXPERIMENTS.values()}))
        raise ValueError(f"no experiment of {table!r} ({variant}) at {scale or 'any'} scale; the tables are {tables}")
    for row in rows or ():
        if not any(e.is_row(row) for e in in_scale):
            known = ", ".join(dict.fromkeys(e.name.removeprefix(f"{table}/") for e in in_scale))
            raise ValueError(f"{table} has no row {row}; its rows, of which any part of the name will do: {known}")
    chosen = [e for e in in_scale if not rows or any(e.is_row(row) for row in rows)]
    chosen = list({e.settings: e for e in reversed(chosen)}.values())[::-1]  # the first of two that are the same work
    if len(scales := {e.scale for e in chosen}) > 1:
        raise ValueError(
            f"these rows of {table} are of the scales {', '.join(s for s in SCALES if s in scales)}: choose one with "
            "--scale, or rows of one base and task"
        )
    return chosen
