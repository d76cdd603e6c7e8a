"""What is timed on SmolLM2-135M: a LoRA step in bfloat16 against PEFT's and the plain one, and decoding.

The plain step has float32 weights under bfloat16 autocast, torch's fused attention and torch's dropout. Ours, as runs
do it, keeps the frozen matrices in bfloat16, multiplies attention out and draws dropout masks quickly. Weights of the
steps are random, row lengths follow E2E's (`benchmark_e2e.py`); what is decoded is the base model on the test set.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from costs.benchmark_e2e import BATCH, LABEL_SMOOTHING, Rows, e2e_like_rows, full_logits_loss
from costs.timing import Step, interleave
from experiments.catalogue import find
from lora import LoRAConfig, add_lora
from models import base, load_model, load_tokenizer
from tasks.e2e.beam_search import DecodingSettings, generate
from tasks.e2e.data import encode, group_by_context, load_e2e
from tasks.e2e.evaluation import validation_loss
from tasks.e2e.loss import completion_loss
from training.batches import pad_right
from training.precision import autocast, keep_frozen_in_bfloat16
from training.quick_layers import use_quick_layers

NAME, RUN = "smollm2-135m", "table3/smollm2-135m/lora-r4"
CPU = torch.device("cpu")


def _random_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**base(NAME).shape))


def stepping(model: nn.Module, name: str, rows: Rows) -> Step:
    """One optimizer step on the next batch: `ours`, `plain`, or `peft` (the plain model with PEFT's LoRA)."""
    settings, turn = find(RUN).settings, 0
    model.set_attn_implementation("eager" if name == "ours" else "sdpa")
    if name == "peft":
        how = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
        model = get_peft_model(model, LoraConfig(**how))
    else:
        add_lora(model, LoRAConfig(rank=4, alpha=32, dropout=0.1))
    if name == "ours":
        keep_frozen_in_bfloat16(model)
        use_quick_layers(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3, fused=True)
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = len(rows) // BATCH

    def step() -> None:
        nonlocal turn
        start = 19 * turn % batches * BATCH  # short and long batches in turn
        turn += 1
        batch = pad_right(rows[start : start + BATCH])
        with autocast(settings, CPU):
            loss = full_logits_loss(model, batch) if name == "peft" else completion_loss(model, batch, LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    rows = e2e_like_rows(BATCH * 50, base(NAME).shape["vocab_size"])
    steps = {name: stepping(_random_model(), name, rows) for name in ("ours", "plain", "peft")}
    seconds = interleave(steps, repetitions, warmup=2)
    return {
        "plain step / ours (time)": seconds["plain"] / seconds["ours"],
        "PEFT / ours (time)": seconds["peft"] / seconds["ours"],
        "seconds a step, ours": seconds["ours"],
        "seconds a step, plain": seconds["plain"],
    }


def losses(repetitions: int, data_dir: Path | None = None, steps: int = 200, rows: int = 320) -> dict[str, float]:
    """Dev loss (nats a token) on some rows after some steps on real rows: ours, plain, and plain with another seed."""
    settings, tokenizer = find(RUN).settings, load_tokenizer(NAME, data_dir)
    train, dev = (
        [encode(example, tokenizer) for example in load_e2e(split, "lora", data_dir)[:number]]
        for split, number in (("train", steps * BATCH), ("dev", rows))
    )
    measured = {}
    for name, way, seed in (("ours", "ours", 0), ("plain", "plain", 0), ("plain, another seed", "plain", 1)):
        model = load_model(NAME, data_dir=data_dir)
        torch.manual_seed(seed)
        step = stepping(model, way, train)
        for _ in range(steps):
            step()
        measured[f"dev loss after {steps} steps, {name}"] = validation_loss(model, dev, settings)
    return measured


def decode(repetitions: int, data_dir: Path | None = None, inputs: int = 16) -> dict[str, float]:
    """Ten beams over some test contexts: as runs do it, and by the plain float32 model under autocast."""
    settings, tokenizer = find(RUN).settings, load_tokenizer(NAME, data_dir)
    ours = load_model(NAME, data_dir=data_dir).eval().requires_grad_(False)
    plain = copy.deepcopy(ours)
    plain.set_attn_implementation("sdpa")
    keep_frozen_in_bfloat16(ours)
    contexts = [group.context for group in group_by_context(load_e2e("test", "lora", data_dir))][:: 630 // inputs][
        :inputs
    ]
    texts: dict[str, list[str]] = {}

    def call(name: str, model: nn.Module) -> Step:
        def search() -> None:
            with autocast(settings, CPU):
                texts[name] = [g.text for g in generate(model, tokenizer, contexts, DecodingSettings(), progress=False)]

        return search

    seconds = interleave({"ours": call("ours", ours), "plain": call("plain", plain)}, repetitions, warmup=0)
    same = sum(a == b for a, b in zip(texts["ours"], texts["plain"], strict=True)) / len(contexts)
    return {
        "plain search / ours (time)": seconds["plain"] / seconds["ours"],
        "share of same outputs": same,
        "seconds, ours": seconds["ours"],
        "seconds, plain": seconds["plain"],
    }
