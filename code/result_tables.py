"""Tables as they are read: in a terminal, as CSV and as Markdown, ours beside the paper's column, never mixed.

    frame = table("table3", "cpu")           # one row an experiment, not rounded
    print(as_text(frame, "table3", "cpu"))   # what `reproduce.py table table3 --scale cpu` prints

All three are the same cells of `summary.cells`, rounded by `quantities.printed`, with the same words on what they are:
scale, statistic, protocol, rule, what a verdict means, and the command for every cell that is missing.
"""

from __future__ import annotations

import pandas as pd

import records
from experiments import find, select
from paper_values import OTHER_METRIC, OTHER_METRIC_MEANS, PRIOR_WORK, PRIOR_WORK_MEANS
from quantities import MARGIN, MARGINS, RULES
from statistics_seeds import DIFFERENCE_LEVEL
from summary import FULL_ROWS, NO_REFERENCE, cells
from summary_tables import parts, sheets, shown, wide
from tasks import TASKS, GlueTask

TITLES = {
    "table2": "Table 2: GLUE",
    "table3": "Table 3: E2E",
    "table5": "Table 5: which matrices, at one number of parameters",
    "table6": "Table 6: which matrices, which rank",
    "curves": "Epoch by epoch, by rank",
    "learning-rate": "The choice of learning rates",
    "rank-over-time": "Rank over time: Sequential LoRA and adaptive rank",
    "variants": "Variants of LoRA",
    "pitfalls": "What the mistakes of earlier reproductions cost",
    "released": "The authors' own adapters",
}
SCALE_MEANS = {
    "quick": "built-in data and models, to prove the pipeline and not the paper",
    "cpu": "real data and small real models",
    "paper": "the paper's models and settings",
}


def table(name: str, scale: str, only: list[str] | None = None, variant: str = "paper") -> pd.DataFrame:
    """One row an experiment: seeds, parameters, our numbers in table units, the paper's as printed, the verdict."""
    return wide(cells(select(name, scale, only, variant), scale))


def notes(part: pd.DataFrame, scale: str) -> list[str]:
    """What a reader has to know to read the numbers of one of `parts`, a sentence an item."""
    first = part.iloc[0]
    glue = isinstance(TASKS[first["task"]], GlueTask) and first["rule"] != "selection"
    statistic = f"{first['statistic']}s"
    said = [
        f"Scale `{scale}`: {SCALE_MEANS[scale]}." + ("" if scale == "paper" else f" {_models(part)}"),
        f"Numbers are {statistic} over n seeds, ± their sample standard deviation; times 100, but for NIST, CIDEr, "
        "losses and costs.",
    ]
    if glue:
        said.append(f"Two rules, never mixed: *paper's rule*, {RULES['paper']}; *honest*, {RULES['honest']}.")
    elif first["rule"] == "selection":
        said.append(f"Measured {RULES['selection']}.")
    else:
        said.append(
            f"Text protocol `{first['protocol']}`; scored: {', '.join(RULES[r] for r in part['rule'].unique())}."
        )
    if "difference" in part and part["difference"].notna().any():
        margins = "".join(f", {margin:g} {metric}" for metric, margin in MARGINS.items())
        against = _references(part)
        said.append(
            f"A verdict is about the mean difference to {against} at the same seeds and scale, with its "
            f"{DIFFERENCE_LEVEL:.0%} interval (Student's t): *equivalent* within ±{MARGIN:g} point{margins}; *better* "
            "or *worse* on one side of 0; else *inconclusive*. One seed has no interval and gives no verdict."
        )
    if (part["verdict"] == NO_REFERENCE).any():
        said.append(f"*{NO_REFERENCE}*: the table has nothing that the row is measured against, or it is not run.")
    papers = [column for column in part.columns if column.startswith("paper") and column != "paper's rule"]
    if part[papers].notna().any(axis=None):
        models = "GPT-3 175B" if first["table"] in ("table5", "table6") else "its own models"
        work = (
            "" if models == "its own models" and scale == "paper" else f": {models} at its own scale, not the same work"
        )
        said.append(
            "The paper's columns are as it prints them, with a ± that Table 3 calls a confidence interval, its level "
            f"unsaid{work}."
        )
    if part["paper's row"].fillna("").str.contains(PRIOR_WORK, regex=False).any():
        said.append(PRIOR_WORK_MEANS)
    if part[papers].astype(str).apply(lambda column: column.str.contains(OTHER_METRIC)).any(axis=None):
        said.append(OTHER_METRIC_MEANS)
    if (subset := part["data"] == "subset").any():
        tasks = ", ".join(TASKS[task].title for task in part[subset]["task"].unique())
        said.append(f"Of {tasks} some split at hand is a subset of the released one.")
    if (part["data"] == "mixed").any():
        said.append("*mixed*: the runs had different rows; no difference is between runs on different data.")
    for rows, of in part[part["train_rows"].notna()].groupby("train_rows"):
        some = f" ({', '.join(TASKS[task].title for task in of['task'].unique())})" if len(of) < len(part) else ""
        said.append(f"Trained on {rows:,.0f} rows at most{some}.")
    if part["alarms"].notna().any() and part["alarms"].fillna(0).sum():
        said.append("*alarms*: runs that give nearly always the same answer, or do no better than that.")
    if left_out := int(part["left_out"].sum()):
        said.append(f"Left out: {left_out} records of other settings or another task version than declared now.")
    return said


def _models(part: pd.DataFrame) -> str:
    models = part["model"].unique()
    whose = "All rows are" if len(models) == 1 else "The rows are"
    return f"{whose} of {' or '.join(f'`{model}`' for model in models)}; the model in a row's name is the paper's."


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
    if any(stopped.values()):
        lines.append("kept apart at this scale: " + ", ".join(f"{n} {s}" for s, n in stopped.items() if n))
    return "\n".join(lines).rstrip()


def markdown(sheet: pd.DataFrame) -> str:
    """The cells as a Markdown table."""
    rows = [list(sheet.columns), ["---"] * len(sheet.columns), *sheet.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def with_block(page: str, name: str, block: str) -> str:
    """The page with what stands between `<!-- name -->` and `<!-- /name -->` replaced; ValueError where one lacks."""
    before, begin, rest = page.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(
            f"expected the lines <!-- {name} --> and <!-- /{name} --> in README.md, around what is generated; found "
            f"{'no end' if begin else 'no beginning'}: put both where it belongs"
        )
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


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
    """One of `parts` with all its columns, numbers as they are shown but for thousands separators."""
    rows = [
        {
            column: shown(row, column) if isinstance(row[column], str) else shown(row, column).replace(",", "")
            for column in row
        }
        for row in part.to_dict("records")
    ]
    frame = pd.DataFrame(rows, columns=part.columns)
    return frame.loc[:, (frame != "").any()].to_csv(index=False, lineterminator="\n")
