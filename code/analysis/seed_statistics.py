"""What few seeds can say: centre, spread, interval, paired difference, verdict.

The paper reports the mean of three seeds (Table 3) and the median of five (Table 2), each with a ± that it does not
define. Here a ± is the sample standard deviation over seeds and nothing else. One seed has neither spread nor interval:
those are None, never 0.

    differences = paired_differences({0: 64.1, 1: 64.9, 2: 64.6}, {0: 64.0, 1: 64.6, 2: 64.4})    # [0.1, 0.3, 0.2]
    verdict(differences, margin=1.0)    # "equivalent"

The interval of a score is a percentile bootstrap over its seeds. It cannot reach beyond the worst and the best seed:
for three draws from a normal distribution, 95% intervals cover the mean about 76% of the time
(tests/test_seed_statistics.py). Verdicts therefore rest on Student's t, which keeps its level with few seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 10_000
SCORE_LEVEL = 0.95  # of the interval of a score
DIFFERENCE_LEVEL = 0.90  # of the interval of a difference: two one-sided tests, each at 5%

Interval = tuple[float, float]


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation (over n - 1); None for a single value."""
    return stdev(values) if len(values) > 1 else None


def bootstrap_interval(
    values: Sequence[float], statistic: Callable[..., np.ndarray] = np.mean, level: float = SCORE_LEVEL
) -> Interval | None:
    """Percentile interval of `statistic(resamples, axis=1)`, the same at every call; None for a single value.

    Drawn with replacement, 10,000 times: Efron and Tibshirani (1993), chapter 13.
    """
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    tail = 50 * (1 - level)
    low, high = np.percentile(statistic(np.asarray(values)[drawn], axis=1), [tail, 100 - tail])
    return float(low), float(high)


def paired_differences(ours: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Ours minus the reference at every seed that both have, in order of seeds."""
    return [ours[seed] - reference[seed] for seed in sorted(ours.keys() & reference.keys())]


def difference_interval(differences: Sequence[float], level: float = DIFFERENCE_LEVEL) -> Interval | None:
    """Student's t interval of the mean of paired differences; None for a single one."""
    if len(differences) < 2:
        return None
    centre, n = fmean(differences), len(differences)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * stdev(differences) / n**0.5
    return centre - half, centre + half


def verdict(differences: Sequence[float], margin: float, higher_is_better: bool = True) -> str:
    """What paired differences to a reference show: equivalent, better, worse, inconclusive, or one seed only.

    *equivalent*: their 90% interval lies within ± margin, which is two one-sided tests at 5% (Schuirmann, 1987);
    *better* or *worse*: it does not, and lies on one side of 0; *inconclusive*: neither.
    Raises ValueError for no differences, and for a margin that is not above 0.
    """
    if not differences or not margin > 0:
        raise ValueError(
            f"expected differences at one seed or more and a margin above 0, found {len(differences)} differences and "
            f"the margin {margin:g}: compare runs that have a seed in common"
        )
    interval = difference_interval(differences)
    if interval is None:
        return "one seed only"
    low, high = interval
    if -margin < low and high < margin:
        return "equivalent"
    if low > 0 or high < 0:
        return "better" if (low > 0) == higher_is_better else "worse"
    return "inconclusive"
