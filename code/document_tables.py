"""The summary's tables as the report and the poster set them: cells of text, with a hole where nothing is run.

    of(by_experiment(read_summary()), "table3", "cpu")    # {"columns": [...], "rows": [[...]], "run": 4, ...}

A row that is not run has its name and `HOLE` alone, or is named in `holes`. Nothing is computed here: a cell is a
string of the summary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from math import inf
from typing import Any

import pandas as pd

from claims import BASES
from experiments import EXPERIMENTS, resolve, select
from experiments_glue import GLUE_TASKS, RANKS, WEIGHT_TYPES
from figure_data import label
from settings import Experiment
from tasks import E2E_METRICS, TASKS

HOLE = "not run"
SHORT = {"slot_error_rate": "slot errors", "ROUGE_L": "ROUGE-L"}
E2E_COLUMNS = ("", "trained", "n", *(SHORT.get(metric, metric) for metric in E2E_METRICS), "against full")
CHANGE_COLUMNS = ("", "n", "score", "difference", "verdict")
PITFALL_COLUMNS = {"e2e": "E2E, BLEU", "glue-mrpc": "MRPC, accuracy"}

Table = dict[str, Any]
Lines = list[dict[str, str]]
Summary = defaultdict[tuple[str, str], Lines]  # (experiment, scale) -> its lines, none where it is not run


def _chosen(table: str, scale: str) -> list[Experiment]:
    return [e for e in select(table, scale) if resolve(e, scale).model in BASES[scale]]


def by_experiment(summary: pd.DataFrame) -> Summary:
    """The lines of every run experiment, what it is judged by first."""
    found: Summary = defaultdict(list)
    for line in summary[summary["n"] != "0"].to_dict("records"):
        found[line["experiment"], line["scale"]].append(line)
    return found


def _value(lines: Lines, metric: str) -> str:
    line = next((line for line in lines if line["metric"] == metric), None)
    if line is None or not line["value"]:
        return "–"
    return line["value"] + (f" ±{line['spread']}" if line["spread"] else "")


def _minutes(lines: Lines) -> str:
    """Of training, and of decoding where there is any."""
    found = (_value(lines, f"{step}_minutes") for step in ("training", "decoding"))
    return " + ".join(minutes for minutes in found if minutes != "–")


def _compared(line: dict[str, str]) -> str:
    """The difference with its interval, as far as there is one."""
    interval = f" [{line['difference_low']}, {line['difference_high']}]" if line["difference_low"] else ""
    return f"{line['difference']}{interval}" if line["difference"] else "–"


def _seeds(lines: Lines) -> str:
    """How many seeds the rows have: 3, or 1 to 3."""
    counts = sorted({int(line["n"]) for line in lines})
    return " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else ""


def _e2e(lines: Lines) -> list[str]:
    main = lines[0]
    against = f"{_compared(main)}, {main['verdict']}" if main["difference"] else main["verdict"]
    return [f"{int(main['trainable']):,}", main["n"], *(_value(lines, metric) for metric in E2E_METRICS), against]


def _change(lines: Lines) -> list[str]:
    main = lines[0]
    return [main["n"], _value(lines, main["metric"]), _compared(main), main["verdict"]]


def _sheet(
    summary: Summary, table: str, scale: str, columns: tuple[str, ...], cells: Callable[[Lines], list[str]]
) -> Table:
    rows, holes, chosen = [], [], _chosen(table, scale)
    titles = {e.name: TASKS[resolve(e, scale).task].title for e in chosen}
    for experiment in chosen:
        lines = summary[experiment.name, scale]
        name = label(experiment, scale) + (f", {titles[experiment.name]}" if len(set(titles.values())) > 1 else "")
        if lines:
            rows.append([name, *cells(lines)])
        else:
            holes.append(name)
    return {
        "columns": list(columns), "rows": rows, "holes": holes, "run": len(rows), "of": len(chosen),
        "command": command(table, scale),
    }  # fmt: skip


def command(table: str, scale: str) -> str:
    return f"python code/reproduce.py sweep {table} --scale {scale}"


def _by_task(summary: Summary, table: str, scale: str, names: dict[str, str]) -> Table:
    """Rows by GLUE task: the main score by the paper's rule, subsets marked with an asterisk.

    Where the table has LoRA r=8, below them what it differs from full fine-tuning, by either rule.
    """
    found: dict[str, dict[str, str]] = {}
    differ: dict[str, dict[str, str]] = {"LoRA r=8 less full": {}, "by the honest rule": {}}
    first = []
    chosen = _chosen(table, scale)
    for experiment in chosen:
        task, row = resolve(experiment, scale).task, found.setdefault(label(experiment, scale), {})
        if lines := summary[experiment.name, scale]:
            first.append(lines[0])
            row[task] = _value(lines, lines[0]["metric"]) + ("*" if lines[0]["data"] == "subset" else "")
            if experiment.row == "lora-r8":
                for of, rule in zip(differ.values(), ("paper", "honest"), strict=True):
                    of[task] = next((_compared(line) for line in lines if line["rule"] == rule), "–")
    of_row = found | {name: of for name, of in differ.items() if of}
    rows = [[name, *(of.get(task, "–") for task in names)] if of else [name, HOLE] for name, of in of_row.items()]
    return {
        "columns": ["", *names.values()], "rows": rows, "run": len(first), "of": len(chosen), "seeds": _seeds(first),
        "command": command(table, scale),
    }  # fmt: skip


def _grid(summary: Summary, task: str, scale: str) -> Table:
    """Table 6 for one task: adapted matrices by rank."""
    rows, first = [], []
    by_row = {e.row: e for e in _chosen("table6", scale) if resolve(e, scale).task == task}
    for types in WEIGHT_TYPES:
        cells = []
        for rank in RANKS:
            lines = summary[by_row[f"{types}-r{rank}"].name, scale]
            first += lines[:1]
            cells.append(_value(lines, lines[0]["metric"]) if lines else "–")
        rows.append([types.replace("-", ", "), *(cells if set(cells) != {"–"} else [HOLE])])
    columns = ["", *(f"r = {rank}" for rank in RANKS)]
    return {
        "columns": columns, "rows": rows, "run": len(first), "of": len(by_row), "seeds": _seeds(first),
        "command": command("table6", scale),
    }  # fmt: skip


def _pitfalls(summary: Summary, scale: str) -> Table:
    """Each mistake beside the correct run: what the score changes by, the most first, and the time.

    On E2E and on MRPC, or on the one of them of which anything is run.
    """
    found: dict[str, dict[str, Experiment]] = {}
    chosen = _chosen("pitfalls", scale)
    for experiment in chosen:
        if experiment.against:
            found.setdefault(experiment.row, {})[experiment.name.split("/")[1]] = experiment
    recorded = {experiment.name.split("/")[1] for experiment in chosen if summary[experiment.name, scale]}
    parts = {part: title for part, title in PITFALL_COLUMNS.items() if part in recorded or not recorded}
    rows = {}
    for of in (of for of in found.values() if of.keys() & parts.keys()):
        cells, changes = [], [inf]
        for part in parts:
            lines = summary[of[part].name, scale] if part in of else []
            if lines and lines[0]["difference"]:
                changes.append(float(lines[0]["difference"]))
            empty = HOLE if part in of else ""
            cells += [_compared(lines[0]), _minutes(lines)] if lines else [empty, ""]
        about = next(iter(of.values())).about.partition(": ")[2]
        rows[(about[0].upper() + about[1:], *cells)] = min(changes)
    correct = ["LoRA without a mistake: its score"]
    for part in parts:
        lines = summary[f"pitfalls/{part}/correct", scale]
        correct += [_value(lines, lines[0]["metric"]), _minutes(lines)] if lines else [HOLE, ""]
    columns = ["mistake", *(column for title in parts.values() for column in (title, "minutes"))]
    return {
        "columns": columns, "rows": [correct, *(list(row) for row in sorted(rows, key=rows.get))],
        "run": sum(bool(summary[e.name, scale]) for e in chosen), "of": len(chosen),
        "holes": [f"all of {title.partition(',')[0]}" for part, title in PITFALL_COLUMNS.items() if part not in parts],
        "command": command("pitfalls", scale),
    }  # fmt: skip


def of(summary: Summary, table: str, scale: str) -> Table:
    """A table of the paper, or of this project, on the models that claims are judged on."""
    if table == "table3":
        return _sheet(summary, table, scale, E2E_COLUMNS, _e2e)
    if table == "table2":
        return _by_task(summary, table, scale, {task: TASKS[task].title for task in GLUE_TASKS})
    if table == "table5":
        return _by_task(summary, table, scale, {task: TASKS[task].title for task in ("mnli", "sst2")})
    if table in ("table6-mnli", "table6-sst2"):
        return _grid(summary, table.partition("-")[2], scale)
    if table == "pitfalls":
        return _pitfalls(summary, scale)
    return _sheet(summary, table, scale, CHANGE_COLUMNS, _change)


def coverage(summary: Summary, titles: dict[str, str], scales: tuple[str, ...]) -> list[list[str]]:
    """[title, rows run at each scale]: of every table, on the models that claims are judged on."""
    found = []
    for table, title in titles.items():
        cells = []
        for scale in scales:
            there = [e for e in EXPERIMENTS.values() if e.table == table and scale in e.scales]
            chosen = _chosen(table, scale) if any(e.variant == "paper" for e in there) else []
            run = sum(bool(summary[experiment.name, scale]) for experiment in chosen)
            cells.append(f"{run} of {len(chosen)}" if chosen else "–")
        found.append([title, *cells])
    return found
