"""Cells of the summary -> the rows and columns of a table, as numbers and as they are shown.

A table's rows are experiments at one scale. Rows of different kinds (E2E and GLUE, two text protocols) are in separate
tables. Numbers of another protocol or rule have a sheet or a column of their own. `tables.py` sets the sheets as text,
`report_tables.py` for the report and the poster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.claims import LEADING
from analysis.comparisons import MISSING
from analysis.factorial import Effect, effects, scores_of
from analysis.quantities import COSTS, printed
from analysis.summary import FROM_MNLI
from experiments.bleu_gap import DESIGNS, factors_of
from experiments.catalogue import find
from experiments.settings import OFFICIAL, Experiment
from publish.labels import HEADS
from tasks.catalogue import COURSE, TASKS

COST_COLUMNS = {metric.replace("_", " "): metric for metric in COSTS}
COUNTS = ("n", "trainable", "train_rows", "alarms", "left_out", "uncommitted", "training tokens")
RULE_COLUMNS = {"paper": "paper's rule", "held-out": "held-out", "selection": "on selection rows"}
FIRST_SHEET = ("experiment", "n", "trainable")
BY_METRIC = (  # columns of a table whose rows are of several metrics
    *FIRST_SHEET, "metric", *RULE_COLUMNS.values(), "mismatched", "verdict", "held-out verdict", "alarms", "data",
    "paper's row", "paper",
)  # fmt: skip
SCORING = {  # settings that change how texts are found and scored, and no weight
    "beams", "length_penalty", "no_repeat_ngram", "max_new_tokens", "blank_line_ends", "single_reference",
}  # fmt: skip
LENGTHS = ("mean_words", "mean_reference_words", "brevity_penalty", "BLEU_unpenalised")
SHEETS = {  # title -> columns; shown if a row fills the last
    "What each change costs": ("experiment", "n", "metric", "score", "difference", "changes", "changed"),
    "Length of the texts": ("experiment", "n", "BLEU", *LENGTHS),
    "The same texts by the metrics of a course reproduction (edwinlin13)": ("experiment", "n", *COURSE),
    "Cost of a run": ("experiment", "n", "trainable", *COST_COLUMNS, "device", "measured"),
}  # fmt: skip


def wide(long: pd.DataFrame) -> pd.DataFrame:
    """The cells of one scale, one row an experiment, in table units and not rounded.

    `X ±` is the spread over seeds of column X; `score` is what the experiment is judged by.
    """
    rows = [one_row(cells.to_dict("records")) for _, cells in long.groupby("experiment", sort=False)]
    frame = pd.DataFrame(rows).astype(object)
    return frame.where(frame.notna(), None)


def one_row(quantities: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of one experiment, whose first quantity is what it is judged by."""
    main = quantities[0]
    row = {
        key: main[key]
        for key in ("experiment", "table", "variant", "scale", "model", "method", "task", "protocol", "train_rows", "n",
                    "seeds", "trainable", "device", "metric", "rule", "statistic", "data", "alarms", "left_out",
                    "uncommitted", "measured", "reference", "command")
    }  # fmt: skip
    row |= {"paper's row": main["paper_row"], "share": main["share"], "paper share": main["paper_share"]}
    changes = changed(find(main["experiment"]))
    row["changed"] = ", ".join(f"{key}={value}" for key, value in changes.items()) or None
    row["changes"] = ("the scoring" if changes.keys() <= SCORING else "the training") if changes else None
    row |= {"score": main["value"], "score ±": main["spread"], "difference": main["difference"]}
    row["each seed"] = " ".join(printed(main["metric"], value) for value in main["each_seed"].values())
    for quantity in quantities:
        column = _column(quantity, main)
        row |= {column: quantity["value"], f"{column} ±": quantity["spread"]} if column else {}
        if quantity["rule"] == "held-out" and column:
            row["held-out verdict"] = _verdict(quantity)
        if column in metric_columns(row):
            row[f"paper {column}"] = quantity["paper"]
    return row | {"paper": None if metric_columns(row) else main["paper"], "verdict": _verdict(main)}


def metric_columns(row: dict[str, Any]) -> list[str]:
    """The metrics with a column of their own; none for tasks whose rows have different metrics (GLUE)."""
    task = TASKS[row["task"]]
    if task.rules or row["rule"] == "selection":
        return []
    compared = {name: metric for name, metric in task.metrics.items() if metric.higher_is_better is not None}
    return [name for name, metric in compared.items() if metric.protocol is None]


def _column(quantity: dict[str, Any], main: dict[str, Any]) -> str | None:
    """The quantity's column; None for GLUE's further metrics, which only the summary shows."""
    if quantity["metric"] in COSTS:
        return quantity["metric"].replace("_", " ")
    if quantity["rule"] not in RULE_COLUMNS:
        return quantity["metric"]
    if quantity["protocol"] != main["protocol"]:
        return "mismatched"
    return RULE_COLUMNS[quantity["rule"]] if quantity["metric"] == main["metric"] else None


def changed(experiment: Experiment) -> dict[str, Any]:
    """The settings in which an experiment differs from the one it is measured against, if it names one."""
    if not experiment.against:
        return {}
    ours, right = (vars(e.settings) for e in (experiment, find(experiment.against)))
    start = ("epochs", "start_from") if not ours["epochs"] else ()  # decoded anew: that is no change of the search
    return {key: value for key, value in ours.items() if value != right[key] and key not in start}


def change(quantity: dict[str, Any], unit: str = "") -> str:
    """The difference to the reference with its interval: `+0.31 BLEU [-0.02, +0.64]`; empty where there is none."""
    metric, low, high = (quantity[key] for key in ("metric", "difference_low", "difference_high"))
    difference = printed(metric, quantity["difference"], "+")
    interval = "" if pd.isna(low) else f" [{printed(metric, low, '+')}, {printed(metric, high, '+')}]"
    return difference and difference + unit + interval


def _verdict(quantity: dict[str, Any]) -> str:
    """`+0.31 BLEU [-0.02, +0.64], equivalent (n=3)`, or why there is none; empty for the choice of a setting."""
    if quantity["n"] == 0:
        return "not run"
    changed = change(quantity, f" {quantity['metric']}")
    if not changed:
        return "" if quantity["rule"] == "selection" else quantity["verdict"]
    seeds = [f"n={quantity['difference_n']:.0f}"] if "[" in changed else []  # of one seed, the verdict says so
    seeds += ["both from MNLI"] if FROM_MNLI in quantity["reference"].split("/") else []
    return f"{changed}, {quantity['verdict']}" + (f" ({', '.join(seeds)})" if seeds else "")


def parts(frame: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """{name of a table: the rows of `wide` that may stand in it}, the base LEADING first."""
    frame = frame.sort_values("model", key=lambda models: models != LEADING, kind="stable")
    kinds = [_kind(row) for row in frame.to_dict("records")]
    official = f"-{OFFICIAL}" if (frame["variant"] == OFFICIAL).any() else ""
    groups = frame.groupby(pd.Series(kinds, frame.index), sort=False)
    return {name + (f"-{kind}" if len(set(kinds)) > 1 else "") + official: rows for kind, rows in groups}


def _kind(row: dict[str, Any]) -> str:
    task, protocol = TASKS[row["task"]], row["protocol"]
    return task.workflow if task.split or protocol in ("lora", "selection") else f"{task.workflow}-{protocol}"


def shown(row: dict[str, Any], column: str) -> str:
    """The text of a cell: a number as printed, with its spread if there are several seeds."""
    value = row.get(column)
    if value is None or isinstance(value, str):
        return value or ""
    if column in COUNTS:
        return f"{value:,.0f}"
    metric = COST_COLUMNS.get(column, column if column in TASKS[row["task"]].metrics else row["metric"])
    plus_minus = printed(metric, row.get(f"{column} ±"))
    return printed(metric, value, "+" if column == "difference" else "") + (f" ±{plus_minus}" if plus_minus else "")


def sheets(part: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, cells as text) of each sheet of one of `parts`; the first has no title."""
    rows = part.to_dict("records")
    yield "", sheet_of(rows, _columns(rows[0]))
    for title, columns in SHEETS.items():
        if filled := [row for row in rows if shown(row, columns[-1])]:
            yield title, sheet_of(filled, columns)
    yield from _grids(rows)
    if rows[0]["table"] == "bleu-gap":
        yield "What each factor is worth", effects_sheet(rows[0]["scale"])


def effects_sheet(scale: str) -> pd.DataFrame:
    """The effect of each factor of the designs at a scale, by both scoring protocols, and over how many pairs.

    A row is the mean difference of two levels over all cells that differ in nothing else, with the least and the most.
    """
    lines = []
    for base, design in DESIGNS.items():
        if next(iter(design.values())).scale == scale:
            by_metric = {m: effects(scores_of(design, m), factors_of(base)) for m in ("BLEU", "course_BLEU")}
            for place, effect in enumerate(by_metric["BLEU"]):
                shown = {HEADS.get(m, m): _effect(m, effects[place]) for m, effects in by_metric.items()}
                change = {"base": base, "factor": effect.factor, "from": effect.start, "to": effect.end}
                lines.append(change | shown | {"pairs": str(effect.pairs)})
    return pd.DataFrame(lines)


def _effect(metric: str, effect: Effect) -> str:
    """`+0.31 (+0.02 to +0.64)`, or that it is not measured yet."""
    if not effect.pairs:
        return MISSING
    mean, least, most = (printed(metric, value, "+") for value in (effect.mean, effect.least, effect.most))
    return mean if effect.pairs == 1 else f"{mean} ({least} to {most})"


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    """The columns of the first sheet."""
    if metrics := metric_columns(row):
        return (*FIRST_SHEET, *metrics, "verdict", "paper's row", *(f"paper {metric}" for metric in metrics))
    return BY_METRIC


def sheet_of(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """The cells as text, without the columns that no row fills."""
    sheet = pd.DataFrame([{column: shown(row, column) for column in columns} for row in rows])
    filled = sheet.loc[:, (sheet != "").any()].replace("", "-")
    by_rules = {"verdict": "verdict, paper's rule", "held-out verdict": "verdict, held-out"}
    return filled.rename(columns=HEADS | (by_rules if "held-out verdict" in filled else {}))


def _grids(rows: list[dict[str, Any]]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The scores as grids of two settings, as in the paper; one grid for two rules that agree."""
    grids: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    for row in rows:
        for column in RULE_COLUMNS.values():
            if text := shown(row, column):
                title, across, down = _place(row)
                grids.setdefault(title, {}).setdefault(column, {}).setdefault(across, {})[down] = text
    for title, by_rule in grids.items():
        while by_rule:
            lines = next(iter(by_rule.values()))
            alike = [rule for rule, texts in by_rule.items() if texts == lines]
            by_rule = {rule: texts for rule, texts in by_rule.items() if rule not in alike}
            grid = pd.DataFrame.from_dict(lines, orient="index").fillna("-")
            if rows[0]["table"] == "learning-rate":
                grid = grid[sorted(grid.columns, key=float)]
            if len(grid.columns) > 1:
                yield title.format(" and ".join(alike)), grid.rename_axis("").reset_index()


def _place(row: dict[str, Any]) -> tuple[str, str, str]:
    """(title of a grid, with a gap for the rule; row and column of the number in it)."""
    table, model, *middle, last = row["experiment"].removesuffix(f"/{OFFICIAL}").split("/")
    task = TASKS[row["task"]].title
    if table == "learning-rate":
        metric = HEADS.get(row["metric"], row["metric"])
        return f"{metric} {{}}, by learning rate, {model}", f"{task}, {middle[-1]}", last
    if table == "table6":
        matrices, _, rank = last.rpartition("-r")
        return f"{task}, {row['metric']}, {{}}, {model}: matrices by rank", matrices.replace("-", ", "), f"r={rank}"
    if table == "table16":
        return f"{task}, {row['metric']}, {{}}: methods by training rows", f"{model} {last}", shown(row, "train_rows")
    parts = (model, *(part for part in middle if part != row["task"]), last)
    return "{}: rows by task", " ".join(parts), f"{task} ({row['metric']})"
