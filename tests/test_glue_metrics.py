"""GLUE's scores: by hand where a hand can do it, and the alarm that says a model has learned nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tasks.catalogue import TASKS
from tasks.glue.metrics import score

MRPC, MNLI, COLA, STSB = (TASKS[name] for name in ("mrpc", "mnli", "cola", "stsb"))
# Four right of the positive class, one missed, two wrongly positive, three right of the negative class.
LABELS = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
GUESSES = [1, 1, 1, 1, 0, 1, 1, 0, 0, 0]


def test_the_scores_of_two_classes_are_those_of_the_positive_class():
    scores = score(MRPC, GUESSES, LABELS)
    assert scores["accuracy"] == 7 / 10
    assert scores["precision"] == pytest.approx(4 / 6)
    assert scores["recall"] == pytest.approx(4 / 5)
    assert scores["f1"] == pytest.approx(8 / 11)  # of the negative class it would be 6 / 9
    assert scores["predictions_per_class"] == {"not_equivalent": 4, "equivalent": 6}
    assert scores["alarm"] is None


def test_the_scores_of_three_classes_are_means_over_the_classes():
    scores = score(MNLI, [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2])
    assert scores["precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert scores["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores["f1"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert scores["accuracy"] == pytest.approx(4 / 6)


def test_a_class_that_is_nowhere_counts_as_zero_in_the_mean():
    assert score(MNLI, [0, 1, 0, 1], [0, 1, 0, 1])["f1"] == pytest.approx(2 / 3)


def test_matthews_correlation_is_its_formula():
    tp, tn, fp, fn = 4, 3, 2, 1
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert score(COLA, GUESSES, LABELS)["matthews"] == pytest.approx(by_hand)


def test_pearson_sees_distances_and_spearman_only_the_order():
    scores = score(STSB, [0.0, 1.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0])
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson"] == pytest.approx(14 / math.sqrt(50 * 5))
    assert scores["predictions_per_class"] is None and scores["alarm"] is None


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.outputs])
def test_every_task_gets_exactly_its_metrics(name):
    task = TASKS[name]
    labels = [number % task.outputs for number in range(12)] if task.labels else [number / 4 for number in range(12)]
    scores = score(task, labels, labels)
    assert scores.keys() == task.metrics.keys() | {"predictions_per_class", "alarm"}
    assert all(scores[metric] == pytest.approx(1) for metric in task.metrics)
    assert scores["alarm"] is None


# --- the alarm --------------------------------------------------------------------------------------------------------


def test_the_majority_class_of_mrpc_raises_both_alarms():
    scores = score(MRPC, [1] * 408, [1] * 279 + [0] * 129)
    assert scores["accuracy"] == pytest.approx(0.6838, abs=5e-5) and scores["f1"] == pytest.approx(0.8122, abs=5e-5)
    assert scores["alarm"] == (
        "408 of 408 predictions are equivalent; accuracy 68.38 is no better than 68.38, "
        "which the most frequent label as every answer gives"
    )


@pytest.mark.parametrize(("positive", "alarmed"), [(95, False), (96, True), (5, False), (4, True)])
def test_more_than_95_percent_of_one_class_raises_the_alarm(positive, alarmed):
    guesses = [1] * positive + [0] * (100 - positive)
    labels = [1] * 50 + [0] * 50 if positive < 50 else [1] * 60 + [0] * 40
    alarm = score(MRPC, guesses, labels)["alarm"]
    assert ("predictions are" in (alarm or "")) == alarmed
    assert "no better" not in (alarm or "")


def test_a_score_below_the_majority_raises_the_alarm_though_predictions_are_mixed():
    alarm = score(MRPC, [1, 0] * 50, [1] * 70 + [0] * 30)["alarm"]
    assert "accuracy 50.00 is no better than 70.00" in alarm and "predictions are" not in alarm


def test_the_baseline_of_a_correlation_is_zero():
    assert (
        "matthews -20.00 is no better than 0.00" in score(COLA, [1, 1, 1, 0, 0, 0, 0, 1, 1, 0], LABELS[::-1])["alarm"]
    )
    assert "pearson -100.00 is no better than 0.00" in score(STSB, [3.0, 2.0, 1.0], [1.0, 2.0, 3.0])["alarm"]


def test_cola_at_its_majority_accuracy_is_alarmed_by_matthews_alone():
    labels = [1] * 70 + [0] * 30
    guesses = [1] * 60 + [0] * 10 + [1] * 20 + [0] * 10
    scores = score(COLA, guesses, labels)
    assert scores["accuracy"] == 0.7 and scores["matthews"] > 0 and scores["alarm"] is None


@pytest.mark.parametrize("task", [MRPC, MNLI, COLA])
def test_one_class_for_everything_has_scores_and_no_warning(task):
    scores = score(task, [0] * 6, [0, 1, 0, 1, 1, 1])
    assert scores["f1"] == pytest.approx(0 if task is not MNLI else 0.5 / 3)
    assert scores.get("matthews", 0.0) == 0.0
    assert "6 of 6 predictions are" in scores["alarm"]


def test_one_number_for_everything_has_correlation_zero_and_no_warning():
    scores = score(STSB, [2.5] * 5, [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert scores["alarm"].startswith("5 of 5 predictions are 2.5; pearson 0.00 is no better")


def test_labels_that_are_all_the_same_have_no_correlation_either():
    assert score(COLA, [0, 1, 1], [1, 1, 1])["matthews"] == 0.0
    assert score(COLA, [1, 1, 1], [1, 1, 1])["matthews"] == 0.0
    assert score(STSB, [0.0, 1.0, 2.0], [3.0, 3.0, 3.0])["pearson"] == 0.0


@pytest.mark.parametrize("column", [[1.0, 1.0 + 2**-52, 1.0], [0.0, 5e-324, 0.0], [5.0 - 2**-50, 5.0, 5.0]], ids=str)
def test_numbers_that_differ_by_rounding_alone_have_no_correlation_and_no_warning(column):
    truth = [0.0, 5.0, 2.0]
    assert score(STSB, column, truth)["pearson"] == score(STSB, truth, column)["spearman"] == 0.0
    apart = np.float32([5.0, np.nextafter(np.float32(5), np.float32(0)), 5.0])  # as two answers of a model may be
    assert score(STSB, apart, truth)["pearson"] < -0.5


@pytest.mark.parametrize("guesses", [[1, 0, 0], [1, 1, 1]], ids=["classes that differ", "one class"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8, list], ids=["float32", "float64", "int8", "list"])
def test_class_ids_score_the_same_whatever_numbers_they_are(guesses, kind):
    labels = [0, 1, 0]
    assert score(MRPC, kind(guesses), kind(labels)) == score(MRPC, guesses, labels)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "guesses", "labels", "message"),
    [
        (MRPC, [0, 1], [0, 1, 1], r"one prediction for each label, found \(2,\) for labels \(3,\)"),
        (MRPC, [], [], "one prediction for each label"),
        (MRPC, [[0.2, 0.8]], [[0, 1]], "one prediction for each label"),
        (MRPC, [[0], [1, 1]], [0, 1], "a list of numbers, one prediction each, found none"),
        (MRPC, [0, 1], [[0], [1, 1]], "a list of numbers, one label each, found none"),
        (STSB, torch.tensor([0.5, 1.0], requires_grad=True), [0.0, 1.0], "one prediction each, found none: .*detach"),
        (STSB, torch.tensor([0.5, 1.0]).bfloat16(), [0.0, 1.0], "one prediction each, found none: .*BFloat16"),
        (MRPC, [0, 2], [0, 1], "row 1: expected as prediction the class ids 0 to 1, found 2"),
        (MNLI, [0, -1], [0, 1], "class ids 0 to 2, found -1"),
        (MRPC, [0, 0.5], [0, 1], "row 1: expected as prediction the class ids 0 to 1, found 0.5"),
        (MRPC, [True, True], [0, 1], "row 0: expected as prediction the class ids 0 to 1, found True"),
        (MRPC, [1, None], [0, 1], "row 1: expected as prediction the class ids 0 to 1, found None"),
        (MRPC, ["1", "0"], [0, 1], "row 0: expected as prediction the class ids 0 to 1, found '1'"),
        (STSB, [0.5, float("nan")], [0.0, 1.0], "row 1: expected as prediction a finite number, found nan"),
        (STSB, [0.5, float("inf")], [0.0, 1.0], "row 1: expected as prediction a finite number, found inf"),
        (MRPC, [True, 1], [0, 1], "row 0: expected as prediction the class ids 0 to 1, found True"),
        (STSB, [0.5, True], [0.0, 1.0], "row 1: expected as prediction a finite number, found True"),
        (STSB, [0.5, 10**400], [0.0, 1.0], "row 1: expected as prediction a finite number, found 1000"),
        (STSB, [-1e200, 1e200], [0.0, 1.0], r"row 0: expected as prediction a finite number, found -1e\+200"),
        (STSB, [True, False], [0.0, 1.0], "row 0: expected as prediction a finite number, found True"),
        (MRPC, [0, 1], [-1, -1], "row 0: expected as label the class ids 0 to 1, found -1; .* hidden labels"),
        (MRPC, [0, 1], [0, 2], "row 1: expected as label the class ids 0 to 1, found 2"),
        (MNLI, [0, 1], [1, 3], "row 1: expected as label the class ids 0 to 2, found 3"),
        (MRPC, [0, 1], [0, float("nan")], "row 1: expected as label the class ids 0 to 1, found nan"),
        (MRPC, [0, 1], [False, True], "row 0: expected as label the class ids 0 to 1, found False"),
        (STSB, [0.5, 1.0], [1.0, -1.0], "row 1: expected as label a number from 0 to 5, found -1.0"),
        (STSB, [0.5, 1.0], [1.0, float("nan")], "row 1: expected as label a number from 0 to 5, found nan"),
        (STSB, [0.5, 1.0], [1.0, 5.5], "row 1: expected as label a number from 0 to 5, found 5.5"),
    ],
)
def test_what_cannot_be_scored_is_refused(task, guesses, labels, message):
    with pytest.raises(ValueError, match=message):
        score(task, guesses, labels)
