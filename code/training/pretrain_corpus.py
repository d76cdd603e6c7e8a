"""The texts that `gpt2-mini` is pre-trained on: a folder of text files -> a tokenizer and token numbers.

tokens, held_out = prepare(corpus, work, start_from)    # of the training documents, and of one in a hundred
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer

END = "<|endoftext|>"
VOCABULARY = 8192


def text_files(corpus: Path) -> list[Path]:
    """The corpus's files by name; FileNotFoundError if it has none."""
    files = sorted([*corpus.glob("*.txt"), *corpus.glob("*.txt.gz")])
    if not files:
        raise FileNotFoundError(f"no *.txt or *.txt.gz in {corpus}; give --corpus a folder of text files")
    return files


def corpus_identity(corpus: Path, steps: int, start_from: Path | None) -> str:
    """Eight hex digits for all that decides what a pre-training learns: its texts, steps and start."""
    digest = hashlib.sha256(f"{steps}".encode())
    of_start = [start_from / name for name in ("model.safetensors", "vocab.json", "merges.txt")] if start_from else []
    for file in text_files(corpus) + of_start:
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:8]


def documents(corpus: Path) -> Iterator[str]:
    """Each document of every `*.txt` and `*.txt.gz` of the folder; blank lines separate them."""
    for file in text_files(corpus):
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as handle:
            lines: list[str] = []
            for line in handle:
                if line.strip():
                    lines.append(line.rstrip("\n"))
                elif lines:
                    yield "\n".join(lines)
                    lines = []
            if lines:
                yield "\n".join(lines)


def is_held_out(document: str) -> bool:
    return int(hashlib.sha256(document.encode()).hexdigest(), 16) % 100 == 0


def prepare(corpus: Path, work: Path, earlier: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Train the BPE on the training documents (or take an earlier one) and encode both splits; cached in `work`."""
    if not (work / "held_out.npy").exists():
        if earlier:
            tokenizer = read_tokenizer(earlier)
        else:
            tokenizer = ByteLevelBPETokenizer()
            training = (document for document in documents(corpus) if not is_held_out(document))
            tokenizer.train_from_iterator(training, vocab_size=VOCABULARY, special_tokens=[END])
        tokenizer.save_model(str(work))
        end = tokenizer.token_to_id(END)
        parts: dict[str, list[int]] = {"train": [], "held_out": []}
        for document in documents(corpus):
            parts["held_out" if is_held_out(document) else "train"] += [*tokenizer.encode(document).ids, end]
        for name, ids in parts.items():
            np.save(work / f"{name}.npy", np.array(ids, dtype=np.uint16))
    return _tokens(work / "train.npy"), _tokens(work / "held_out.npy")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise ValueError, with the path, for a damaged file: its reader raises errors of many kinds."""
    try:
        yield
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(
            f"expected numbers or a tokenizer in {path}, found {found}; delete it to start anew"
        ) from error


def read_tokenizer(folder: Path) -> ByteLevelBPETokenizer:
    with reading(folder):
        return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def _tokens(path: Path) -> np.ndarray:
    with reading(path), path.open("rb") as file:
        tokens = np.load(file, allow_pickle=False)
        if not isinstance(tokens, np.ndarray) or tokens.dtype != np.uint16:
            raise TypeError(f"a {type(tokens).__name__}")
    return tokens
