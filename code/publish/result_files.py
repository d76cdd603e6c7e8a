"""Every file that follows from the records: `results/summary.csv`, `results/tables`, `results/figures`.

    result_texts()     # {"summary.csv": ..., "tables/table3-cpu.md": ..., "figures/table3-parameters-cpu.csv": ...}
    write_results()    # writes them and draws the figures: seconds, without torch, the same bytes twice

`check.py` compares the same texts with the files. Only scales whose records are in git are included; `reproduce.py
table` shows runs at `quick`. A figure's numbers are such a text, and its picture is drawn from them (`figures.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

import files
from analysis import summary
from analysis.subspace_records import read_all, summary_lines
from experiments.catalogue import EXPERIMENTS, select
from experiments.settings import OFFICIAL
from files import write_atomically
from publish.figure_data import KINDS, figure_data
from publish.figures import draw_text
from publish.labels import TITLES
from publish.sheets import parts, wide
from publish.subspace_sheets import subspace_page
from publish.tables import as_csv, as_markdown, markdown
from runs import records

KEPT_SCALES = ("cpu", "paper")
NOTHING = "Nothing is recorded yet at scale cpu or paper: `python code/reproduce.py sweep table3 --scale cpu` begins."


def names_of_records(scale: str) -> set[str]:
    """The names of all experiments with a finished record at the scale, declared or not."""
    return {record["name"] for record in records.read_records(scale)}


def damaged() -> list[str]:
    """Paths, below the results folder, of records and files beside them that are passed over (`records.damaged`)."""
    paths = (path for scale in KEPT_SCALES for path in records.damaged(scale))
    return [path.relative_to(files.RESULTS).as_posix() for path in paths]


def recorded() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(table, scale, its cells) of every table and variant with a record, in the order of declaration."""
    for scale in KEPT_SCALES:
        names = names_of_records(scale)
        run = [e for e in EXPERIMENTS.values() if e.name in names and e.scale == scale]
        for table, variant in dict.fromkeys((experiment.table, experiment.variant) for experiment in run):
            yield table, scale, summary.cells(select(table, scale, variant=variant))


def summary_text(cells: Sequence[pd.DataFrame]) -> str:
    """The text of `summary.csv`: the cells of `recorded`, then what was measured of adapters."""
    lines = [*cells, *filter(len, map(summary_lines, KEPT_SCALES))]
    return summary.as_csv(pd.concat(lines) if lines else pd.DataFrame(columns=list(summary.COLUMNS)))


def result_texts() -> dict[str, str]:
    """Path below the results folder -> text; the same records give the same texts."""
    texts, every_cell, contents = _subspace_texts(), [], []
    for table, scale, cells in recorded():
        every_cell.append(cells)
        for name, part in parts(wide(cells), table).items():
            texts[f"tables/{name}-{scale}.md"] = as_markdown(part, table, scale)
            texts[f"tables/{name}-{scale}.csv"] = as_csv(part)
            contents.append(_entry(name, table, scale, part))
        for kind in (name for name, kind in KINDS.items() if table in kind.tables):
            if data := figure_data(kind, table, scale):
                texts[f"figures/{table}-{kind}-{scale}.csv"] = data
    if data := figure_data("times", "benchmark", "cpu"):
        texts["figures/benchmark-times-cpu.csv"] = data
    page = markdown(pd.DataFrame(contents)) if contents else NOTHING
    if pages := [name for name in texts if name.startswith("tables/subspaces-")]:
        links = ", ".join(f"[{name}]({name})" for name in (page.removeprefix("tables/") for page in pages))
        page += f"\n\n{TITLES['subspaces']}: {links}."
    if unknown := sorted(set().union(*map(names_of_records, KEPT_SCALES)) - EXPERIMENTS.keys()):
        page += f"\n\nRecords of experiments that are not declared (any more), and in no table: {', '.join(unknown)}."
    if names := damaged():
        page += f"\n\nFiles that are damaged, or copies, and in no table: {len(names)} ({', '.join(names)})."
    return {"summary.csv": summary_text(every_cell), "tables/README.md": f"# What is recorded\n\n{page}\n", **texts}


def _subspace_texts() -> dict[str, str]:
    """The page and the figures' numbers of each scale with a measurement of adapters."""
    texts = {}
    for scale in (scale for scale in KEPT_SCALES if read_all(scale)):
        texts[f"tables/subspaces-{scale}.md"] = subspace_page(scale)
        for kind in (name for name, kind in KINDS.items() if "subspaces" in kind.tables):
            texts[f"figures/subspaces-{kind}-{scale}.csv"] = figure_data(kind, "subspaces", scale)
    return texts


def pictures(texts: dict[str, str]) -> dict[str, str]:
    """{path of a picture below the results folder: the CSV text that it must be drawn from}"""
    drawn = {name: text for name, text in texts.items() if name.startswith("figures/")}
    return {name.removesuffix("csv") + suffix: text for name, text in drawn.items() for suffix in ("png", "pdf")}


def present() -> set[str]:
    """Paths, below the results folder, of all such files that exist; figures of `quick` runs do not count."""
    paths = [
        files.RESULTS / "summary.csv",
        *(files.RESULTS / "tables").glob("*"),
        *(files.RESULTS / "figures").glob("*"),
    ]
    names = {path.relative_to(files.RESULTS).as_posix() for path in paths if path.is_file()}
    return {name for name in names if not name.rpartition(".")[0].endswith("-quick")}


def _drawn_as(stem: str) -> tuple[str, str, str]:
    """(kind, table, scale) of the figure in a file of that name; a kind and a table may have hyphens both."""
    figures = ((name, table, scale) for name, kind in KINDS.items() for table in kind.tables for scale in KEPT_SCALES)
    return next((kind, table, scale) for kind, table, scale in figures if stem == f"{table}-{kind}-{scale}")


def _entry(name: str, table: str, scale: str, part: pd.DataFrame) -> dict[str, str]:
    variant = f" --variant {OFFICIAL}" if (part["variant"] == OFFICIAL).any() else ""
    return {
        "table": f"[{TITLES.get(table, table)}]({name}-{scale}.md)",
        "scale": scale,
        "rows run": f"{(part['n'] > 0).sum()} of {len(part)}",
        "runs": str(part["n"].sum()),
        "the rest of it": f"`python code/reproduce.py sweep {table} --scale {scale}{variant}`",
    }


def write_results() -> str:
    """Write all texts, draw all pictures, remove what no record supports any more; say how many there are."""
    texts = result_texts()
    drawn = pictures(texts)
    for name in present() - texts.keys() - drawn.keys():
        (files.RESULTS / name).unlink()
    for name, text in texts.items():
        path = files.RESULTS / name
        write_atomically(path, text)
        if path.parent.name == "figures":
            draw_text(text, *_drawn_as(path.stem), path.parent)
    return f"{len(texts)} texts and {len(drawn)} pictures in {files.RESULTS}"
