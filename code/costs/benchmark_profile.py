"""Where the time of a LoRA step goes, operation by operation, beside the frozen model's: why a ratio is what it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from costs.benchmark_training import BASES, stepping
from costs.timing import Step

SHOWN = 8  # operations of each model


def seconds_by_operation(step: Step) -> Counter[str]:
    """Seconds that a step spends in each of torch's operations themselves, as the profiler has them."""
    with profiler(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    return Counter({event.key: event.self_cpu_time_total / 1e6 for event in recorded.key_averages()})


def profile(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    """In percent of the frozen model's time: what LoRA adds in all, and in each of the operations that add most.

    The profiler's own work is in it, so the sum is more than LoRA takes without a profiler.
    """
    measured = {}
    for name in BASES:
        steps = {method: stepping(name, method) for method in ("ours", "frozen")}
        spent: dict[str, Counter[str]] = {method: Counter() for method in steps}
        for repetition in range(1 + repetitions):
            for method, step in steps.items():
                once = seconds_by_operation(step)
                spent[method] += once if repetition else Counter()  # the first warms up
        ours, floor = spent["ours"], spent["frozen"]
        added = Counter({key: ours[key] - floor[key] for key in ours | floor})
        whole = floor.total() / 100
        measured[f"{name}: % that LoRA adds to the frozen model"] = added.total() / whole
        for key, seconds in added.most_common(SHOWN):
            measured[f"{name}: % that it adds in {key} ({ours[key] / whole:.1f}% with LoRA)"] = seconds / whole
    return measured
