"""GLUE, the eight sentence tasks of the paper's Table 2: files -> examples -> token rows -> batches.

Files are the parquet files of https://huggingface.co/datasets/nyu-mll/glue, never shipped with this project.
`files.find_file` finds or downloads them as `glue/<task>/<split>-00000-of-00001.parquet`. A download is of one fixed
commit and checked by SHA-256. A user's own folder may hold other rows; a split with fewer rows than the release is
marked as a subset. The `...-builtin` tasks of the `quick` scale need no file (`generator.py`).

    train, validation = load_glue("mrpc", "train"), load_glue("mrpc", "validation")
    kept, held_out = held_out_tenth(train.examples)                  # choose epoch and learning rate on held_out
    encoded = encode(kept, tokenizer, max_length=128)                # rows of token ids; how many were cut
    batch = collate(encoded.rows[:16], tokenizer.pad_token_id)       # tensors, padded to the longest of the 16
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from files import check_sha256, find_file, fingerprint
from tasks.catalogue import GlueTask, glue_task
from tasks.glue import generator as glue_generator
from tasks.texts import require_lists_of_texts

REPOSITORY = "nyu-mll/glue"
COMMIT = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
CHECKSUMS = {  # SHA-256 of the files at COMMIT: the hub's LFS object ids
    "mnli/train": "49a4a5508b89b8fed2c6e81d2c47d00f4759050a7048c6cc5d95d31122ced3c1",
    "mnli/validation_matched": "7f918c09d9c35446b8e8f06a5672f8ab704e2897fecbf52e2e154141f3d7c421",
    "mnli/validation_mismatched": "04aba92823a954be36fe1b69b61eed334c9eb1009daba0dd79f69d77b87c535c",
    "sst2/train": "66a253e67968acfabcbe49dbe9da964b42ac1c851c40ab760e8c8942efdb3229",
    "sst2/validation": "a1371f3b3a7b0bcefa8388799a9359dc3ce76c349cc0079507a7991364fd2a9b",
    "mrpc/train": "61fd41301e0e244b0420c4350a170c8e7cf64740335fc875a4af2d79af0df0af",
    "mrpc/validation": "33c007dbf5bfa8463d87a13e6226df8c0fcf2596c2cd39d0f3bb79754e00f50f",
    "cola/train": "2e7538afa2000e63f5343f16a758d75c452661a384208399d2035cd2fce45c33",
    "cola/validation": "c14b7219a7d9f9fe3dd291fd000f6623ee413805eb108c9c49578ed50873e4ba",
    "qnli/train": "ebc7cb70a5bbde0b0336c3d51f31bb4df4673e908e8874b090b52169b1365c6c",
    "qnli/validation": "e69311b81dc65589286091d9905a27617a90436dd215c7a59832fa8f4f336169",
    "qqp/train": "4d6f02e643f7c36e9a4f7d4971a5ee9bd74063a319452fe6c87850c739774cd7",
    "qqp/validation": "efd86a539c412d74874ee451573d7bd142f56c47fe36de033b9f367d8bb0fa71",
    "rte/train": "a6252ab17015d718f6de1effe0980f7b158df63e3d16207cd8bd396b608e5147",
    "rte/validation": "fb2aa2e04f551133ba663617a15ae133dc22b0f6a969bc0629b5ea6003ee9cf8",
    "stsb/train": "bbd93bbb988fd18437e02185fe3b2bd9a18350376c392e7820de9df1b247ed1f",
    "stsb/validation": "152de7cf1fa34ee4df1c243bd209b02ade21a1d5c4fb3b7da5240f78e4000aa9",
}


@dataclass(frozen=True)
class Example:
    """One row: its sentence or two sentences, and a class id or (STS-B) a similarity from 0 to 5."""

    texts: tuple[str, ...]
    label: int | float


@dataclass(frozen=True)
class GlueSplit:
    examples: list[Example]  # in file order
    subset: bool  # fewer rows than the released split: every result on it says so


@dataclass(frozen=True)
class Encoded:
    rows: list[dict[str, Any]]  # input_ids, token_type_ids where the model reads them, label
    truncated: int  # how many of the rows were cut to max_length


def load_glue(name: str, split: str, data_dir: Path | None = None) -> GlueSplit:
    """A labelled split of a task: `train`, `validation`, or MNLI's `validation_matched`, `validation_mismatched`.

    Raises ValueError for an unknown task or split (GLUE's test labels are not public), a missing column, or a label
    out of the task's range; FileNotFoundError, naming all places tried, if the file is nowhere.
    """
    task = glue_task(name)
    known = ("train", *task.validation)
    if split not in known:
        hidden = "; GLUE does not publish the labels of its test splits" if split.startswith("test") else ""
        raise ValueError(f"{name} has no labelled split {split!r}: expected one of {', '.join(known)}{hidden}")
    if name in glue_generator.BUILTIN:
        examples = [Example(texts, label) for texts, label in glue_generator.generate(name, split)]
    else:
        file = f"{name}/{split}-00000-of-00001.parquet"
        published = f"the Hugging Face hub, {REPOSITORY} at {COMMIT[:7]}, {file}"
        path = find_file(f"glue/{file}", data_dir, lambda: _download(f"{name}/{split}", file), published)
        examples = _read(path, task)
    return GlueSplit(examples, task.is_subset(split, len(examples)))


def data_fingerprint(examples: list[Example]) -> str:
    """The fingerprint (`files.fingerprint`) of the rows' sentences and labels."""
    return fingerprint((*example.texts, repr(example.label)) for example in examples)


def held_out_tenth(examples: Sequence[Any], seed: int = 0) -> tuple[list[Any], list[Any]]:
    """The training rows kept and the tenth of them (rounded up) held out, both in their order.

    The paper chooses the epoch on the validation split it reports. The held-out figure beside it chooses on these rows
    and scores the validation split once. Drawn uniformly and not by class: a tenth of the smallest task is 249 rows.
    Raises ValueError for fewer than two rows, which leave none to train on.
    """
    if len(examples) < 2:
        raise ValueError(f"expected two or more training rows, of which a tenth is held out, found {len(examples)}")
    chosen = set(random.Random(seed).sample(range(len(examples)), math.ceil(len(examples) / 10)))
    kept = [example for i, example in enumerate(examples) if i not in chosen]
    return kept, [examples[i] for i in sorted(chosen)]


def encode(examples: list[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Token rows in the form of pre-training: `[CLS] a [SEP] b [SEP]` of BERT, `<s> a </s></s> b </s>` of RoBERTa.

    A row longer than `max_length` loses tokens one by one, each from the end of the sentence that is longer then
    (`longest_first`, the rule of the official code, run_glue.py of microsoft/LoRA at c4593f0, examples/NLU).
    Token types (which sentence a token is of) are included if the tokenizer's model reads them.
    Raises ValueError if `max_length` is more than the tokenizer's model can take, or leaves no token of a sentence: the
    tokenizer does not cut at all below the number of its special tokens. Raises ValueError too for no rows, and for
    rows that have not all one sentence or all two; TypeError for what is no text.
    """
    require_lists_of_texts([example.texts for example in examples], "texts")
    if (sentences := sorted({len(example.texts) for example in examples})) not in ([1], [2]):
        found = f"rows of {' and '.join(map(str, sentences))}" if sentences else "no rows"
        raise ValueError(f"expected rows that have all one sentence or all two, found {found}")
    columns = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
    least = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2) + len(columns)
    if not least <= (max_length or 0) <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length must be from {least}, a token of each sentence beside the special ones, to the "
            f"{tokenizer.model_max_length} tokens the model takes; found {max_length}"
        )
    tokens = tokenizer(*columns, truncation="longest_first", max_length=max_length, return_attention_mask=False)
    rows = [{key: tokens[key][i] for key in tokens} | {"label": e.label} for i, e in enumerate(examples)]
    return Encoded(rows, sum(bool(encoding.overflowing) for encoding in tokens.encodings))


def collate(rows: list[dict[str, Any]], pad_token_id: int, pad_to: int | None = None) -> dict[str, Tensor]:
    """Rows -> (rows, longest) ids, attention mask and token types, and (rows,) labels: int64 classes, float32 numbers.

    Padded at the right to the longest row, or to `pad_to` tokens as the official code does. `pad_to` costs time, which
    the benchmark measures, and changes only the dropout that is drawn.
    """
    length = pad_to or max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_token_id, "token_type_ids": 0}
    batch = {
        key: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
        for key, value in fill.items()
        if key in rows[0]
    }
    sizes = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(length) < sizes[:, None]).long()
    return batch | {"labels": torch.tensor([row["label"] for row in rows])}


def _download(key: str, file: str) -> bytes:
    try:
        content = Path(hf_hub_download(REPOSITORY, file, repo_type="dataset", revision=COMMIT)).read_bytes()
    except HTTPError as error:  # a connection that goes in a circle is no OSError
        raise OSError(f"{type(error).__name__}: {error}") from error
    if key in CHECKSUMS:
        remedy = "check HF_ENDPOINT, and delete the file from the hub's cache (HF_HOME)"
        check_sha256(content, CHECKSUMS[key], f"the hub's {file}", remedy)
    return content


def _read(path: Path, task: GlueTask) -> list[Example]:
    needed = (*task.columns, "label")
    try:
        table = pd.read_parquet(path)
        columns = {name: table[name].tolist() for name in needed if name in table}  # text is decoded only here
    except Exception as error:  # a damaged file raises errors of many kinds
        raise ValueError(f"{path} cannot be read as parquet ({error}); use the file of {REPOSITORY}") from error
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}: {task.name} needs {', '.join(task.columns)} and label, "
            f"found {', '.join(map(str, table))}; use the file of {REPOSITORY}"
        )
    *sentences, labels = columns.values()
    for number, label in enumerate(labels):
        if not task.has_label(label):
            raise ValueError(
                f"{path}, row {number}: expected as label {task.label_range}, found {label!r}; "
                "-1 stands for hidden labels, which only GLUE's test splits have"
            )
    if not labels or not all(isinstance(text, str) for sentence in sentences for text in sentence):
        raise ValueError(
            f"{path} has {len(table)} rows: expected one or more, each with text in {', '.join(task.columns)}; use the "
            f"file of {REPOSITORY}"
        )
    kind = int if task.labels else float
    texts = zip(*sentences, strict=True)
    return [Example(pair, kind(label)) for pair, label in zip(texts, labels, strict=True)]
