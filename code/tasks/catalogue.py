"""Each task as one entry: its splits and their sizes, how it is loaded and scored, what is measured, its version.

E2E is Table 3 of the paper, DART Table 13, WebNLG Table 14. The eight GLUE tasks are Table 2, with the names, columns,
label ids and split sizes of https://huggingface.co/datasets/nyu-mll/glue. The tasks called `...-builtin` are made by
this project for the `quick` scale; those called `...-dev` are parts of a development file. A changed prompt, metric or
split raises the version; records of another version are never compared (`runs/records.py`).

Whatever depends on a task stands in its entry, so that no other module asks which task it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from tasks.e2e.data import OFFICIAL_LENGTH, Example, Inputs, load_builtin, load_e2e
from tasks.e2e.official_text import load_official
from tasks.triples import data as triples

Scored = tuple[dict[str, Any], list[dict[str, Any]]]  # scores of all texts together, findings on each


@dataclass(frozen=True)
class Metric:
    """How a number of a record is read and shown."""

    higher_is_better: bool | None = None  # None: it is not compared
    unit: float = 0.01  # what the record's number is divided by: 0.6593 is shown as 65.93
    decimals: int = 2
    margin: float = 1.0  # as shown: differences within it are called equivalent
    protocol: str | None = None  # what it is measured on, if not the run's protocol

    def shown(self, value: float | None, sign: str = "") -> str:
        """A number in the metric's unit as it is printed everywhere; empty for None or NaN. `sign="+"`: signed."""
        if value is None or value != value:
            return ""
        return f"{round(value, self.decimals) + 0.0:{sign}.{self.decimals}f}"  # + 0.0: never -0.00


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt and how it is judged.

    `load(split, protocol, data_dir)` gives the rows of `train`, `dev` or `test`; `score(inputs, texts, settings)` gives
    the scores of all texts together, and findings on each text. Only tasks whose answers are written have them.
    `official(data_dir)` gives the official code's own rows by split, None where they are out of reach.
    """

    name: str
    title: str  # as the paper's tables have it
    metrics: dict[str, Metric]  # the first is what the task is judged by
    train_rows: int  # rows of the full training split, as released
    test_inputs: int  # distinct inputs that a table's score is over
    mean_tokens: int  # typical tokens a training row, for estimates only
    workflow: str = "e2e"  # the module of `runs/` that trains and scores it
    paper_table: str = "table3"
    statistic: str = "mean"  # of the seeds, in the paper's table
    settings: tuple[str, ...] = ()  # flags that only tasks of this workflow have
    lora_row: str = "lora-r4"  # row of the paper's table with LoRA's default settings
    load: Callable[[str, str, Path | None], list[Example]] | None = None
    official: Callable[[Path | None], dict[str, list[Example]] | None] | None = None
    score: Callable[[list[Inputs], list[str], Any], Scored] | None = None
    note: str = ""  # what a reader of its numbers has to know
    version: int = 1

    def __post_init__(self) -> None:
        if not self.metrics or (self.outputs is None and not (self.load and self.score)):
            raise ValueError(f"{self.name}: expected a metric, and `load` and `score` if its answers are written")

    @property
    def main_metric(self) -> str:
        return next(iter(self.metrics))

    @property
    def outputs(self) -> int | None:
        """Width of the head; None for a task whose answers are written."""
        return None

    @property
    def trained_rows(self) -> int:
        """The number of rows that a run trains on unless its settings ask for fewer."""
        return self.train_rows

    def row_tokens(self, settings: Any, positions: int) -> tuple[int, int]:
        """About how many tokens rows have, on average and at most, before any is read; with padding, if all have it."""
        most = settings.max_length or min(OFFICIAL_LENGTH, positions)
        return (most, most) if settings.pad_to_maximum else (self.mean_tokens, min(4 * self.mean_tokens, most))

    @property
    def selection(self) -> tuple[str, str]:
        """(metric by which a learning rate is chosen, its key in a record)."""
        return "dev_loss", "dev_loss"

    @property
    def rules(self) -> dict[str, str]:
        """{rule that chooses an epoch: key of its scores in a record}; empty if the settings name the rule."""
        return {}

    @property
    def split(self) -> str | None:
        """The split's name in a table; None where a table names the text protocol instead."""
        return None

    @property
    def further_splits(self) -> tuple[str, ...]:
        """Splits that are reported beside the first."""
        return ()

    def paper_metric(self, metric: str) -> str:
        """What the paper's table calls a metric of this task."""
        return metric


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """A sentence or a pair of sentences: its class or, without `labels`, the pair's similarity from 0 to 5."""

    columns: tuple[str, ...]  # of its sentence or two sentences
    labels: tuple[str, ...]  # class names in the order of their ids; the last of two is the positive class
    validation: dict[str, int]  # split -> rows, as released; tables report the first
    workflow: str = "glue"
    paper_table: str = "table2"
    statistic: str = "median"
    settings: tuple[str, ...] = ("max_length", "head_dropout", "hold_out", "train_head")
    lora_row: str = "lora-r8"

    @property
    def trained_rows(self) -> int:
        """`train_rows` without the tenth (rounded up) that `tasks.glue.data.held_out_tenth` holds out."""
        return 9 * self.train_rows // 10

    @property
    def outputs(self) -> int:
        return len(self.labels) or 1

    @property
    def selection(self) -> tuple[str, str]:
        return self.main_metric, "selection_score"

    @property
    def rules(self) -> dict[str, str]:
        return {"paper": "scores", "held-out": "honest_scores"}

    @property
    def split(self) -> str:
        return "validation"

    @property
    def further_splits(self) -> tuple[str, ...]:
        return tuple(self.validation)[1:]

    def paper_metric(self, metric: str) -> str:
        return f"{self.title} {metric}"

    @property
    def label_range(self) -> str:
        return f"the class ids 0 to {len(self.labels) - 1}" if self.labels else "a number from 0 to 5"

    def has_label(self, label: object) -> bool:
        """Whether a label is one of the class ids, or a number from 0 to 5; a bool is neither."""
        number = isinstance(label, Real) and not isinstance(label, bool)
        return number and (label in range(len(self.labels)) if self.labels else 0 <= label <= 5)

    def is_subset(self, split: str, rows: int) -> bool:
        """Whether `rows` are fewer than the released split has; KeyError for an unknown split."""
        return rows < ({"train": self.train_rows} | self.validation)[split]


def _score_e2e(inputs: list[Inputs], texts: list[str], settings: Any) -> Scored:
    from tasks.e2e.evaluation import score_texts  # imported here: tables need no torch

    return score_texts(inputs, texts, settings)


def _score_triples(inputs: list[Inputs], texts: list[str], settings: Any) -> Scored:
    from tasks.triples.metrics import score_texts  # imported here: tables need no scoring

    return score_texts(inputs, texts, settings)


E2E_METRICS = {
    "BLEU": Metric(True), "NIST": Metric(True, unit=1.0, decimals=4, margin=0.1), "METEOR": Metric(True),
    "ROUGE_L": Metric(True), "CIDEr": Metric(True, unit=1.0, decimals=4, margin=0.05),
    "slot_error_rate": Metric(False),
}  # fmt: skip
OF_TEXTS = {
    "mean_words": Metric(unit=1.0), "mean_reference_words": Metric(unit=1.0),
    "brevity_penalty": Metric(unit=1.0, decimals=3), "BLEU_unpenalised": Metric(), "share_at_cap": Metric(),
}  # fmt: skip
COURSE = {  # of a course reproduction (edwinlin13), which scored raw text; from 0 to 100
    name: Metric(True, unit=1.0, protocol="course") for name in ("course_BLEU", "course_ROUGE_L")
}
DEV_LOSS = {"dev_loss": Metric(unit=1.0, decimals=4)}
E2E: dict[str, Any] = {
    "title": "E2E", "metrics": E2E_METRICS | OF_TEXTS | COURSE, "mean_tokens": 58, "score": _score_e2e,
    "settings": ("protocol", "beams", "length_penalty", "no_repeat_ngram", "max_new_tokens", "blank_line_ends",
                 "label_smoothing", "prompt_loss", "end_loss", "new_tokens", "single_reference"),
}  # fmt: skip
SEEN_MEANS = "*seen*: categories that are trained on too; *unseen*: the others."
PARTS_MEAN = "Training, dev and test rows are parts of the development file: no score of the released test set."
AT_CAP = {"share_at_cap": OF_TEXTS["share_at_cap"]}
DART_METRICS = {"BLEU": Metric(True), "METEOR": Metric(True), "TER": Metric(False)}
TRIPLES: dict[str, Any] = {"score": _score_triples, "settings": E2E["settings"][1:-1]}  # one protocol, all references
DART = TRIPLES | {
    "title": "DART", "metrics": DART_METRICS | AT_CAP, "mean_tokens": 70, "paper_table": "table13",
}  # fmt: skip
WEBNLG = TRIPLES | {
    "title": "WebNLG", "mean_tokens": 79, "paper_table": "table14", "note": SEEN_MEANS,
    "metrics": {f"{name} {part}": metric for part in ("all", "seen", "unseen") for name, metric in DART_METRICS.items()}
    | AT_CAP,
}  # fmt: skip
CLASSES = {name: Metric(True) for name in ("accuracy", "f1", "precision", "recall")}
SIMILARITY = {name: Metric(True) for name in ("pearson", "spearman")}
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")


def _glue(
    name: str,
    title: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    train_rows: int,
    validation: int | dict[str, int],
    mean_tokens: int,  # WordPiece with special tokens, over the first 6,000 training rows
    metrics: dict[str, Metric] = CLASSES,
    version: int = 1,
) -> GlueTask:
    """A row of the list below; the first metric is the one Table 2 reports."""
    sizes = validation if isinstance(validation, dict) else {"validation": validation}
    return GlueTask(
        name=name, title=title, columns=columns, labels=labels, metrics=metrics, train_rows=train_rows,
        validation=sizes, test_inputs=next(iter(sizes.values())), mean_tokens=mean_tokens, version=version,
    )  # fmt: skip


# Table 2's caption says matched and mismatched for MNLI; its cells are the matched accuracies (README of the official
# code). Both splits are scored, and matched comes first.
MNLI_VALIDATION = {"validation_matched": 9_815, "validation_mismatched": 9_832}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="e2e", train_rows=42_061, test_inputs=630, load=load_e2e, official=load_official,
             **E2E | {"settings": (*E2E["settings"], "official_text")}),
        Task(name="e2e-builtin", train_rows=3_200, test_inputs=60,
             load=lambda split, protocol, data_dir: load_builtin(split, protocol), **E2E),
        Task(name="dart", train_rows=62_659, test_inputs=5_097, load=triples.load_dart, **DART),
        Task(name="dart-dev", train_rows=5_576, test_inputs=273, load=triples.load_dart_parts,
             **DART | {"note": PARTS_MEAN}),
        Task(name="webnlg", train_rows=18_102, test_inputs=1_862, load=triples.load_webnlg, **WEBNLG),
        Task(name="webnlg-dev", train_rows=1_580, test_inputs=177, load=triples.load_webnlg_parts,
             **WEBNLG | {"note": f"{SEEN_MEANS} {PARTS_MEAN}"}),
        Task(name="triples-builtin", train_rows=1_080, test_inputs=40, load=triples.load_builtin, **WEBNLG),
        _glue("mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
              392_702, MNLI_VALIDATION, 40),
        _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), 67_349, 872, 13),
        _glue("mrpc", "MRPC", PAIR, ("not_equivalent", "equivalent"), 3_668, 408, 53),
        _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), 8_551, 1_043, 12,
              {"matthews": Metric(True)} | CLASSES),
        _glue("qnli", "QNLI", ("question", "sentence"), ENTAILMENT, 104_743, 5_463, 50),
        _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), 363_846, 40_430, 31),
        _glue("rte", "RTE", PAIR, ENTAILMENT, 2_490, 277, 70),
        _glue("stsb", "STS-B", PAIR, (), 5_749, 1_500, 28, SIMILARITY),
        _glue("sentiment-builtin", "sentiment", ("sentence",), ("negative", "positive"), 2_000, 200, 18, version=2),
        _glue("paraphrase-builtin", "paraphrase", PAIR, ("not_equivalent", "equivalent"), 2_000, 200, 27, version=2),
    )
}  # fmt: skip


def glue_task(name: str) -> GlueTask:
    """The GLUE task of that name; ValueError, which lists all, for another name."""
    task = TASKS.get(name)
    if not isinstance(task, GlueTask):
        known = ", ".join(task.name for task in TASKS.values() if isinstance(task, GlueTask))
        raise ValueError(f"no GLUE task is called {name!r}; the tasks are {known}")
    return task
