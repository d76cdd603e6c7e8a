"""Every text that follows from the records, as it stands in `results/` and in the README.

    files()           # {"summary.csv": ..., "tables/table3-cpu.md": ..., "figures/table3-parameters-cpu.csv": ...}
    readme(text)      # the README with its block of results made anew

`make_summary.py` writes them and `make_check.py` compares them with what is there, so both know the same files. Only
scales whose records are in git are here; what is run at `quick` is shown by `reproduce.py table` alone. Of a figure the
numbers that it shows are such a text; the picture is drawn from it (`figures.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

import paths
import summary
from experiments import EXPERIMENTS, select
from figure_data import KINDS, figure_data
from result_tables import TITLES, as_csv, as_markdown, markdown, missing, notes, with_block
from settings import OFFICIAL
from summary_tables import parts, sheet_of, wide

KEPT_SCALES = ("cpu", "paper")
IN_README = ("table3", "table2")
README_E2E = ("experiment", "n", "trainable", "BLEU", "verdict", "paper's row", "paper BLEU")
README_GLUE = (
    "experiment", "n", "trainable", "metric", "paper's rule", "verdict", "honest", "honest verdict", "paper's row",
    "paper",
)  # fmt: skip
NOTHING = "Nothing is recorded yet at scale cpu or paper: `python code/reproduce.py sweep table3 --scale cpu` begins."


def names_of_records(scale: str) -> set[str]:
    """Of every experiment with a finished record at the scale, declared or not."""
    files = (paths.RESULTS / "runs" / scale).glob("*.json")
    return {path.name.rpartition("--seed")[0].replace("--", "/") for path in files}


def recorded() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(table, scale, its cells) of every table and variant with a record, in the order of declaration."""
    for scale in KEPT_SCALES:
        names = names_of_records(scale)
        run = [e for e in EXPERIMENTS.values() if e.name in names and scale in e.scales]
        for table, variant in dict.fromkeys((experiment.table, experiment.variant) for experiment in run):
            yield table, scale, summary.cells(select(table, scale, variant=variant), scale)


def summary_text(cells: Sequence[pd.DataFrame]) -> str:
    """The text of `summary.csv`, of the cells of `recorded`."""
    return summary.as_csv(pd.concat(cells) if cells else pd.DataFrame(columns=list(summary.COLUMNS)))


def files() -> dict[str, str]:
    """Path below the results folder -> text; the same records give the same texts."""
    found, every_cell, contents = {}, [], []
    for table, scale, cells in recorded():
        every_cell.append(cells)
        for name, part in parts(wide(cells), table).items():
            found[f"tables/{name}-{scale}.md"] = as_markdown(part, table, scale)
            found[f"tables/{name}-{scale}.csv"] = as_csv(part)
            contents.append(_entry(name, table, scale, part))
        for kind in (kind for kind, of in KINDS.items() if table in of.tables):
            if data := figure_data(kind, table, scale):
                found[f"figures/{table}-{kind}-{scale}.csv"] = data
    page = markdown(pd.DataFrame(contents)) if contents else NOTHING
    if unknown := sorted(set().union(*map(names_of_records, KEPT_SCALES)) - EXPERIMENTS.keys()):
        page += f"\n\nRecords of experiments that are not declared (any more), and in no table: {', '.join(unknown)}."
    return {"summary.csv": summary_text(every_cell), "tables/README.md": f"# What is recorded\n\n{page}\n", **found}


def pictures(texts: dict[str, str]) -> dict[str, str]:
    """Path of every picture below the results folder -> the CSV text that it has to be drawn from."""
    drawn = {name: text for name, text in texts.items() if name.startswith("figures/")}
    return {name.removesuffix("csv") + suffix: text for name, text in drawn.items() for suffix in ("png", "pdf")}


def present() -> set[str]:
    """Paths below the results folder of what is there of such files; pictures of `quick` runs are nobody's business."""
    found = [
        paths.RESULTS / "summary.csv",
        *(paths.RESULTS / "tables").glob("*"),
        *(paths.RESULTS / "figures").glob("*"),
    ]
    names = {path.relative_to(paths.RESULTS).as_posix() for path in found if path.is_file()}
    return {name for name in names if not name.rpartition(".")[0].endswith("-quick")}


def _entry(name: str, table: str, scale: str, part: pd.DataFrame) -> dict[str, str]:
    variant = f" --variant {OFFICIAL}" if (part["variant"] == OFFICIAL).any() else ""
    return {
        "table": f"[{TITLES.get(table, table)}]({name}-{scale}.md)",
        "scale": scale,
        "rows run": f"{(part['n'] > 0).sum()} of {len(part)}",
        "runs": str(part["n"].sum()),
        "the rest of it": f"`python code/reproduce.py sweep {table} --scale {scale}{variant}`",
    }


def readme(text: str) -> str:
    """The README with what stands between its two markers made anew."""
    return with_block(text, "results", results_block())


def results_block() -> str:
    """The main tables in short, with the command of every row."""
    block = []
    for table, scale, cells in recorded():
        for part in parts(wide(cells), table).values() if table in IN_README else ():
            if (part["variant"] != OFFICIAL).all():
                run = part[part["n"] > 0]
                rows = run.to_dict("records")
                block += [f"**{TITLES[table]}, scale `{scale}`**"]
                block += [markdown(sheet_of(rows, README_E2E if rows[0]["metric"] == "BLEU" else README_GLUE))]
                more = len(missing(part))
                block += [f"{more} more {'row is' if more == 1 else 'rows are'} not run yet."] if more else []
                block += ["\n".join(f"- {note}" for note in notes(run, scale))]
                commands = "\n".join(row["command"] for row in rows)
                block += ["<details><summary>The command of every row</summary>", f"```\n{commands}\n```", "</details>"]
    if not block:
        return NOTHING
    return "\n\n".join([*block, "All tables, with every metric and cost: [results/tables](results/tables/README.md)."])
