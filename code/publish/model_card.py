"""The model card of `gpt2-mini`: data/models/gpt2-mini/README.md, from what its pre-training measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.quantities import printed
from files import MODELS, write_atomically
from publish.tables import markdown

FOLDER = MODELS / "gpt2-mini"


def card(facts: dict[str, Any], corpus: pd.DataFrame) -> str:
    """The card's Markdown; every number in it is one of `facts`, every source a row of `corpus`."""
    ratio = 1 - facts["perplexity"] / facts["perplexity_5gram"]
    verdict = f"{ratio:.0%} lower than" if ratio > 0 else "not yet below"
    heads = {"github": "from (GitHub)", "licence": "licence as stated"}
    perplexities = {
        "gpt2-mini": facts["perplexity"],
        "5-gram, modified Kneser-Ney, same tokens and corpus": facts["perplexity_5gram"],
    }
    measured = pd.DataFrame(
        [[name, printed("perplexity", value)] for name, value in perplexities.items()],
        columns=[f"held-out text, {facts['held_out_tokens']:,} tokens", "perplexity per token"],
    )
    samples = "\n".join(f"{number}. {text} ..." for number, text in enumerate(facts["generations"], start=1))
    return f"""# gpt2-mini

A small GPT-2 for the `quick` and `cpu` scales: the architecture of GPT-2 (packed `c_attn`, transformers'
`GPT2LMHeadModel`) with 4 layers, width 256, 4 heads, 256 positions, {facts["parameters"]:,} parameters, and a byte-
level BPE of 8,192 tokens of its own. float16 weights; `code/training/pretrain_gpt2_mini.py` made them and measured
what follows.

## What it is not

It is not OpenAI's GPT-2 and knows little of the world. It stands in where no model hub is reached, so that LoRA and
full fine-tuning can be compared at a small scale; its scores are never set against the paper's as the same work.
Do not evaluate it on the tasks of its corpus: several of their test parts are in it.

## Training

{facts["steps"]:,} steps of 16 x 256 tokens ({facts["tokens_seen"]:,} seen, {facts["training_tokens"]:,} in the
corpus), Muon for the hidden matrices and AdamW for the rest, {facts["hours"]:.1f} h on two CPU cores.

{markdown(measured, numbers=["perplexity per token"])}

The model's perplexity is {verdict} that of the 5-gram model, which was trained on the whole corpus.

## Corpus

Every hundredth document (by hash) is held out. E2E and GLUE are not in it, and lines that share long word sequences
with their evaluation texts were removed. The weights are derived from share-alike text; treat them as CC BY-SA 4.0.

{markdown(corpus.rename(columns=heads))}

## Five continuations

Nucleus sampling (p 0.8, temperature 0.8), 40 tokens, fixed seed, nothing chosen by hand:

{samples}
"""


def write_card() -> Path:
    """Write the card beside the model; its path."""
    facts = json.loads((FOLDER / "pretraining.json").read_text(encoding="utf-8"))
    corpus = pd.read_csv(FOLDER / "corpus.csv", dtype=str, keep_default_na=False)
    path = FOLDER / "README.md"
    write_atomically(path, card(facts, corpus))
    return path
