"""The names of rows, columns, tables and scales in every table, figure and document."""

from __future__ import annotations

import re

from experiments.settings import Experiment

TITLES = {
    "table2": "Table 2: GLUE",
    "table3": "Table 3: E2E",
    "table5": "Table 5: which matrices, at one number of parameters",
    "table6": "Table 6: which matrices, which rank",
    "table13": "Table 13: DART",
    "table14": "Table 14: WebNLG",
    "table16": "Table 16: MNLI with few training rows",
    "curves": "Epoch by epoch, by rank",
    "learning-rate": "The choice of learning rates",
    "decoding": "Decoding alone: the same trained rows, searched otherwise",
    "bleu-gap": "68.8 against 70.4: text, epoch, length penalty and end",
    "rank-over-time": "Rank over time: Sequential LoRA and adaptive rank",
    "variants": "Variants of LoRA",
    "pitfalls": "What the mistakes of earlier reproductions cost",
    "subspaces": "Section 7: inside the update",
    "released": "The authors' own adapters",
}
BASE_MEANS = {  # of the models that are not the paper's: what a reader has to know of them
    "smollm2-135m": "SmolLM2-135M-Instruct, trained by its publisher to follow instructions, dequantised from 4 bits",
    "minilm": "all-MiniLM-L6-v2, a small BERT trained on pairs of sentences",
    "gpt2-mini": "a small GPT-2 that was pre-trained here",
}
SCALE_MEANS = {
    "quick": "built-in data and models, to prove the pipeline and not the paper",
    "cpu": "real data and small real models",
    "paper": "the paper's models and settings",
}
HEADS = {  # column -> its heading
    "ROUGE_L": "ROUGE-L", "paper ROUGE_L": "paper ROUGE-L", "slot_error_rate": "slot errors (%)",
    "dev_loss": "dev loss (nats a token)", "peak memory gib": "peak memory (GiB)",
    "mean_words": "words per output", "mean_reference_words": "words per reference",
    "brevity_penalty": "brevity penalty", "BLEU_unpenalised": "BLEU without it",
    "course_BLEU": "BLEU (NLTK, lower case)", "course_ROUGE_L": "ROUGE-L (stems)",
}  # fmt: skip
WORDS = {  # word of a row's name -> as the paper writes it
    "full": "full fine-tuning", "lora": "LoRA", "bitfit": "BitFit", "adapter": "Adapter", "h": "H", "l": "L", "p": "P",
    "d": "D", "mnli": "MNLI", "mlp": "MLP", "prelayer": "PreLayer", "preembed": "PreEmbed", "top2": "FT Top2",
    "top3": "FT Top3",
}  # fmt: skip
WHERE = {"all": "all matrices", "MLP": "the MLP"}  # the pairs of a row, where they are not on query and value


def label(experiment: Experiment) -> str:
    """A row's name: `LoRA r=4`, `LoRA† r=8`, `full fine-tuning`, `Adapter L 11M`, `LoRA 0.004`."""
    if experiment.table == "learning-rate":
        *_, row, rate = experiment.name.split("/")
        return f"{words(row)} {rate}"
    if (rows := experiment.name.split("/")[-2]).isdecimal():  # of a table of few rows
        return f"{words(experiment.row)}, {rows} rows"
    if not experiment.settings.epochs:  # a row decoded anew, and how
        row, *change = (part for part in experiment.name.split("/")[2:] if part != experiment.settings.task)
        return f"{words(row)}, {' '.join(change).replace('-', ' ')}"
    return words(experiment.row)


def words(row: str) -> str:
    """The last part of a name as the paper writes it."""
    written = re.sub(r"\br(\d+)\b", r"r=\1", " ".join(WORDS.get(word, word) for word in row.split("-")))
    written = re.sub(r"^LoRA (all|MLP) (r=\d+)", lambda part: f"LoRA {part[2]} on {WHERE[part[1]]}", written)
    return re.sub(r"^LoRA (.*) restricted$", r"LoRA† \1", written)
