"""The official code's own text of E2E: the files that the paper's models were trained and scored on.

`examples/NLG/data/e2e/{train,valid,test}.txt` of microsoft/LoRA at c4593f0, a row a line: `context||reference`. They
are found as `e2e_lora_format/<file>` in the places of `files.py`, else downloaded into the cache, and checked by their
git blob ids. `data.py` rebuilds the same text from the release, but for white space in one reference of a hundred.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from files import NotAsked, check_git_blob, download, find_file
from tasks.e2e.data import LORA_SLOTS, Example

OFFICIAL_URL = (
    "https://raw.githubusercontent.com/microsoft/LoRA/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLG/data/e2e"
)
FILES = {  # split -> file, git blob id
    "train": ("train.txt", "2f92a2790c00a48574dcc89465a326f33d7e7cc6"),
    "dev": ("valid.txt", "94f87112e11198710d65a1d5dc7d0b8d9155a07d"),
    "test": ("test.txt", "084da9f4409d98058bcb020614afa83824440484"),
}
RELEASED_SLOTS = {renamed: slot for slot, renamed in LORA_SLOTS.items()}

logger = logging.getLogger(__name__)


def load_official(data_dir: Path | None = None) -> dict[str, list[Example]] | None:
    """The rows by split, in file order; None, which is said, where one of the files is out of reach.

    Then nothing of it is used: no model is trained on one text and scored on the other. Raises ValueError for a file
    with another blob id or a download that was cut off, and NotAsked where nothing may be fetched.
    """
    try:
        paths = {split: _find(split, data_dir) for split in FILES}
    except NotAsked:
        raise
    except FileNotFoundError as error:
        logger.warning("the official text of E2E cannot be had, and is rebuilt from the released data: %s", error)
        return None
    return {split: _read(path, FILES[split][1]) for split, path in paths.items()}


def to_mr(context: str) -> str:
    """The raw meaning representation of an official context: what `data.to_context` made it of."""
    slots = [slot.partition(" : ")[::2] for slot in context.split(" | ")]
    mr = ", ".join(f"{RELEASED_SLOTS.get(slot, slot)}[{value}]" for slot, value in slots)
    return re.sub(r"£ (\d)", r"£\1", re.sub(r"£ (\d+) - (\d+)", r"£\1-\2", mr))


def _find(split: str, data_dir: Path | None) -> Path:
    name, blob = FILES[split]
    url = f"{OFFICIAL_URL}/{name}"
    return find_file(f"e2e_lora_format/{name}", data_dir, lambda: _checked(download(url), blob, url), published=url)


def _checked(content: bytes, blob: str, source: Path | str) -> bytes:
    check_git_blob(content, blob, source, f"replace it by the file of {OFFICIAL_URL}")
    return content


def _read(path: Path, blob: str) -> list[Example]:
    lines = _checked(path.read_bytes(), blob, path).decode().rstrip("\n").split("\n")
    rows = [line.strip().split("||")[:2] for line in lines]  # as format_converting_e2e.py takes them apart
    return [Example(to_mr(context), context, reference.strip()) for context, reference in rows]
