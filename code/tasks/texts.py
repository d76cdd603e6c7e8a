"""Lists of texts, checked where they enter: a plain string is a sequence of strings too, and would pass for a list."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence


def require_texts(texts: object, name: str) -> None:
    """Raise TypeError unless `texts` is a list (or other sequence) of strings; the message calls it `name`."""
    _require_sequence(texts, name, "texts")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"expected a list of texts as {name}, found {_described(text)} at index {index}")


def require_lists_of_texts(lists: object, name: str) -> None:
    """Raise TypeError unless `lists` is a list (or other sequence) of lists of strings; the message calls it `name`."""
    _require_sequence(lists, name, "lists of texts")
    for index, texts in enumerate(lists):
        require_texts(texts, f"{name}[{index}]")


def _require_sequence(value: object, name: str, items: str) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"expected a list of {items} as {name}, found {_described(value)}: make it a list")


def _described(value: object) -> str:
    kind = "a plain string" if isinstance(value, str) else f"an object of type {type(value).__name__}"
    return f"{kind}, {reprlib.repr(value)}"
