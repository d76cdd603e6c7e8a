"""Scores of the GLUE tasks (Table 2 of the paper), each with an alarm if a model has learned nothing.

    score(TASKS["rte"], predictions, labels)
    # {"accuracy": 0.5271, "f1": 0.0, "precision": 0.0, "recall": 0.0,
    #  "predictions_per_class": {"entailment": 277, "not_entailment": 0},
    #  "alarm": "277 of 277 predictions are entailment; accuracy 52.71 is no better than 52.71, which ..."}

A model that always says the larger class scores 68.4 on MRPC, which looks half-way to the paper's 89.7; published
reproductions have shown such runs as results. The alarm stands beside a score wherever that is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

LARGEST = float(np.finfo(np.float32).max)  # of what a model can answer; squares of larger numbers overflow
DOMINANT = 0.95  # alarm above this share of predictions for one class
REMEDIES = {
    "prediction": "give what `tasks.glue.evaluation.classify` returns",
    "label": "-1 stands for hidden labels, which only GLUE's test splits have",
}


class Scored(Protocol):
    """The attributes of a task that `score` reads (`tasks.catalogue.GlueTask` has them)."""

    labels: tuple[str, ...]
    metrics: Mapping[str, object]
    main_metric: str
    label_range: str

    def has_label(self, label: object) -> bool: ...


def score(task: Scored, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, Any]:
    """The task's metrics as fractions (correlations from -1 to 1), then `predictions_per_class` and `alarm`.

    `predictions` and `labels` are class ids, or numbers where the task has no classes. F1, precision and recall are
    those of the positive (last) class of two, or the mean over three or more classes (macro). An undefined metric is 0:
    the precision of a class that is never predicted, a correlation with numbers that are all the same.

    `predictions_per_class` is {class name: count}, or None without classes. `alarm` is None or says why the scores
    mean little: over 95% of the predictions are the same, or the main metric is no better than with the most frequent
    label as every answer (0 for a correlation).

    Raises TypeError for a task without classes or a similarity. Raises ValueError if there is not one prediction for
    each label, and for a label or prediction that is no class id, no similarity from 0 to 5, or no finite number. 1.0
    is the class id 1; True is none.
    """
    if not isinstance(getattr(task, "labels", None), tuple):
        raise TypeError(f"expected a task of GLUE, as glue_task('mrpc') gives it, found {task!r}")
    guesses, truth = _column("prediction", predictions), _column("label", labels)
    if guesses.shape != truth.shape or guesses.ndim != 1 or not guesses.size:
        raise ValueError(f"expected one prediction for each label, found {guesses.shape} for labels {truth.shape}")
    is_answer, answer = (task.has_label, task.label_range) if task.labels else (_is_finite, "a finite number")
    _check("prediction", predictions, is_answer, answer)
    _check("label", labels, task.has_label, task.label_range)
    dtype = int if task.labels else float
    guesses, truth = guesses.astype(dtype), truth.astype(dtype)
    measured = _classification(guesses, truth, len(task.labels)) if task.labels else _similarity(guesses, truth)
    scores: dict[str, Any] = {metric: measured[metric] for metric in task.metrics}
    per_class = {name: int((guesses == number).sum()) for number, name in enumerate(task.labels)} or None
    return scores | {
        "predictions_per_class": per_class,
        "alarm": _alarm(task, scores[task.main_metric], guesses, truth),
    }


def _column(kind: str, column: Sequence[float]) -> np.ndarray:
    try:
        return np.asarray(column)
    except (RuntimeError, TypeError, ValueError) as error:  # rows of lists, or a tensor that numpy cannot hold
        raise ValueError(f"expected a list of numbers, one {kind} each, found none: {error}") from error


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= LARGEST


def _check(kind: str, column: Sequence[float], allows: Callable[[object], bool], expected: str) -> None:
    for row, item in enumerate(column):  # not of the array, in which True beside a number is 1
        value = item.item() if hasattr(item, "item") else item
        if not allows(value):
            raise ValueError(f"row {row}: expected as {kind} {expected}, found {value!r}; {REMEDIES[kind]}")


def _classification(guesses: np.ndarray, truth: np.ndarray, classes: int) -> dict[str, float]:
    counted = [1] if classes == 2 else range(classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guesses, labels=counted, average="macro", zero_division=0.0
    )
    return {
        "accuracy": float(accuracy_score(truth, guesses)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "matthews": 0.0 if _constant(guesses, truth) else float(matthews_corrcoef(truth, guesses)),
    }


def _similarity(guesses: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if _constant(guesses, truth):
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(guesses, truth).statistic),
        "spearman": float(spearmanr(guesses, truth).statistic),
    }


def _constant(*columns: np.ndarray) -> bool:
    """Whether a column is the same number throughout, but for the rounding of float64."""
    return any(np.ptp(column) <= 1e-12 * np.abs(column).max() + 1e-150 for column in columns)


def _alarm(task: Scored, main: float, guesses: np.ndarray, truth: np.ndarray) -> str | None:
    reasons = []
    answers, counts = np.unique(guesses, return_counts=True)
    if counts.max() > DOMINANT * len(guesses):
        answer = answers[counts.argmax()]
        answer_name = task.labels[answer] if task.labels else f"{answer:g}"
        reasons.append(f"{counts.max()} of {len(guesses)} predictions are {answer_name}")
    frequent = np.unique(truth, return_counts=True)[1].max()
    baseline = frequent / len(truth) if task.main_metric == "accuracy" else 0.0
    if main <= baseline:
        reasons.append(
            f"{task.main_metric} {100 * main:.2f} is no better than {100 * baseline:.2f}, "
            "which the most frequent label as every answer gives"
        )
    return "; ".join(reasons) or None
