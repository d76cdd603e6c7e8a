"""Pre-train `gpt2-mini`, the small GPT-2 that ships with the repository.

The paper adapts models that were pre-trained on general text (section 1). For a reader without a
model hub, this script makes one from a folder of text files, in a few hours on two CPU cores. It
writes the weights, the byte-level BPE and the measurements to `data/models/gpt2-mini/`; from there
`make.py card` makes the card.

    python code/make.py base-model --corpus FOLDER [--steps 8000]

The same command continues from its last checkpoint; another corpus, number of steps or start has a checkpoint of
its own. One document in a hundred is held out; on these the card's perplexities are measured, the model's and a
5-gram model's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from adapter_files import whole_folder
from files import CHECKPOINTS, write_atomically
from training import ngram_baseline
from training.machine import has_fast_bfloat16
from training.pretrain_corpus import END, VOCABULARY, corpus_identity, prepare, read_tokenizer, reading

BLOCK = 256  # tokens a training sequence; also the model's positions
BATCH = 16
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
DECAY_FRACTION = 0.5  # constant, then linear to zero over this last part of the steps
CHECKPOINT_EVERY = 100
PROMPTS = ("The restaurant", "In the city of", "She looked at him and", "I would like to book", "The company")


def new_model(end: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=256, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al., 2024), for the hidden matrices.

    As `torch.optim.Muon` with `match_rms_adamw`, but in the parameters' own precision: torch's
    iterates in bfloat16, which a CPU without bfloat16 instructions emulates 50 times slower.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 0.05)
                update = p.grad.lerp(buffer, 0.95)
                wide = update if update.shape[0] <= update.shape[1] else update.T
                wide = wide / (wide.norm() + 1e-7)
                for _ in range(5):
                    gram = wide @ wide.T
                    wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
                update = wide if update.shape[0] <= update.shape[1] else wide.T
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2]
    other = [p for n, p in model.named_parameters() if not (".h." in n and p.ndim == 2)]
    return [
        Muon(hidden, lr=LEARNING_RATE, weight_decay=0.1),
        torch.optim.AdamW(other, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int) -> float:
    decay = int(steps * DECAY_FRACTION)
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / decay)


def train(model: GPT2LMHeadModel, tokens: np.ndarray, steps: int, work: Path) -> float:
    """Train up to `steps` batches, from the checkpoint if there is one; return the hours of all sittings.

    Raises FloatingPointError for a loss or gradient that is not finite.
    """
    optims = optimizers(model)
    blocks = tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK)
    checkpoint = work / "checkpoint.pt"
    first, seconds = 0, 0.0
    if checkpoint.exists():
        with reading(checkpoint):
            state = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            for optim, saved in zip(optims, state["optimizers"], strict=True):
                optim.load_state_dict(saved)
            first, seconds = state["step"], state["seconds"]
        print(f"continuing at step {first}")
    forward = torch.compile(model) if shutil.which("g++") else model
    started, losses = time.time(), []
    for step in range(first, steps):
        epoch, position = divmod(step, len(blocks) // BATCH)
        order = np.random.default_rng(epoch).permutation(len(blocks))
        batch = torch.from_numpy(blocks[order[position * BATCH : (position + 1) * BATCH]].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
            loss = forward(input_ids=batch, labels=batch).loss
        loss.backward()
        if not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} and its gradient not finite at step {step + 1} of {steps}; the last good "
                f"state is that of {checkpoint}, if there is one. Try a lower LEARNING_RATE"
            )
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = learning_rate(step, steps)
            optim.step()
            optim.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            rate = (step + 1 - first) * BATCH * BLOCK / (time.time() - started)
            print(f"step {step + 1}/{steps} loss {np.mean(losses[-20:]):.3f} {rate:.0f} tokens/s", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            total = seconds + time.time() - started
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optims]}
            torch.save(state | {"step": step + 1, "seconds": total}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return (seconds + time.time() - started) / 3600


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, tokens: np.ndarray) -> float:
    """The perplexity of every token after the first of each 256-token block of the held-out text."""
    model.eval()
    blocks = torch.from_numpy(tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK).astype(np.int64))
    losses = [model(input_ids=b, labels=b).loss.item() * len(b) for b in blocks.split(BATCH)]
    return float(np.exp(sum(losses) / len(blocks)))


def save(model: GPT2LMHeadModel, work: Path, folder: Path) -> None:
    """Write float16 safetensors (the tied output matrix once), configuration and tokenizer files."""
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END}
    settings |= {"pad_token": END, "model_max_length": BLOCK}
    with whole_folder(folder) as new:  # what was there stays if this is stopped
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(new)
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(work / name, new / name)
        (new / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_weights(model: GPT2LMHeadModel, folder: Path) -> None:
    with reading(folder / "model.safetensors"):
        weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)


def generations(model: GPT2LMHeadModel, work: Path) -> list[str]:
    """One continuation of each prompt, nucleus sampling with a fixed seed."""
    tokenizer = read_tokenizer(work)
    torch.manual_seed(0)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_p=0.8, temperature=0.8, max_new_tokens=40
        )
        texts.append(tokenizer.decode(out[0].tolist(), skip_special_tokens=True).replace("\n", " "))
    return texts


def pretrain(corpus: Path, steps: int, output: Path, start_from: Path | None = None) -> dict[str, Any]:
    """Train the model on the text files of `corpus`, write it to `output`, and return the measurements.

    `steps` are batches of BATCH sequences of BLOCK tokens; `start_from` is the folder of an earlier model, if its
    checkpoint is gone. Raises FileNotFoundError for a corpus without text files, ValueError for fewer than two steps
    and for a corpus without a batch to train on or a sequence to hold out.
    """
    if steps < 2:
        raise ValueError(f"expected 2 steps or more, of which the learning rate decays in the last half, found {steps}")
    work = CHECKPOINTS / f"pretrain-gpt2-mini--{corpus_identity(corpus, steps, start_from)}"
    work.mkdir(parents=True, exist_ok=True)
    tokens, held_out = prepare(corpus, work, start_from)
    print(f"{len(tokens):,} training tokens, {len(held_out):,} held out")
    if len(tokens) < BATCH * BLOCK or len(held_out) < BLOCK:
        raise ValueError(
            f"expected {BATCH * BLOCK:,} training tokens, a batch, and {BLOCK} held-out ones, found {len(tokens):,} "
            f"and {len(held_out):,}: give a larger corpus, in documents with a blank line between them"
        )
    torch.manual_seed(0)
    model = new_model(end=0)
    if start_from:
        load_weights(model, start_from)
    hours = train(model, tokens, steps, work)
    save(model, work, output)
    load_weights(model, output)  # measure what is shipped
    model.eval()
    facts = {
        "parameters": model.num_parameters(),
        "training_tokens": len(tokens),
        "tokens_seen": steps * BATCH * BLOCK,
        "steps": steps,
        "hours": round(hours, 2),
        "held_out_tokens": len(held_out),
        "perplexity": round(perplexity(model, held_out), 2),
        "perplexity_5gram": round(ngram_baseline.perplexity(tokens, held_out, order=5), 2),
        "generations": generations(model, work),
    }
    write_atomically(output / "pretraining.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return facts
