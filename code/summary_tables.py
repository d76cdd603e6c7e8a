"""Cells of the summary -> the rows and columns of a table, as numbers and as they are shown.

A table's rows are experiments at one scale. Rows of different kinds (E2E and GLUE, two text protocols) are apart, and
what is measured by another protocol or rule has a sheet or a column of its own; `result_tables.py` sets it as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments import find, resolve
from quantities import COSTS, COURSE, printed
from settings import OFFICIAL
from summary import FROM_MNLI
from tasks import E2E_METRICS, TASKS, GlueTask

COST_COLUMNS = {metric.replace("_", " "): metric for metric in COSTS}
COUNTS = ("n", "trainable", "train_rows", "alarms", "left_out", "training tokens")
RULE_COLUMNS = {"paper": "paper's rule", "honest": "honest", "selection": "on selection rows"}
FIRST_SHEET = ("experiment", "n", "trainable")
PAPER_E2E = tuple(f"paper {metric}" for metric in E2E_METRICS)
E2E_SHEET = (*FIRST_SHEET, *E2E_METRICS, "verdict", "paper's row", *PAPER_E2E)
GLUE_SHEET = (
    *FIRST_SHEET, "metric", *RULE_COLUMNS.values(), "mismatched", "verdict", "honest verdict", "alarms", "data",
    "paper's row", "paper",
)  # fmt: skip
SHEETS = {  # title -> columns; shown if a row fills the last
    "What each change costs": ("experiment", "n", "metric", "score", "difference", "changed"),
    "The same texts by the metrics of a course reproduction (edwinlin13)": ("experiment", "n", *COURSE),
    "Cost of a run": ("experiment", "n", "trainable", *COST_COLUMNS, "device"),
}  # fmt: skip
HEADS = {  # column -> what stands above it
    "ROUGE_L": "ROUGE-L", "paper ROUGE_L": "paper ROUGE-L", "slot_error_rate": "slot errors (%)",
    "dev_loss": "dev loss (nats a token)", "peak memory gib": "peak memory (GiB)",
    "course_BLEU": "BLEU (NLTK, lower case)", "course_ROUGE_L": "ROUGE-L (stems)",
}  # fmt: skip


def wide(long: pd.DataFrame) -> pd.DataFrame:
    """The cells of one scale, one row an experiment, in table units and not rounded.

    `X ±` is the spread over seeds of column X; `score` is what the experiment is judged by.
    """
    rows = [_row(cells.to_dict("records")) for _, cells in long.groupby("experiment", sort=False)]
    frame = pd.DataFrame(rows).astype(object)
    return frame.where(frame.notna(), None)


def _row(quantities: list[dict[str, Any]]) -> dict[str, Any]:
    main = quantities[0]
    row = {
        key: main[key]
        for key in ("experiment", "table", "variant", "scale", "model", "method", "task", "protocol", "train_rows", "n",
                    "seeds", "trainable", "device", "metric", "rule", "statistic", "data", "alarms", "left_out",
                    "reference", "command")
    }  # fmt: skip
    row["paper's row"] = main["paper_row"]
    row["changed"] = _changed(main["experiment"], main["scale"])
    row |= {"score": main["value"], "score ±": main["spread"], "difference": main["difference"]}
    row["each seed"] = " ".join(printed(main["metric"], value) for value in main["each_seed"].values())
    for quantity in quantities:
        column = _column(quantity, main)
        row |= {column: quantity["value"], f"{column} ±": quantity["spread"]} if column else {}
        if quantity["rule"] == "honest" and column:
            row["honest verdict"] = _verdict(quantity)
        if column in E2E_METRICS:
            row[f"paper {column}"] = quantity["paper"]
    return row | {"paper": None if "paper BLEU" in row else main["paper"], "verdict": _verdict(main)}


def _column(quantity: dict[str, Any], main: dict[str, Any]) -> str | None:
    """None for what only the summary shows: GLUE's metrics beside the main one."""
    if quantity["rule"] == "cost":
        return quantity["metric"].replace("_", " ")
    if quantity["rule"] not in RULE_COLUMNS:
        return quantity["metric"]
    if quantity["protocol"] != main["protocol"]:
        return "mismatched"
    return RULE_COLUMNS[quantity["rule"]] if quantity["metric"] == main["metric"] else None


def _changed(name: str, scale: str) -> str | None:
    """The settings in which an experiment differs from the one it is measured against, if it names one."""
    experiment = find(name)
    if not experiment.against:
        return None
    ours, right = (vars(resolve(e, scale)) for e in (experiment, find(experiment.against)))
    return ", ".join(f"{key}={value}" for key, value in ours.items() if value != right[key])


def _verdict(quantity: dict[str, Any]) -> str:
    """`+0.31 BLEU [-0.02, +0.64], equivalent (n=3)`, or why there is none; empty where it is not asked."""
    metric, difference, low = quantity["metric"], quantity["difference"], quantity["difference_low"]
    if quantity["n"] == 0:
        return "not run"
    if pd.isna(difference):
        return "" if quantity["rule"] == "selection" else quantity["verdict"]
    interval = (
        "" if pd.isna(low) else f" [{printed(metric, low, '+')}, {printed(metric, quantity['difference_high'], '+')}]"
    )
    seeds = [f"n={quantity['difference_n']:.0f}"] if interval else []  # the verdict says that it is of one
    seeds += ["both from MNLI"] if find(quantity["reference"]).row == FROM_MNLI else []
    return f"{printed(metric, difference, '+')} {metric}{interval}, {quantity['verdict']}" + (
        f" ({', '.join(seeds)})" if seeds else ""
    )


def parts(frame: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """{name of a table: its rows}: the rows of `wide` that may stand in one table."""
    kinds = [_kind(row) for row in frame.to_dict("records")]
    official = f"-{OFFICIAL}" if (frame["variant"] == OFFICIAL).any() else ""
    groups = frame.groupby(pd.Series(kinds, frame.index), sort=False)
    return {name + (f"-{kind}" if len(set(kinds)) > 1 else "") + official: rows for kind, rows in groups}


def _kind(row: dict[str, Any]) -> str:
    if isinstance(TASKS[row["task"]], GlueTask):
        return "glue"
    return "e2e" if row["protocol"] in ("lora", "selection") else f"e2e-{row['protocol']}"


def shown(row: dict[str, Any], column: str) -> str:
    """What stands in the cell: a number as it is printed, with its spread where there are several seeds."""
    value = row.get(column)
    if value is None or isinstance(value, str):
        return value or ""
    if column in COUNTS:
        return f"{value:,.0f}"
    metric = COST_COLUMNS.get(column, column if column in (*E2E_METRICS, *COURSE) else row["metric"])
    plus_minus = printed(metric, row.get(f"{column} ±"))
    return printed(metric, value, "+" if column == "difference" else "") + (f" ±{plus_minus}" if plus_minus else "")


def sheets(part: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, cells as they are shown) of one of `parts`; the first has no title."""
    rows = part.to_dict("records")
    yield "", sheet_of(rows, E2E_SHEET if rows[0]["metric"] == "BLEU" else GLUE_SHEET)
    for title, columns in SHEETS.items():
        if filled := [row for row in rows if shown(row, columns[-1])]:
            yield title, sheet_of(filled, columns)
    yield from _grids(rows)


def sheet_of(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """Without the columns that no row fills."""
    sheet = pd.DataFrame([{column: shown(row, column) for column in columns} for row in rows])
    filled = sheet.loc[:, (sheet != "").any()].replace("", "-")
    by_rules = {"verdict": "verdict, paper's rule", "honest verdict": "verdict, honest"}
    return filled.rename(columns=HEADS | (by_rules if "honest verdict" in filled else {}))


def _grids(rows: list[dict[str, Any]]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The same numbers with two settings as rows and columns, as the paper sets them; once where two rules agree."""
    found: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    for row in rows:
        for column in RULE_COLUMNS.values():
            if text := shown(row, column):
                title, across, down = _place(row)
                found.setdefault(title, {}).setdefault(column, {}).setdefault(across, {})[down] = text
    for title, by_rule in found.items():
        while by_rule:
            lines = next(iter(by_rule.values()))
            alike = [rule for rule, of in by_rule.items() if of == lines]
            by_rule = {rule: of for rule, of in by_rule.items() if rule not in alike}
            grid = pd.DataFrame.from_dict(lines, orient="index").fillna("-")
            if rows[0]["table"] == "learning-rate":
                grid = grid[sorted(grid.columns, key=float)]
            if len(grid.columns) > 1:
                yield title.format(" and ".join(alike)), grid.rename_axis("").reset_index()


def _place(row: dict[str, Any]) -> tuple[str, str, str]:
    """(grid, row, column) of a number in it; the grid's title has a place for the rule."""
    table, model, *middle, last = row["experiment"].removesuffix(f"/{OFFICIAL}").split("/")
    task = TASKS[row["task"]].title
    if table == "learning-rate":
        return f"{HEADS.get(row['metric'], row['metric'])} {{}}, by learning rate", f"{task}, {middle[0]}", last
    if table == "table6":
        matrices, _, rank = last.rpartition("-r")
        return f"{task}, {row['metric']}, {{}}: matrices by rank", matrices.replace("-", ", "), f"r={rank}"
    return "{}: rows by task", f"{model} {last}", f"{task} ({row['metric']})"
