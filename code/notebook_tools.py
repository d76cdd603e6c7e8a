"""A notebook's door to experiments: estimate their cost here, run them, show them beside the paper's.

    work = Work("table3", SCALE, SEEDS, ROWS)
    work.cost()                  # minutes and gigabytes of what is not recorded yet
    work.run()                   # recorded runs are skipped, a stopped one continues
    work.show()                  # ours beside the paper's
    work.figure("parameters")

`show_recorded("cpu")` shows all that is recorded at a scale, `show_claims("cpu")` what follows from it, and
`show_subspaces("smollm2-135m")` what its adapters share. `conclude("cpu", "e2e-matches")` ends a notebook with what
the records say of a claim. Every number comes from a record, through the same summary as
the files in `results/` (`summary.py`), and nothing is written there but records and predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown, display
from tqdm.auto import tqdm

from analysis import subspace_records
from analysis.claims import CLAIMS, base_of, judged
from analysis.comparisons import Finding
from analysis.quantities import printed, quantities
from analysis.summary import cells, parsed
from costs.estimate import estimate
from experiments.catalogue import select
from models import load_tokenizer
from publish import result_files, subspace_sheets
from publish.figure_data import KINDS, figure_data
from publish.figures import draw_text
from publish.labels import TITLES
from publish.sheets import parts, sheets, wide
from publish.tables import notes
from publish.token_picture import token_picture
from runs import records
from runs.execute import do
from runs.identity import of_other_data
from runs.run import Run
from runs.sweep import in_order
from tasks.catalogue import TASKS, GlueTask, Task
from tasks.e2e.data import Example

WHOLE = ("display.max_rows", None, "display.max_columns", None, "display.max_colwidth", None)
COSTS = "Cost of a run"  # a sheet left out at `quick`, where a run ends before a machine has warmed up


@dataclass(frozen=True)
class Work:
    """Rows of one table at one scale, with some seeds, as a notebook's knobs choose them."""

    table: str
    scale: str
    seeds: Sequence[int] = (0,)
    rows: Sequence[str] | None = None  # as `reproduce.py sweep --rows`; None: all
    variant: str = "paper"

    def __post_init__(self) -> None:
        if isinstance(self.rows, str):
            raise ValueError(f"rows must be a list of names, found {self.rows!r}: put it in brackets")
        object.__setattr__(self, "seeds", [int(seed) for seed in self.seeds])  # of a generator or an array, too

    @property
    def runs(self) -> list[Run]:
        """All runs, and unrecorded runs that they start from, in an order in which they can be done."""
        chosen = select(self.table, self.scale, self.rows, self.variant)
        return in_order([Run(experiment, seed) for seed in self.seeds for experiment in chosen])

    @property
    def todo(self) -> list[Run]:
        """The runs without a record."""
        return [run for run in self.runs if not run.recorded]

    def cost(self) -> None:
        """Show the cost of the runs without a record on this machine: minutes, gigabytes, trained parameters."""
        todo = self.todo
        earlier = records.read_records(self.scale)
        rows, minutes = [], 0.0
        for experiment in {run.experiment.name: run.experiment for run in todo}.values():
            one_run = estimate(experiment.settings, self.scale, earlier)
            number = sum(run.experiment == experiment for run in todo)
            minutes += number * one_run.minutes
            rows.append({
                "experiment": experiment.name, "runs": number, "minutes a run": f"{max(1, one_run.minutes):.0f}",
                "GiB": f"{one_run.gigabytes:.1f}", "trained": f"{one_run.trainable:,}",
                "of": f"{one_run.total:,}", "estimated": one_run.basis,
            })  # fmt: skip
        recorded = f"runs at scale {self.scale}: {len(self.runs)}, recorded already: {len(self.runs) - len(todo)}"
        print(f"{recorded}; the others take about {max(1, minutes):.0f} min" if todo else f"{recorded}: nothing to run")
        _display(pd.DataFrame(rows))

    def run(self, confirm: bool = False) -> None:
        """Do the runs without a record, one after the other, and print their scores.

        What takes more than an hour is not begun unless it is confirmed. To stop, interrupt the kernel: the run saves
        its state. It continues at the next call, in a new runtime too if its checkpoints are kept (`colab.keep_in`).
        Raises ValueError where a record is of other data than those at hand, and any other error that ended a run.
        """
        earlier = records.read_records(self.scale)
        costs = [estimate(run.experiment.settings, self.scale, earlier) for run in self.todo]
        if (hours := sum(cost.minutes for cost in costs) / 60) > 1 and not confirm:
            print(
                f"{len(costs)} runs take about {hours:.1f} hours and {max(cost.gigabytes for cost in costs):.0f} GiB "
                "here; nothing was begun. Set CONFIRM = True, and run this cell again"
            )
            return
        for run in self.runs:
            if reason := of_other_data(run):
                raise ValueError(f"{run}: {reason}")
        for run in tqdm(self.todo, desc=f"{self.table} at {self.scale}", unit="run"):
            record = do(run)
            main = quantities(run.experiment.settings)[0]
            print(f"{run}: {main.metric} {printed(main.metric, main.of(record))}")
        print(f"{len(self.runs)} of {len(self.runs)} runs are recorded")

    def show(self) -> None:
        """Show the rows as tables, ours beside the paper's, with notes on how to read them."""
        _show(cells(select(self.table, self.scale, self.rows, self.variant)), self.table, self.scale)

    def texts(self, number: int = 3) -> None:
        """Show the first seed's answers to each task's first inputs, a column an experiment; GLUE's right ones too."""
        columns_of: dict[str, dict[str, list[Any]]] = {}
        for run in self.runs:
            record = records.read_record(run.record)
            lines = records.read_predictions(record)[:number] if record and run.seed == self.seeds[0] else []
            task = TASKS[run.experiment.settings.task]
            if task.outputs:
                read = {name: [line["texts"][place] for line in lines] for place, name in enumerate(task.columns)}
                read["right answer"] = [_named(line["label"], task) for line in lines]
            else:
                lines = [line for line in lines if "mr" in line]
                read = {"meaning representation": [line["mr"] for line in lines]}
            if lines:
                columns = columns_of.setdefault(task.name, read)
                name = run.experiment.name if run.experiment.row in columns else run.experiment.row
                columns[name] = [_named(line["prediction"], task) for line in lines]
        for columns in columns_of.values():
            _display(pd.DataFrame(columns))

    def figure(self, kind: str) -> None:
        """Show a figure of all recorded runs of the table at the scale; ValueError for an unknown kind."""
        _figure(kind, self.table, self.scale)


def _named(answer: Any, task: Task) -> Any:
    """The name of a class; a text or a number as it is."""
    return task.labels[answer] if isinstance(task, GlueTask) and task.labels else answer


def show_table(table: str, scale: str = "cpu", figure: str = "") -> None:
    """Show what this repository has recorded of a table at a scale, and one of its figures."""
    names = result_files.names_of_records(scale)
    chosen = [experiment for experiment in select(table, scale) if experiment.name in names]
    if chosen:
        _show(cells(chosen), table, scale)
    else:
        display(Markdown(f"Nothing of {TITLES.get(table, table)} is recorded at scale `{scale}` yet."))
    if chosen and figure:
        _figure(figure, table, scale)


def show_recorded(scale: str) -> None:
    """Show every table with a record at the scale, with its figures; rows that are not run are counted."""
    recorded = [(table, rows) for table, its_scale, rows in result_files.recorded() if its_scale == scale]
    for table, rows in recorded:
        run = rows[rows["n"] > 0]
        every, done = (frame["experiment"].nunique() for frame in (rows, run))
        display(Markdown(f"### {TITLES.get(table, table)}\n\n{done} of {every} rows are recorded at scale `{scale}`."))
        _show(run, table, scale)
        for kind in (name for name, kind in KINDS.items() if table in kind.tables):
            _figure(kind, table, scale)
    if not recorded:
        display(Markdown(f"Nothing is recorded at scale `{scale}` yet."))
    for measured in subspace_records.read_all(scale):
        show_subspaces(measured["base"])


def show_subspaces(base: str) -> None:
    """Show what was measured of a base's adapters (section 7) as tables and figures, or that nothing was."""
    measured = subspace_records.read(base)
    if measured is None:
        display(Markdown(f"The subspaces of {base} are not measured yet: `{subspace_records.command(base)}`."))
        return
    for title, sheet in subspace_sheets.sheets(measured).items():
        display(Markdown(f"**{title}: {base}**, scale `{measured['scale']}`"))
        _display(sheet)
    display(Markdown("\n".join(f"- {note}" for note in subspace_sheets.notes(measured))))
    for kind in (name for name, kind in KINDS.items() if "subspaces" in kind.tables):
        _figure(kind, "subspaces", measured["scale"])


def show_times() -> None:
    """Show the ratios of time that `benchmark.py` measured, if it has, with their intervals, as a figure."""
    if figure_data("times", "benchmark", "cpu"):
        _figure("times", "benchmark", "cpu")


def show_tokens(example: Example, base: str) -> None:
    """Show a row of E2E as a base model's tokens: which are read, and which carry the loss."""
    buffer = BytesIO()
    token_picture(example, load_tokenizer(base)).savefig(buffer, format="png")
    display(Image(data=buffer.getvalue()))


def show_claims(scale: str) -> None:
    """Show the verdict on each claim of the paper and of this project at the scale, its evidence and its seeds."""
    findings = _findings()
    rows = [(c.says, c.source, base_of(c, scale), *astuple(findings[c.name, scale])) for c in CLAIMS]
    _display(pd.DataFrame(rows, columns=["claim", "source", "model", f"here, at {scale}", "evidence", "n"]))


def conclude(scale: str, *names: str) -> None:
    """Show the claims of these names with what the records say of each; KeyError for no claim."""
    findings, claims = _findings(), {claim.name: claim for claim in CLAIMS}
    lines = []
    for name in names:
        finding = findings[name, scale]
        evidence = f" {finding.evidence}; {finding.n} seed{'s' * (finding.n > 1)}." if finding.evidence else ""
        on = base_of(claims[name], scale)
        lines.append(f"- {claims[name].says} **{finding.verdict.capitalize()}** on `{on}`.{evidence}")
    display(Markdown("\n".join(lines)))


def _findings() -> dict[tuple[str, str], Finding]:
    return judged(parsed(result_files.summary_text([rows for *_, rows in result_files.recorded()])))


def _show(rows: pd.DataFrame, table: str, scale: str) -> None:
    for part in parts(wide(rows), table).values():
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
