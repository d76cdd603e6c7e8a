"""Tables for a terminal, as CSV and as Markdown, with the paper's numbers in columns of their own.

    frame = table(select("table3", "cpu"))   # one row an experiment, not rounded
    print(as_text(frame, "table3", "cpu"))   # what `reproduce.py table table3 --scale cpu` prints

All three show the same cells of `summary.cells`, rounded by `quantities.printed`. The same notes explain scale,
statistic, protocol, rule and verdict; a missing row has the command that fills it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.paper_values import OF_GPT3, OTHER_METRIC, OTHER_METRIC_MEANS, PRIOR_WORK, PRIOR_WORK_MEANS
from analysis.quantities import MARGIN, RULES, printed
from analysis.seed_statistics import DIFFERENCE_LEVEL
from analysis.summary import FULL_ROWS, NO_REFERENCE, cells
from experiments.catalogue import find
from experiments.settings import Experiment
from publish.labels import SCALE_MEANS, TITLES
from publish.sheets import parts, sheets, shown, wide
from runs import records
from tasks.catalogue import TASKS

OTHER_SHARE = 2.0  # a factor between shares of trained parameters


def table(experiments: list[Experiment]) -> pd.DataFrame:
    """One row an experiment: seeds, parameters, our numbers in table units, the paper's as printed, the verdict."""
    return wide(cells(experiments))


def notes(part: pd.DataFrame, scale: str) -> list[str]:
    """The notes under one of `parts`: what a reader has to know to read its numbers."""
    first = part.iloc[0]
    task = TASKS[first["task"]]
    statistic = f"{first['statistic']}s"
    sentences = [
        f"Scale `{scale}`: {SCALE_MEANS[scale]}.",
        f"Numbers are {statistic} over n seeds, ± their sample standard deviation. They are times 100, except NIST, "
        "CIDEr, losses and costs.",
    ]
    if first["rule"] == "selection":
        sentences.append(f"Measured {RULES['selection']}.")
    elif task.rules:
        sentences.append(f"Two rules, never mixed: *paper's rule*, {RULES['paper']}; *held-out*, {RULES['held-out']}.")
    else:
        sentences.append(
            f"Text protocol `{first['protocol']}`; scored: {', '.join(RULES[r] for r in part['rule'].unique())}."
        )
    sentences += dict.fromkeys(note for name in part["task"] if (note := TASKS[name].note))
    if "difference" in part and part["difference"].notna().any():
        others = {metric: shown_as.margin for metric, shown_as in task.metrics.items() if shown_as.margin != MARGIN}
        margins = "".join(f", {margin:g} {metric}" for metric, margin in others.items())
        against = _references(part)
        sentences.append(
            f"A verdict is about the mean difference to {against} at the same seeds and scale. It is *equivalent* if "
            f"the {DIFFERENCE_LEVEL:.0%} interval (Student's t) lies within ±{MARGIN:g} point{margins}; else *better* "
            "or *worse* if it lies on one side of 0; else *inconclusive*. One seed has no interval and no verdict."
        )
    if (part["verdict"] == NO_REFERENCE).any():
        sentences.append(f"*{NO_REFERENCE}*: the run that the row is compared with is not declared or not recorded.")
    papers = [column for column in part.columns if column.startswith("paper") and column != "paper's rule"]
    if part[papers].notna().any(axis=None):
        models = "GPT-3 175B" if first["table"] in OF_GPT3 else "its own models"
        same_work = models == "its own models" and scale == "paper"
        sentences.append(
            "The paper's columns are as it prints them. Table 3 calls its ± a confidence interval, without a level."
            + ("" if same_work else f" The numbers are of {models} at its own scale: not the same work.")
        )
        if first["table"] == "table16":
            sentences.append("GPT-3 is not public: the rows here are an encoder's.")
    if part["paper's row"].fillna("").str.contains(PRIOR_WORK, regex=False).any():
        sentences.append(PRIOR_WORK_MEANS)
    if part[papers].astype(str).apply(lambda column: column.str.contains(OTHER_METRIC)).any(axis=None):
        sentences.append(OTHER_METRIC_MEANS)
    if (subset := part["data"] == "subset").any():
        tasks = ", ".join(TASKS[task].title for task in part[subset]["task"].unique())
        sentences.append(f"At least one split of {tasks} is a subset of the released one.")
    if (part["data"] == "rebuilt text").any():
        sentences.append("*rebuilt text*: the official code's files were out of reach and were rebuilt by one rule.")
    if (part["data"] == "mixed").any():
        sentences.append(
            "*mixed*: the runs had different data or base weights; differences are between runs on the same ones only."
        )
    for number, rows in part[part["train_rows"].notna()].groupby("train_rows"):
        by, titles = ("model", {}) if part["task"].nunique() == 1 else ("task", {t: TASKS[t].title for t in TASKS})
        some = f" ({', '.join(titles.get(name, name) for name in rows[by].unique())})" if len(rows) < len(part) else ""
        sentences.append(f"Trained on {number:,.0f} rows at most{some}.")
    if part["alarms"].notna().any() and part["alarms"].fillna(0).sum():
        sentences.append(
            "*alarms*: runs that give nearly always the same answer, or score no better than one always would."
        )
    alike = part["share"].astype(float) / part["paper share"].astype(float)
    if (other := (alike > OTHER_SHARE) | (alike < 1 / OTHER_SHARE)).any():
        shares = ", ".join(
            f"`{row['experiment'].partition('/')[2]}` {printed('share', row['share'])}% ("
            f"{printed('share', row['paper share'])}%)"
            for row in part[other].to_dict("records")
        )
        sentences.append(
            f"These rows do not repeat the paper's: the share of the model that they train differs from the paper's "
            f"(in brackets) by a factor above {OTHER_SHARE:g}: {shares}."
        )
    if (older := part["uncommitted"] > 0).any():
        rows = ", ".join(f"`{name.partition('/')[2]}`" for name in part[older]["experiment"])
        sentences.append(f"Measured before the code was committed, so that no commit has exactly that code: {rows}.")
    if left_out := int(part["left_out"].sum()):
        sentences.append(
            f"Left out: {left_out} records that are of other settings or another task version than declared now, or "
            "damaged, or a copy of another run's."
        )
    return sentences


def _references(part: pd.DataFrame) -> str:
    names = part[part["difference"].notna()]["reference"].unique()
    rows = {find(name).row for name in names}
    if rows <= {*FULL_ROWS}:
        return "full fine-tuning" + (" from the same start" if len(rows) > 1 else "")
    return " or ".join(f"`{name}`" for name in names)


def missing(part: pd.DataFrame) -> list[tuple[str, str]]:
    """(experiment, the command that runs it) of every row without a record."""
    return [(row["experiment"], row["command"]) for row in part.to_dict("records") if row["n"] == 0]


def as_text(frame: pd.DataFrame, name: str, scale: str) -> str:
    """The table for a terminal, with what is missing and how many runs of the scale did not end well."""
    lines = []
    for part in parts(frame, name).values():
        lines += [f"{TITLES.get(name, name)}, scale {scale}", ""]
        for title, sheet in sheets(part):
            lines += [*([f"{title}:"] if title else []), sheet.to_string(index=False), ""]
        lines += [note.replace("`", "").replace("*", "") for note in notes(part, scale)]
        lines += [f"missing: {experiment}  ->  {command}" for experiment, command in missing(part)] + [""]
    stopped = {status: records.unfinished(scale, status) for status in ("failed", "diverged", "interrupted")}
    stopped["damaged"] = len(records.damaged(scale))
    if any(stopped.values()):
        lines.append("kept apart at this scale: " + ", ".join(f"{n} {s}" for s, n in stopped.items() if n))
    return "\n".join(lines).rstrip()


def markdown(sheet: pd.DataFrame, numbers: Sequence[str] = ()) -> str:
    """The cells, all texts, as a Markdown table; the columns in `numbers` are set to the right."""
    rule = ["---:" if column in numbers else "---" for column in sheet.columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in (sheet.columns, rule, *sheet.to_numpy().tolist()))


def as_markdown(part: pd.DataFrame, name: str, scale: str) -> str:
    """One of `parts` as a page: its sheets, what they mean, what is missing."""
    page = [f"# {TITLES.get(name, name)}, scale {scale}"]
    for title, sheet in sheets(part):
        page += [f"## {title[0].upper()}{title[1:]}"] if title else []
        page.append(markdown(sheet))
    page += ["## How to read it", "\n".join(f"- {note}" for note in notes(part, scale))]
    if commands := missing(part):
        listed = "\n".join(command for _, command in commands)
        page += [
            "## Missing",
            f"Rows that are not run: {len(commands)} of {len(part)}. Each is filled by",
            f"```\n{listed}\n```",
        ]
    return "\n\n".join(page) + "\n"


def as_csv(part: pd.DataFrame) -> str:
    """One of `parts` with all its columns, numbers as shown, without thousands separators."""
    rows = [
        {
            column: shown(row, column) if isinstance(row[column], str) else shown(row, column).replace(",", "")
            for column in row
        }
        for row in part.to_dict("records")
    ]
    frame = pd.DataFrame(rows, columns=part.columns)
    return frame.loc[:, (frame != "").any()].to_csv(index=False, lineterminator="\n")
