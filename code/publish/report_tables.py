"""The tables of the report and the poster: the rows of `sheets.py`, with a hole where nothing is run.

    report_table(report_rows(read_summary()), "table3", "cpu")    # {"columns": [...], "rows": [[...]], "run": 4, ...}

A row that is not run has only its name and `HOLE`, or is listed in `holes`. Nothing is computed here: a cell is text.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import inf
from operator import itemgetter
from typing import Any

import pandas as pd

from analysis.claims import bases_of
from analysis.comparisons import each_seed
from experiments.catalogue import EXPERIMENTS, select
from experiments.settings import Experiment
from publish.labels import TITLES, label
from publish.sheets import SCORING, change, changed, one_row, shown
from tasks.catalogue import E2E_METRICS, TASKS

HOLE, NOTHING = "not run", "–"
NUMBERS = ("n", "trainable", "value", "spread", "difference", "difference_low", "difference_high", "difference_n")
SHORT = {"slot_error_rate": "slot errors", "ROUGE_L": "ROUGE-L"}  # metric -> a heading that fits
LESS_FULL = {"paper": "LoRA r=8 less full", "held-out": "by the held-out rule"}  # rule -> name of the row
SCORES = {  # head -> column of the row
    "trained": "trainable", "n": "n", **{SHORT.get(metric, metric): metric for metric in E2E_METRICS},
    "against full": "against",
}  # fmt: skip
CHANGES = {"n": "n", "score": "score", "difference": "change", "verdict": "word"}
PITFALL_TASKS = {"e2e": "E2E, BLEU", "mrpc": "MRPC, accuracy"}

Table = dict[str, Any]
Row = dict[str, Any]  # `sheets.one_row`, its difference to the reference by each rule, and the verdict
Rows = dict[tuple[str, str], Row]  # (experiment, scale) -> its row, if it is run


def report_rows(summary: pd.DataFrame) -> Rows:
    """The row of every experiment with a record, from the summary as printed."""
    run = summary[(summary["n"] != "0") & summary["experiment"].isin(EXPERIMENTS)]
    run = run.assign(**{column: pd.to_numeric(run[column]) for column in NUMBERS})
    rows = {}
    for key, lines in run.groupby(["experiment", "scale"], sort=False):
        quantities = [line | {"each_seed": each_seed(line)} for line in lines.to_dict("records")]
        main, word = quantities[0], quantities[0]["verdict"]
        by_rule = {q["rule"]: change(q) for q in reversed(quantities) if q["metric"] == main["metric"]}
        against = {"change": change(main), "word": word, "against": ", ".join(filter(None, (change(main), word)))}
        rows[key] = one_row(quantities) | against | {f"change {rule}": text for rule, text in by_rule.items()}
    return rows


def command(table: str, scale: str) -> str:
    return f"python code/reproduce.py sweep {table} --scale {scale}"


def report_table(rows: Rows, name: str, scale: str, bases: tuple[str, ...] = ()) -> Table:
    """A table on some models, or those that claims are judged on; `table6-sst2` is the part of Table 6 on SST-2."""
    table, task = name.split("-") if name.startswith("table6-") else (name, "")
    chosen = [e for e in _chosen(table, scale, bases) if not task or e.settings.task == task]
    run = {e.name: rows[e.name, scale] for e in chosen if (e.name, scale) in rows}
    sheet = LAYOUTS.get(table, partial(_list, CHANGES))(chosen, run)
    return sheet | {"run": len(run), "of": len(chosen), "command": command(table, scale)}


def coverage(rows: Rows, scales: Iterable[str]) -> list[list[str]]:
    """[title, rows run at each scale] of every table with runs there, on the models that claims are judged on."""
    lines = [[title, *(_covered(rows, table, scale) for scale in scales)] for table, title in TITLES.items()]
    return [line for line in lines if {*line[1:]} != {NOTHING}]


def _covered(rows: Rows, table: str, scale: str) -> str:
    if not any((e.table, e.variant) == (table, "paper") and scale == e.scale for e in EXPERIMENTS.values()):
        return NOTHING
    chosen = _chosen(table, scale)
    return f"{sum((e.name, scale) in rows for e in chosen)} of {len(chosen)}" if chosen else NOTHING


def _chosen(table: str, scale: str, bases: tuple[str, ...] = ()) -> list[Experiment]:
    return [e for e in select(table, scale) if e.settings.model in (bases or bases_of(table, scale))]


def _cell(row: Row, column: str) -> str:
    return shown(row, column) or NOTHING


def _list(columns: dict[str, str], chosen: list[Experiment], run: dict[str, Row]) -> Table:
    """A row an experiment; `columns`: {head: column of the row}."""
    titles = {e.name: TASKS[e.settings.task].title for e in chosen}
    several = len(set(titles.values())) > 1
    names = {e.name: label(e) + (f", {titles[e.name]}" if several else "") for e in chosen}
    body = [[names[name], *(_cell(row, column) for column in columns.values())] for name, row in run.items()]
    return {"columns": ["", *columns], "rows": body, "holes": [names[name] for name in names if name not in run]}


def _grid(chosen: list[Experiment], run: dict[str, Row]) -> Table:
    """Rows by GLUE task, an asterisk marking subsets; matrices by rank for Table 6. Scores are by the paper's rule.

    Below them, LoRA r=8 minus full fine-tuning, by either rule.
    """
    cells: dict[str, dict[str, str]] = {}
    less_full: dict[str, dict[str, str]] = {}
    heads = dict.fromkeys(_place(e)[1] for e in chosen)
    for e in chosen:
        name, head = _place(e)
        texts = cells.setdefault(name, {})
        if row := run.get(e.name):
            texts[head] = _cell(row, "score") + ("*" if row["data"] == "subset" and e.table != "table6" else "")
            for rule, line in LESS_FULL.items() if e.row == "lora-r8" else ():
                less_full.setdefault(line, {})[head] = row.get(f"change {rule}") or NOTHING
    rows = [
        [name, *(texts.get(head, NOTHING) for head in heads)] if texts else [name, HOLE]
        for name, texts in (cells | less_full).items()
    ]
    counts = sorted({row["n"] for row in run.values()})
    seeds = " to ".join(str(n) for n in dict.fromkeys((*counts[:1], *counts[-1:])))  # 3, or 1 to 3
    return {"columns": ["", *heads], "rows": rows, "seeds": seeds}


def _place(experiment: Experiment) -> tuple[str, str]:
    """The experiment's (row, column) in a grid."""
    if experiment.table == "table6":
        matrices, _, rank = experiment.row.rpartition("-r")
        return matrices.replace("-", ", "), f"r = {rank}"
    return label(experiment), TASKS[experiment.settings.task].title


def _pitfalls(chosen: list[Experiment], run: dict[str, Row]) -> Table:
    """The change of the score by each mistake, and minutes, the worst first, below the correct run.

    What changes the scoring alone stands last. Of E2E and MRPC, a task without any record is left out.
    """
    recorded = {row["task"] for row in run.values()} or PITFALL_TASKS.keys()
    tasks = {task: head for task, head in PITFALL_TASKS.items() if task in recorded}
    by_row: dict[str, dict[str, Experiment]] = {}
    for e in (e for e in chosen if e.settings.task in tasks):
        by_row.setdefault(e.row, {})[e.settings.task] = e
    lines = []
    for name, by_task in by_row.items():
        first, rows = next(iter(by_task.values())), {task: run.get(e.name) for task, e in by_task.items()}
        if first.against:
            changes = [row["difference"] for row in rows.values() if row and not pd.isna(row["difference"])]
            about, scoring = first.about.partition(": ")[2], changed(first).keys() <= SCORING
            cells = [text for task in tasks for text in _with_minutes(rows, task, "change")]
            about = f"{'Scoring only: ' * scoring}{about}"
            lines.append((scoring, min(changes, default=inf), [about[0].upper() + about[1:], *cells]))
        elif name == "correct":
            cells = [text for task in tasks for text in _with_minutes(rows, task, "score")]
            lines.append((False, -inf, ["LoRA without a mistake: its score", *cells]))
    return {
        "columns": ["mistake", *(text for head in tasks.values() for text in (head, "minutes"))],
        "rows": [line for *_, line in sorted(lines, key=itemgetter(0, 1))],
        "holes": [f"all of {head.partition(',')[0]}" for task, head in PITFALL_TASKS.items() if task not in tasks],
    }


def _with_minutes(rows: dict[str, Row | None], task: str, column: str) -> list[str]:
    """[the cell, minutes of training + decoding] on a task; empty texts where the row is not declared on it."""
    row = rows.get(task)
    if row is None:
        return [HOLE if task in rows else "", ""]
    minutes = (shown(row, f"{step} minutes") for step in ("training", "decoding"))
    return [_cell(row, column), " + ".join(filter(None, minutes))]


LAYOUTS = {  # others: `_list` of CHANGES
    "table2": _grid, "table3": partial(_list, SCORES), "table5": _grid, "table6": _grid, "pitfalls": _pitfalls,
}  # fmt: skip
