"""The adapters that come with the repository: results/adapters/NAME, a folder of save_lora with a card from its record.

ship("smollm2-135m-e2e-lora-r4")    # from the adapter that its run has kept beside the checkpoints
"""

from __future__ import annotations

from pathlib import Path

import files
from analysis.quantities import shown_scores
from experiments.catalogue import find
from files import write_atomically
from publish.labels import BASE_MEANS, HEADS, label
from runs import records
from runs.run import Run

SHIPPED = {"smollm2-135m-e2e-lora-r4": ("table3/smollm2-135m/lora-r4", 1)}  # name -> experiment and seed
FACTS = {"rank": "rank", "alpha": "alpha", "targets": "projections with a pair", "learning_rate": "learning rate",
         "train_rows": "training rows", "epochs": "epochs", "batch_size": "batch size"}  # fmt: skip


def folder_of(name: str) -> Path:
    return files.RESULTS / "adapters" / name


def card(name: str) -> str:
    """The adapter's card: what it is of, how it was trained, what it scores; ValueError without its record."""
    experiment, seed = SHIPPED[name]
    run = Run(find(experiment), seed)
    record, settings = records.read_record(run.record), run.experiment.settings
    if record is None:
        raise ValueError(f"expected the record of {run} in {run.record}, found none; run it, then ship its adapter")
    values = {words: getattr(settings, key) for key, words in FACTS.items()}
    scores = [score.rsplit(" ", 1) for score in shown_scores(record, settings).split("  ")]
    listed = [f"- {words}: {', '.join(v) if isinstance(v, tuple) else v}" for words, v in values.items()]
    return "\n".join([
        f"# {label(run.experiment)} of {settings.model} on E2E",
        "",
        "A folder for `load_lora` and for PEFT. Its base model:",
        "",
        f"> {BASE_MEANS[settings.model]}",
        "",
        f"Trained by `python code/reproduce.py run {experiment} --seed {seed}`, commit {record['git_commit'][:7]}:",
        "",
        *listed,
        "",
        "On E2E's test set, one seed:",
        "",
        "| score | |",
        "| --- | ---: |",
        *(f"| {HEADS.get(metric, metric)} | {value} |" for metric, value in scores),
        "",
        "The weights derive from E2E's texts; treat them as CC BY-SA 4.0.",
        "",
    ])  # fmt: skip


def ship(name: str) -> Path:
    """Copy what a run has kept into results/adapters, checked against its base; ValueError if it is not there."""
    from adapter_files import load_lora, save_lora  # torch, which a card does without
    from models import load_model

    experiment, seed = SHIPPED[name]
    run, text = Run(find(experiment), seed), card(name)
    model = load_model(run.experiment.settings.model)
    run.require_own_adapter()
    load_lora(model, run.adapter)
    save_lora(model, folder_of(name))
    write_atomically(folder_of(name) / "README.md", text)
    return folder_of(name)


def stale() -> list[str]:
    """A sentence for each shipped adapter whose card is not what its record gives; tests load what is beside it."""
    lines = []
    for name in filter(lambda name: folder_of(name).exists(), SHIPPED):
        path = folder_of(name) / "README.md"
        if not path.exists() or path.read_text(encoding="utf-8") != card(name):
            lines.append(f"{path.relative_to(files.ROOT)} is not what the record gives: `python code/make.py adapters`")
    return lines
