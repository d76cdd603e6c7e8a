"""Records -> figures in `results/figures`, as PNG and PDF.

One look for all: every seed is a dot, axes carry units, the title carries scale and n, and the
colours differ in grey as well.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

import paths
from experiments import resolve, select
from result_tables import seeds_of
from tasks import TASKS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STYLE = {"full": ("#222222", "s"), "lora": ("#e08214", "o"), "released": ("#8073ac", "^")}


def score_against_parameters(table: str, scale: str) -> Path:
    """The main metric against trainable parameters (log axis), a dot a seed; the PNG's path.

    Raises ValueError where nothing of the table is recorded at the scale.
    """
    metric = TASKS[resolve(select(table, scale)[0], scale).task].main_metric
    points = [
        (record["parameters"]["trainable"], 100 * record["scores"][metric], experiment, resolve(experiment, scale))
        for experiment in select(table, scale)
        for record in seeds_of(experiment, scale)
    ]
    if not points:
        raise ValueError(
            f"nothing of {table} is recorded at scale {scale}; run `reproduce.py sweep {table} --scale {scale}`"
        )
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    labelled = set()
    for trainable, score, experiment, settings in points:
        colour, marker = STYLE[settings.method]
        axes.scatter(trainable, score, color=colour, marker=marker, s=42, zorder=3)
        if experiment.name not in labelled:
            label = "full fine-tuning" if settings.method == "full" else f"LoRA r={settings.rank}"
            axes.annotate(label, (trainable, score), xytext=(7, 5), textcoords="offset points", fontsize=9)
        labelled.add(experiment.name)
    axes.set_xscale("log")
    axes.margins(x=0.22, y=0.18)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(f"{metric} (x 100)")
    models = ", ".join(sorted({settings.model for *_, settings in points}))
    seeds = len({r["seed"] for e in select(table, scale) for r in seeds_of(e, scale)})
    axes.set_title(f"{table}: {models}, scale {scale}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    folder = paths.RESULTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        metadata = {"CreationDate": None} if suffix == "pdf" else {}
        figure.savefig(folder / f"{table}-{scale}.{suffix}", dpi=160, metadata=metadata)
    plt.close(figure)
    return folder / f"{table}-{scale}.png"
