"""Each task as data: its splits and their sizes, what is measured, which way is better, its version.

E2E is Table 3 of the paper; the eight GLUE tasks are Table 2, with the names, columns, label ids and split sizes of
https://huggingface.co/datasets/nyu-mll/glue. The tasks called `...-builtin` are made by this project for the `quick`
scale. A changed prompt, metric or split raises the version; records of another version are never compared (see
`records.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real


@dataclass(frozen=True)
class Task:
    """What is learnt and how it is judged."""

    name: str
    metrics: dict[str, bool]  # metric -> is higher better
    main_metric: str
    train_rows: int  # rows of the full training split, as released
    test_inputs: int  # distinct inputs that a table's score is over
    mean_tokens: int  # typical tokens a training row, for estimates only
    version: int = 1
    title: str = "E2E"  # as the paper's tables have it

    @property
    def outputs(self) -> int | None:
        """Width of the head; None of a task whose answers are written."""
        return None

    @property
    def trained_rows(self) -> int:
        """Of `train_rows`, those that a run trains on where its settings do not ask for fewer."""
        return self.train_rows


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """A sentence or a pair of sentences: which class is it, or (no `labels`) how similar are they from 0 to 5."""

    columns: tuple[str, ...]  # of the one sentence or the two
    labels: tuple[str, ...]  # class names in the order of their ids; the last of two is the positive class
    validation: dict[str, int]  # split -> rows, as released; tables report the first

    @property
    def trained_rows(self) -> int:
        """Without the tenth, rounded up, that `glue_data.held_out_tenth` takes away first."""
        return 9 * self.train_rows // 10

    @property
    def outputs(self) -> int:
        return len(self.labels) or 1

    @property
    def label_range(self) -> str:
        return f"the class ids 0 to {len(self.labels) - 1}" if self.labels else "a number from 0 to 5"

    def has_label(self, label: object) -> bool:
        return label in range(len(self.labels)) if self.labels else isinstance(label, Real) and 0 <= label <= 5

    def is_subset(self, split: str, rows: int) -> bool:
        """Whether so many rows are fewer than the released split has; KeyError for a split that it does not have."""
        return rows < ({"train": self.train_rows} | self.validation)[split]


def glue_task(name: str) -> GlueTask:
    """The sentence task of that name; ValueError naming those there are otherwise."""
    task = TASKS.get(name)
    if not isinstance(task, GlueTask):
        known = ", ".join(task.name for task in TASKS.values() if isinstance(task, GlueTask))
        raise ValueError(f"no GLUE task is called {name!r}; the tasks are {known}")
    return task


E2E_METRICS = {"BLEU": True, "NIST": True, "METEOR": True, "ROUGE_L": True, "CIDEr": True, "slot_error_rate": False}
CLASSES = {"accuracy": True, "f1": True, "precision": True, "recall": True}
SIMILARITY = {"pearson": True, "spearman": True}
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
    metrics: dict[str, bool] = CLASSES,
    version: int = 1,
) -> GlueTask:
    """A row of the list below; the first metric is the one Table 2 reports."""
    sizes = validation if isinstance(validation, dict) else {"validation": validation}
    return GlueTask(
        name=name, title=title, columns=columns, labels=labels, metrics=metrics, main_metric=next(iter(metrics)),
        train_rows=train_rows, validation=sizes, test_inputs=next(iter(sizes.values())), mean_tokens=mean_tokens,
        version=version,
    )  # fmt: skip


# Table 2's caption says matched and mismatched for MNLI; its cells are the matched accuracies (README of the official
# code). Both splits are scored, and matched comes first.
MNLI_VALIDATION = {"validation_matched": 9_815, "validation_mismatched": 9_832}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("e2e", E2E_METRICS, "BLEU", train_rows=42_061, test_inputs=630, mean_tokens=58),
        Task("e2e-builtin", E2E_METRICS, "BLEU", train_rows=3_200, test_inputs=60, mean_tokens=58),
        _glue("mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
              392_702, MNLI_VALIDATION, 40),
        _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), 67_349, 872, 13),
        _glue("mrpc", "MRPC", PAIR, ("not_equivalent", "equivalent"), 3_668, 408, 53),
        _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), 8_551, 1_043, 12,
              {"matthews": True} | CLASSES),
        _glue("qnli", "QNLI", ("question", "sentence"), ENTAILMENT, 104_743, 5_463, 50),
        _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), 363_846, 40_430, 31),
        _glue("rte", "RTE", PAIR, ENTAILMENT, 2_490, 277, 70),
        _glue("stsb", "STS-B", PAIR, (), 5_749, 1_500, 28, SIMILARITY),
        _glue("sentiment-builtin", "sentiment", ("sentence",), ("negative", "positive"), 2_000, 200, 18, version=2),
        _glue("paraphrase-builtin", "paraphrase", PAIR, ("not_equivalent", "equivalent"), 2_000, 200, 27, version=2),
    )
}  # fmt: skip
