"""Writes the model card of `gpt2-mini` from what its pre-training measured.

python code/make_model_card.py        # data/models/gpt2-mini/pretraining.json -> README.md beside it
"""

from __future__ import annotations

import csv
import json

from paths import MODELS

FOLDER = MODELS / "gpt2-mini"


def card(facts: dict, corpus: list[dict[str, str]]) -> str:
    """The card's Markdown; every number in it is one of `facts`, every source a row of `corpus`."""
    ratio = 1 - facts["perplexity"] / facts["perplexity_5gram"]
    verdict = f"{ratio:.0%} lower than" if ratio > 0 else "not yet below"
    sources = "\n".join(f"| {' | '.join(row.values())} |" for row in corpus)
    samples = "\n".join(f"{number}. {text} ..." for number, text in enumerate(facts["generations"], start=1))
    return f"""# gpt2-mini

A small GPT-2 for the `quick` and `cpu` scales: the architecture of GPT-2 (packed `c_attn`, transformers'
`GPT2LMHeadModel`) with 4 layers, width 256, 4 heads, 256 positions, {facts["parameters"]:,} parameters, and a byte-
level BPE of 8,192 tokens of its own. float16 weights; `code/pretrain_gpt2_mini.py` made them and measured what follows.

## What it is not

It is not OpenAI's GPT-2 and knows little of the world. It stands in where no model hub is reached, so that LoRA and
full fine-tuning can be compared at a small scale; its scores are never set against the paper's as the same work.
Do not evaluate it on the tasks of its corpus: several of their test parts are in it.

## Training

{facts["steps"]:,} steps of 16 x 256 tokens ({facts["tokens_seen"]:,} seen, {facts["training_tokens"]:,} in the
corpus), Muon for the hidden matrices and AdamW for the rest, {facts["hours"]:.1f} h on two CPU cores.

| held-out text, {facts["held_out_tokens"]:,} tokens | perplexity per token |
|---|---:|
| gpt2-mini | {facts["perplexity"]:.2f} |
| 5-gram, modified Kneser-Ney, same tokens and corpus | {facts["perplexity_5gram"]:.2f} |

The model's perplexity is {verdict} that of the 5-gram model, which was trained on the whole corpus.

## Corpus

Every hundredth document (by hash) is held out. E2E and GLUE are not in it, and lines that share long word sequences
with their evaluation texts were removed. The weights are derived from share-alike text; treat them as CC BY-SA 4.0.

| file | what | from (GitHub) | licence as stated |
|---|---|---|---|
{sources}

## Five continuations

Nucleus sampling (p 0.8, temperature 0.8), 40 tokens, fixed seed, nothing chosen by hand:

{samples}
"""


def main() -> None:
    facts = json.loads((FOLDER / "pretraining.json").read_text(encoding="utf-8"))
    with open(FOLDER / "corpus.csv", encoding="utf-8") as file:
        corpus = list(csv.DictReader(file))
    (FOLDER / "README.md").write_text(card(facts, corpus), encoding="utf-8")


if __name__ == "__main__":
    main()
