"""Records of runs that never were, with the numbers that a test gives them: E2E, GLUE, and the choice of a rate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from experiments.catalogue import find
from runs import records
from tasks.catalogue import TASKS


def write(name: str, seed: int, **measured: Any) -> dict[str, Any]:
    """A finished record of the experiment as it is declared now."""
    experiment = find(name)
    settings = experiment.settings
    record = {
        "name": name, "scale": experiment.scale, "seed": seed, "status": "finished",
        "task_version": TASKS[settings.task].version, "settings": json.loads(json.dumps(asdict(settings))),
        "device": "cpu", "threads": 1, "started": "2026-11-22T10:00:00+00:00", "training_seconds": 600.0,
        "training_tokens": 1000, "peak_memory_gib": 1.5, "parameters": {"trainable": 1000, "head": 0, "total": 9000},
    } | measured  # fmt: skip
    if settings.method in ("sequential-lora", "adaptive-lora") and not any("ranks" in e for e in record["history"]):
        record["history"] = [{"step": 0, "epoch": 0.0, "ranks": {"0.query": 2, "0.value": 2}}, *record["history"]]
    records.write_record(record)
    return record


def write_e2e(name: str, seed: int, bleu: float, **measured: Any) -> dict[str, Any]:
    scores = {"BLEU": bleu, "NIST": 8.5, "METEOR": None, "ROUGE_L": 0.7, "CIDEr": 2.25, "slot_error_rate": 0.04}
    scores |= {"course_BLEU": 100 * bleu - 2, "course_ROUGE_L": 66.0, "mean_words": 24.0, "share_at_cap": 0.0}
    history = [{"step": 10, "epoch": 0.5, "loss": 3.0}, {"step": 20, "epoch": 1.0, "loss": 2.0}]
    history.append({"step": 20, "epoch": 1.0, "eval_loss": 1.5})
    scores |= measured.pop("scores", {})
    return write(name, seed, **{"scores": scores, "evaluation_seconds": 60.0, "history": history} | measured)


def write_glue(name: str, seed: int, reported: list[float], held_out: list[float], **measured: Any) -> dict[str, Any]:
    """`reported` and `held_out`: the main metric after each epoch on either split."""
    task = TASKS[find(name).settings.task]
    split = next(iter(task.validation))

    def every(metric: float) -> dict[str, Any]:
        return dict.fromkeys(task.metrics, metric) | {"alarm": None, "loss": 1 - metric}

    epochs = [
        {"epoch": i, "training_loss": 1 / i, split: every(ours), "held_out": every(other)}
        for i, (ours, other) in enumerate(zip(reported, held_out, strict=True), 1)
    ]
    best, chosen = reported.index(max(reported)), held_out.index(max(held_out))
    results = {
        "scores": every(reported[best]), "honest_scores": every(reported[chosen]), "epochs": epochs,
        "subset": {"train": False, split: False}, "history": [{"step": 1, "epoch": 1.0, "loss": 0.7}],
    }  # fmt: skip
    return write(name, seed, **results | measured)
