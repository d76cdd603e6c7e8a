"""What is timed on GLUE: an MRPC epoch against padding to 128, and a LoRA step against PEFT's and the frozen model's.

Weights are random and row lengths follow MRPC's with MiniLM's tokenizer: 53 +- 13 tokens, from 19 to 103.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

from costs.timing import Step, interleave
from families import FAMILIES, head_parameters
from lora import LoRAConfig, add_lora
from models import base
from tasks.glue.data import collate
from training.batches import RowsByLength

BATCH, RANK, PADDED = 16, 8, 128
EPOCH_ROWS, TIMED_BATCHES = 3_668, 16  # batches by length are formed from a whole epoch; this many are timed
Rows = list[dict[str, Any]]


def mrpc_like_rows(number: int, vocabulary: int) -> Rows:
    """Random tokens with MRPC's lengths, and two classes."""
    pick = np.random.default_rng(0)
    lengths = np.clip(pick.normal(53, 13, number), 19, 103).astype(int)
    return [{"input_ids": pick.integers(5, vocabulary, n).tolist(), "label": int(i % 2)} for i, n in enumerate(lengths)]


def random_model(name: str) -> torch.nn.Module:
    family = FAMILIES[base(name).family]
    config = getattr(transformers, family.config)(**base(name).shape, num_labels=2)
    torch.manual_seed(0)
    return getattr(transformers, family.model)(config).train()


def adapted(name: str, by: str) -> torch.nn.Module:
    """The model with LoRA on query and value and its head trained: `ours`, or `peft`'s."""
    model = random_model(name)
    if by == "ours":
        add_lora(model, LoRAConfig(rank=RANK, alpha=16))
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)
        return model
    heads = sorted({n.rpartition(".")[0] for n in head_parameters(model)})
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules=["query", "value"],
                                            modules_to_save=heads))  # fmt: skip


def batches(rows: Rows, by_length: bool) -> list[dict[str, torch.Tensor]]:
    """A sample of an epoch's batches, from short to long: the middle one of each sixteenth."""
    order = RowsByLength([len(row["input_ids"]) for row in rows], BATCH, seed=0) if by_length else range(len(rows))
    numbers = list(order)
    padded = None if by_length else PADDED  # as the official scripts, whatever the rows' lengths
    filled = [
        collate([rows[i] for i in numbers[start : start + BATCH]], 1, padded) for start in range(0, len(numbers), BATCH)
    ]
    filled.sort(key=lambda batch: batch["input_ids"].shape[1])
    return [filled[(2 * i + 1) * len(filled) // (2 * TIMED_BATCHES)] for i in range(TIMED_BATCHES)]


def stepping(model: torch.nn.Module, data: list[dict[str, torch.Tensor]]) -> Step:
    """One optimizer step on every batch of `data`."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def call() -> None:
        for batch in data:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return call


def frozen(name: str, batch: dict[str, torch.Tensor]) -> Step:
    """Forward pass and input gradient of the plain frozen model: the least that any adapter needs."""
    model = random_model(name).requires_grad_(False)
    embeddings = model.get_input_embeddings()(batch["input_ids"]).requires_grad_(True)
    others = {key: value for key, value in batch.items() if key != "input_ids"}

    def call() -> None:
        model(inputs_embeds=embeddings, **others).loss.backward()
        embeddings.grad = None

    return call


def glue(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    measured = {}
    for name in ("minilm", "roberta-base"):
        rows = mrpc_like_rows(EPOCH_ROWS, base(name).shape.get("vocab_size", 30522))
        ours = adapted(name, "ours")
        by_length = batches(rows, by_length=True)
        typical = by_length[len(by_length) // 2]
        steps = {
            "ours": stepping(ours, [typical]),
            "peft": stepping(adapted(name, "peft"), [typical]),
            "frozen": frozen(name, typical),
        }
        seconds = interleave(steps, repetitions, warmup=2)
        measured |= {
            f"{name}: our LoRA step / PEFT's (time)": seconds["ours"] / seconds["peft"],
            f"{name}: our LoRA step / frozen model, forward and input gradient": seconds["ours"] / seconds["frozen"],
            f"{name}: seconds a step": seconds["ours"],
        }
        epochs = {"ours": stepping(ours, by_length), "padded": stepping(ours, batches(rows, by_length=False))}
        seconds = interleave(epochs, max(1, repetitions // 7), warmup=0)
        measured[f"{name}: MRPC epoch padded to {PADDED} / by length (time)"] = seconds["padded"] / seconds["ours"]
    return measured
