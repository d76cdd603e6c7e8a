"""What a notebook does with experiments: say what they cost here, do them, show them beside the paper's.

    work = Work("table3", SCALE, SEEDS, ROWS)
    work.cost()                  # minutes and gigabytes of what is not recorded yet
    work.run()                   # recorded runs are passed over, a stopped one continues
    work.show()                  # ours beside the paper's
    work.figure("parameters")

`show_recorded("cpu")` shows all that is recorded at a scale, `show_claims("cpu")` what follows from it. Every number
comes from a record, through the same summary as the files in `results/` (`summary.py`), and nothing is written there
but records and predictions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from IPython.display import Image, Markdown, display
from tqdm.auto import tqdm

import records
import summary_files
from claims import CLAIMS, judged, parsed
from costs import estimate
from experiments import resolve, select
from figure_data import KINDS, figure_data
from figures import draw_text
from quantities import printed, quantities
from result_tables import TITLES, notes
from runs import do
from summary import cells
from summary_tables import parts, sheets, wide
from sweeps import in_order
from work import Run

WHOLE = ("display.max_rows", None, "display.max_columns", None, "display.max_colwidth", None)
COSTS = "Cost of a run"  # a sheet that says nothing at `quick`, where a run is over before a machine has warmed up


@dataclass(frozen=True)
class Work:
    """Some rows of a table at one scale, with some seeds: what the knobs of a notebook say."""

    table: str
    scale: str
    seeds: Sequence[int] = (0,)
    rows: Sequence[str] | None = None  # as `reproduce.py sweep --rows`; None: all
    variant: str = "paper"

    @property
    def runs(self) -> list[Run]:
        """All runs, in an order in which they can be done; with them what they start from, unless it is recorded."""
        chosen = select(self.table, self.scale, self.rows, self.variant)
        return in_order([Run(experiment, self.scale, seed) for seed in self.seeds for experiment in chosen])

    def cost(self) -> None:
        """Show what the runs without a record take on this machine: minutes, gigabytes, trained parameters."""
        todo = [run for run in self.runs if not run.recorded]
        earlier = records.read_records(self.scale)
        rows, minutes = [], 0.0
        for experiment in {run.experiment.name: run.experiment for run in todo}.values():
            found = estimate(resolve(experiment, self.scale), self.scale, earlier)
            number = sum(run.experiment == experiment for run in todo)
            minutes += number * found.minutes
            rows.append({
                "experiment": experiment.name, "runs": number, "minutes a run": f"{max(1, found.minutes):.0f}",
                "GiB": f"{found.gigabytes:.1f}", "trained": f"{found.trainable:,}", "of": f"{found.total:,}",
                "estimated": found.basis,
            })  # fmt: skip
        recorded = f"runs at scale {self.scale}: {len(self.runs)}, recorded already: {len(self.runs) - len(todo)}"
        print(f"{recorded}; the others take about {max(1, minutes):.0f} min" if todo else f"{recorded}: nothing to run")
        _display(pd.DataFrame(rows))

    def run(self) -> None:
        """Do what is not recorded, one run after the other, and say what each scored.

        To stop, interrupt the kernel: the run saves its state. It continues when this is called again, as it does in
        a new runtime whose checkpoints are kept (`colab.keep_in`). Raises what ended a run otherwise.
        """
        todo = [run for run in self.runs if not run.recorded]
        for run in tqdm(todo, desc=f"{self.table} at {self.scale}", unit="run"):
            record = do(run)
            main = quantities(resolve(run.experiment, self.scale))[0]
            print(f"{run}: {main.metric} {printed(main.metric, main.of(record))}")
        print(f"{len(self.runs)} of {len(self.runs)} runs are recorded")

    def show(self) -> None:
        """The rows as tables, ours beside the paper's, and what has to be known to read them."""
        _show(cells(select(self.table, self.scale, self.rows, self.variant), self.scale), self.table, self.scale)

    def texts(self, number: int = 3) -> None:
        """What the models of the first seed wrote for the first inputs of E2E, a column an experiment."""
        columns: dict[str, list[str]] = {}
        for run in self.runs:
            file = records.predictions_path(run.experiment.name, run.scale, run.seed)
            written = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            lines = [line for line in map(json.loads, written[:number]) if "mr" in line]
            if lines and run.seed == self.seeds[0]:
                columns["meaning representation"] = [line["mr"] for line in lines]
                columns[run.experiment.row] = [line["prediction"] for line in lines]
        _display(pd.DataFrame(columns))

    def figure(self, kind: str) -> None:
        """A figure of all runs of the table that are recorded at the scale; ValueError for no such kind."""
        _figure(kind, self.table, self.scale)


def show_recorded(scale: str) -> None:
    """Every table of which anything is recorded at the scale, with its figures; rows that are not run are counted."""
    found = [(table, of_table) for table, at, of_table in summary_files.recorded() if at == scale]
    for table, of_table in found:
        run = of_table[of_table["n"] > 0]
        every, done = (frame["experiment"].nunique() for frame in (of_table, run))
        display(Markdown(f"### {TITLES.get(table, table)}\n\n{done} of {every} rows are recorded at scale `{scale}`."))
        _show(run, table, scale)
        for kind in (kind for kind, of in KINDS.items() if table in of.tables):
            _figure(kind, table, scale)
    if not found:
        display(Markdown(f"Nothing is recorded at scale `{scale}` yet."))


def show_claims(scale: str) -> None:
    """Each claim of the paper and of this project: how it fares at the scale, by which numbers, over how many seeds."""
    found = judged(parsed(summary_files.summary_text([of_table for *_, of_table in summary_files.recorded()])))
    rows = [(claim.says, claim.source, *astuple(found[claim.name, scale])) for claim in CLAIMS]
    _display(pd.DataFrame(rows, columns=["claim", "source", f"here, at {scale}", "evidence", "n"]))


def _show(of_table: pd.DataFrame, table: str, scale: str) -> None:
    for part in parts(wide(of_table), table).values():
        for title, sheet in sheets(part):
            if scale != "quick" or title != COSTS:
                display(Markdown(f"**{title or TITLES.get(table, table)}**, scale `{scale}`"))
                _display(sheet)
        display(Markdown("\n".join(f"- {note}" for note in notes(part, scale))))


def _display(sheet: pd.DataFrame) -> None:
    if len(sheet):
        with pd.option_context(*WHOLE):
            display(sheet.set_index(sheet.columns[0]))


def _figure(kind: str, table: str, scale: str) -> None:
    if text := figure_data(kind, table, scale):
        with TemporaryDirectory() as folder:
            png, _ = draw_text(text, kind, table, scale, Path(folder))
            display(Image(data=png.read_bytes()))
    else:
        display(Markdown(f"Nothing is recorded at scale `{scale}` that the figure *{kind}* could show."))
