"""E2E, the restaurant data of the paper's Table 3: rows of (meaning representation, reference) as a model reads them.

A protocol decides the text of both sides of a row. Scores of the two protocols are never compared:

- `challenge`: the released text as it is.
- `lora`: as in the data of the official code (microsoft/LoRA at c4593f0, examples/NLG): renamed slots joined by
  ` | `, references pre-tokenised. At `paper` scale its own files are read (`official_text.py`). Elsewhere, or where
  they are out of reach, the text is rebuilt from the release. The official tokenizer is not published: `pretokenise`
  reconstructs it, one rule for all splits. It gives 99.1% (test) and 98.5% (valid) of the official references exactly,
  100% up to white space. The two files differ in contractions (test `is n't`, valid `isn 't`). Here all splits
  follow test, so that a model is trained on the spelling it is scored on.

Files are `trainset.csv`, `devset.csv` and `testset_w_refs.csv` of https://github.com/tuetschek/e2e-dataset
(CC BY-SA 4.0), never shipped with this project. `files.find_file` finds them as `e2e/<file>` or downloads the release
into the cache. Every file is checked by SHA-256, wherever it is from.

    examples = load_e2e("test")             # 4,693 rows
    inputs = group_by_context(examples)     # 630 distinct contexts with their references, in file order
"""

from __future__ import annotations

import csv
import functools
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files import check_sha256, download, find_file, fingerprint
from tasks.e2e import generator as e2e_generator
from tasks.e2e.slot_errors import parse_mr

PROTOCOLS = ("challenge", "lora")
OFFICIAL_LENGTH = 512  # tokens of context and text together: the official `--seq_len`
RELEASE_URL = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master"
RELEASE_PAGE = "https://github.com/tuetschek/e2e-dataset/releases/tag/v1.0.0"
COLUMNS = "mr,ref"
FILES = {  # split -> file, SHA-256 of the release
    "train": ("trainset.csv", "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"),
    "dev": ("devset.csv", "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
    "test": ("testset_w_refs.csv", "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"),
}
LORA_SLOTS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
# Penn Treebank contractions, decimals and runs of full stops stay whole; all other punctuation stands alone.
TOKEN = re.compile(r"n't\b|'(?:s|re|ll|ve|m|d)\b|\w+?(?=n't\b)|\d+\.\d+|\w+|\.+|[^\w\s]", re.IGNORECASE)


@dataclass(frozen=True)
class Example:
    """One row: the raw meaning representation, what the model reads, and what it shall write."""

    mr: str
    context: str
    reference: str
    seen: bool | None = None  # WebNLG: whether its category is one of those trained on


@dataclass(frozen=True)
class Inputs:
    """One distinct context and every reference for it."""

    mr: str
    context: str
    references: list[str]
    seen: bool | None = None


def pretokenise(text: str) -> str:
    """Text as in the official LoRA data: tokens, punctuation and contractions (`is n't`, `it 's`) apart, case kept."""
    return " ".join(TOKEN.findall(text))


def to_context(mr: str, protocol: str = "lora") -> str:
    """What a model reads for a raw meaning representation, which may be a user's own; ValueError as `parse_mr`."""
    _require("protocol", protocol, PROTOCOLS)
    slots = parse_mr(mr)
    if protocol == "challenge":
        return mr
    context = " | ".join(f"{LORA_SLOTS.get(slot, slot)} : {value}" for slot, value in slots.items())
    return re.sub(r"£(\d)", r"£ \1", re.sub(r"£(\d+)-(\d+)", r"£ \1 - \2", context))


def load_e2e(split: str, protocol: str = "lora", data_dir: Path | None = None) -> list[Example]:
    """Rows of the real data in file order: train 42,061, dev 4,672, test 4,693.

    Raises FileNotFoundError if `data_dir` (or LORA_DATA_DIR) is no folder, or no place has the file and it cannot be
    downloaded; ValueError for a file with other columns or another checksum than the release.
    """
    _require("split", split, FILES)
    return _examples(_read(_find(split, data_dir), FILES[split][1]), protocol)


def load_builtin(split: str, protocol: str = "lora") -> list[Example]:
    """Rows of the `quick` scale, made by `generator.py`: no file, no network."""
    _require("split", split, FILES)
    return _examples(e2e_generator.generate(split), protocol)


def group_by_context(examples: list[Example]) -> list[Inputs]:
    """Distinct contexts in order of first occurrence, as the official decoding groups its references."""
    groups: dict[str, Inputs] = {}
    for example in examples:
        group = groups.setdefault(example.context, Inputs(example.mr, example.context, [], example.seen))
        group.references.append(example.reference)
    return list(groups.values())


def separator_id(tokenizer: Any) -> int:
    """The token between context and completion: the end token, as in the official code, or a separator of its own."""
    own = getattr(tokenizer, "sep_token_id", None)
    return tokenizer.eos_token_id if own is None else own


def encode(
    example: Example,
    tokenizer: Any,
    max_length: int | None = None,
    prompt_loss: bool = False,
    end_loss: bool = True,
) -> dict[str, list[int]]:
    """Token ids `context <eos> " " + reference <eos>`; labels are -100 up to the separator and the ids after it.

    Both lists have the same length, at most `max_length` (cut at the right, as the official code does at 512).
    `prompt_loss` and `end_loss=False` repeat two mistakes of earlier reproductions: labels on the prompt too, none on
    the end token. Raises ValueError if the cut leaves nothing of the reference. Follows gpt2_encode.py of
    microsoft/LoRA at c4593f0.
    """
    context = tokenizer(example.context, add_special_tokens=False)["input_ids"] + [separator_id(tokenizer)]
    completion = tokenizer(f" {example.reference}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    if max_length is not None and len(context) >= max_length:
        raise ValueError(
            f"max_length {max_length} leaves no room for a reference: the context {example.context!r} and its "
            f"separator take {len(context)} tokens; allow more"
        )
    labels = context + completion if prompt_loss else [-100] * len(context) + completion
    if not end_loss:
        labels[-1] = -100
    return {"input_ids": (context + completion)[:max_length], "labels": labels[:max_length]}


def data_fingerprint(examples: list[Example]) -> str:
    """The fingerprint (`files.fingerprint`) of the rows' texts and, where they are of categories, which are seen."""
    return fingerprint(
        (example.mr, example.context, example.reference, *([] if example.seen is None else [str(example.seen)]))
        for example in examples
    )


def _examples(rows: list[tuple[str, str]], protocol: str) -> list[Example]:
    context = functools.cache(to_context)  # several rows share a meaning representation
    reference = pretokenise if protocol == "lora" else str.strip
    return [Example(mr, context(mr, protocol), reference(text)) for mr, text in rows]


def _require(kind: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"unknown {kind} {value!r}: expected one of {', '.join(known)}")


def _find(split: str, data_dir: Path | None) -> Path:
    name, checksum = FILES[split]
    url = f"{RELEASE_URL}/{name}"
    return find_file(f"e2e/{name}", data_dir, lambda: _download(url, checksum), published=f"{RELEASE_PAGE}: {url}")


def _download(url: str, checksum: str) -> bytes:
    content = download(url)
    _check(content, checksum, url)
    return content


def _read(path: Path, checksum: str) -> list[tuple[str, str]]:
    content = path.read_bytes()
    _check(content, checksum, path)
    try:
        _, *rows = csv.reader(
            io.StringIO(content.decode())
        )  # with the line breaks inside quoted references as they are
        if not rows or (odd := [number for number, row in enumerate(rows, start=1) if len(row) != 2]):
            raise ValueError(f"row {odd[0]} with {len(rows[odd[0] - 1])} columns" if rows else "no row")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path}: expected rows of {COLUMNS} in UTF-8, found {error}; use the file of {RELEASE_PAGE}"
        ) from error
    return [(mr, reference) for mr, reference in rows]


def _check(content: bytes, checksum: str, source: Path | str) -> None:
    """Refuse a file that is not the released one. Wrong columns come first: they say more than a checksum."""
    header = content.split(b"\n", 1)[0].decode(errors="replace").strip().replace('"', "")
    if header != COLUMNS:
        raise ValueError(
            f"{source}: expected the columns {COLUMNS!r}, found {header[:80]!r}; use that of {RELEASE_PAGE}"
        )
    check_sha256(content, checksum, source, f"replace it by the file of {RELEASE_PAGE}")
