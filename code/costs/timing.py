"""Medians of alternating repetitions, and peak memory: what `benchmark.py` makes its ratios of."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any, TypeVar

from scipy.stats import binom

AS_IT_COMES = " on transformers' layers"  # in the name of a peer whose model has not the layers that our runs have
Step = Callable[[], object]
T = TypeVar("T")


def timings(variants: dict[str, Step], repetitions: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each repetition of each variant. Variants take turns, so that drift hits all alike.

    Every other turn goes backwards: what a variant leaves in caches does not always go to the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(warmup + repetitions):
        for name, call in [*variants.items()][:: -1 if repetition % 2 else 1]:
            started = time.perf_counter()
            call()
            if repetition >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def interleave(variants: dict[str, Step], repetitions: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each variant, by `timings`."""
    return {name: median(values) for name, values in timings(variants, repetitions, warmup).items()}


def ratio(above: list[float], below: list[float], confidence: float = 0.95) -> list[float]:
    """The median of the ratios of paired repetitions, and the ends of its interval: [1.02, 0.99, 1.04].

    The interval is that of the sign test, which assumes nothing of how times are spread. Five repetitions and fewer
    cannot give 95%: then it is their range.
    """
    return spread([a / b for a, b in zip(above, below, strict=True)], confidence)


def spread(values: list[float], confidence: float = 0.95) -> list[float]:
    """The median of repetitions, and the ends of its interval by the sign test."""
    values = sorted(values)
    end = max(1, int(binom.ppf((1 - confidence) / 2, len(values), 0.5)))  # the interval's, counted from the extremes
    return [median(values), values[end - 1], values[-end]]


def apart(call: Callable[..., T], *inputs: Any) -> T:
    """What a call gives in a process of its own: in this one, what is allocated may take the place of what was freed.

    Raises BrokenProcessPool if that process is killed, as it is where memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *inputs).result()


def memory_above_weights(make_step: Callable[[str], Step], name: str) -> int:
    """Peak bytes of six steps above what the loaded model occupies (Linux), `apart`."""
    return apart(_step_memory, make_step, name)


def _step_memory(make_step: Callable[[str], Step], name: str) -> int:
    from training.machine import forget_peak_memory  # imported here: tables need no torch

    step = make_step(name)
    forget_peak_memory()  # of building the model
    before = resident("VmRSS")
    for _ in range(6):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
