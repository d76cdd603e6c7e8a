"""Statistics over seeds, on numbers that can be done in the head."""

import numpy as np
import pytest

from analysis.seed_statistics import bootstrap_interval, difference_interval, paired_differences, spread, verdict


def test_the_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 3.0]) == 1.0  # over n it would be 0.816
    assert spread([70.0, 74.0]) == pytest.approx(8**0.5)
    assert spread([5.0, 5.0]) == 0.0


def test_one_seed_has_no_spread_and_no_interval():
    assert spread([3.0]) is None
    assert bootstrap_interval([3.0]) is None
    assert difference_interval([0.1]) is None
    assert verdict([0.1], margin=1.0) == "one seed only"


def test_the_bootstrap_interval_of_two_values_is_the_two_and_of_equal_ones_that_one():
    assert bootstrap_interval([1.0, 3.0]) == (1.0, 3.0)  # means 1, 2, 2, 3: a quarter each at the ends
    assert bootstrap_interval([1.0, 3.0], level=0.4) == (2.0, 2.0)  # 30% to 70%: within the middle half
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_the_bootstrap_interval_is_of_the_statistic_asked_for():
    values = [0.0, 0.0, 0.0, 0.0, 50.0]
    assert bootstrap_interval(values, np.median) == (0.0, 50.0)  # three of five draws are the 50 in 5.8% of cases
    assert bootstrap_interval(values, np.mean) == (0.0, 30.0)  # four or five of five in 0.7%


def test_the_bootstrap_interval_is_the_same_at_every_call():
    values = [0.1, 0.7, 0.4, 0.9]
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_differences_are_taken_at_the_same_seeds_in_their_order():
    assert paired_differences({2: 5.0, 0: 1.0, 7: 9.0}, {0: 0.5, 1: 3.0, 2: 3.0}) == [0.5, 2.0]
    assert paired_differences({0: 1.0}, {1: 1.0}) == []


def test_the_interval_of_differences_is_students():
    # standard deviation 1, so 2.920 / sqrt(3) on either side: the table's 95% point at two degrees of freedom
    low, high = difference_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.920 / 3**0.5, 2 + 2.920 / 3**0.5), abs=1e-3)
    low, high = difference_interval([-1.0, 1.0], level=0.95)
    assert (low, high) == pytest.approx((-12.706, 12.706), abs=1e-3)  # standard deviation sqrt(2), over sqrt(2)


def intervals(differences):
    return tuple(round(end, 2) for end in difference_interval(differences))


def test_the_verdict_is_where_the_interval_lies():
    assert intervals([0.1, 0.3, 0.2]) == (0.03, 0.37)
    assert verdict([0.1, 0.3, 0.2], margin=1.0) == "equivalent"  # different from 0, and too little to matter
    assert verdict([0.1, 0.3, 0.2], margin=0.3) == "better"
    assert verdict([-0.1, -0.3, -0.2], margin=0.3) == "worse"
    assert intervals([-1.0, 1.0, 0.0]) == (-1.69, 1.69)
    assert verdict([-1.0, 1.0, 0.0], margin=1.0) == "inconclusive"
    assert verdict([-1.0, 1.0, 0.0], margin=1.7) == "equivalent"
    assert verdict([0.5, 0.5], margin=1.0) == "equivalent"
    assert verdict([1.0, 1.0], margin=1.0) == "better"  # at the margin is not within it


def test_where_less_is_better_more_is_worse():
    assert verdict([2.0, 2.1, 2.2], margin=1.0) == "better"
    assert verdict([2.0, 2.1, 2.2], margin=1.0, higher_is_better=False) == "worse"
    assert verdict([-2.0, -2.1, -2.2], margin=1.0, higher_is_better=False) == "better"


def test_no_differences_and_no_margin_are_refused():
    with pytest.raises(ValueError, match=r"found 0 differences .* compare runs that have a seed in common"):
        verdict([], margin=1.0)
    with pytest.raises(ValueError, match="a margin above 0, found 2 differences and the margin 0"):
        verdict([0.1, 0.2], margin=0.0)
    with pytest.raises(ValueError, match="the margin nan"):
        verdict([0.1, 0.2], margin=float("nan"))


def test_with_three_seeds_students_interval_covers_what_it_says_and_the_bootstrap_does_not():
    samples = np.random.default_rng(1).normal(size=(400, 3))
    covered = {"bootstrap": 0, "student": 0}
    for sample in samples:
        low, high = bootstrap_interval(sample, level=0.95)
        covered["bootstrap"] += low <= 0 <= high
        low, high = difference_interval(list(sample), level=0.95)
        covered["student"] += low <= 0 <= high
    assert 0.70 < covered["bootstrap"] / 400 < 0.82
    assert 0.92 < covered["student"] / 400 < 0.98
