"""WebNLG 2017 and DART 1.1.1, the data of Tables 14 and 13: rows of (triples, text) as a model reads them.

The files and the format are those of the official code (microsoft/LoRA at c4593f0, examples/NLG):

    Aarhus : leaderName : Jacob_Bundsgaard | Aarhus : country : Denmark    # WebNLG; DART's relations in lower case

One row for each text; of WebNLG only the texts marked `good`. Nothing is pre-tokenised: there is one text protocol,
`lora`. WebNLG's test set has five categories that its training set lacks: a row says whether its category is `seen`.

`files.find_file` finds `webnlg/dev.json` or `dart/dart-v1.1.1-full-dev.json`, or downloads it from the official
repository. Every file is checked by the id of its git blob. They are never shipped with this project (WebNLG is
CC BY-NC-SA 4.0, DART MIT). For machines that only have the development files, `load_webnlg_parts` and
`load_dart_parts` cut them into three splits. `load_builtin` needs no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from files import check_git_blob, download, find_file
from tasks.e2e.data import Example
from tasks.texts import require_lists_of_texts
from tasks.triples import generator

COMMIT = "c4593f060e6a368d7bb5af5273b8e42810cdef90"
PUBLISHED = f"https://raw.githubusercontent.com/microsoft/LoRA/{COMMIT}/examples/NLG/data"
SEEN = (  # categories of the training set, as format_converting_webnlg.py lists them; the paper says nine
    "Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam", "University",
    "WrittenWork",
)  # fmt: skip
UNSEEN = ("Artist", "Athlete", "CelestialBody", "MeanOfTransportation", "Politician")
HELD_OUT = ("City", "ComicsCharacter", "Monument")  # the smallest of the development file: unseen in its parts
PART_OF = {0: "test", 1: "dev"}  # of every ten inputs; the others train
PROTOCOL = "lora"

Triple = tuple[str, str, str]
Entry = tuple[str, list[Triple], list[str]]  # category ("" in DART), triples as released, texts


def _webnlg_entry(number: int, entry: Any) -> Entry:
    facts = entry[str(number)]
    triples = [(triple["subject"], triple["property"], triple["object"]) for triple in facts["modifiedtripleset"]]
    return facts["category"], triples, [text["lex"] for text in facts["lexicalisations"] if text["comment"] == "good"]


def _dart_entry(_: int, entry: Any) -> Entry:
    triples = [(subject, relation, value) for subject, relation, value in entry["tripleset"]]
    return "", triples, [annotation["text"] for annotation in entry["annotations"]]


@dataclass(frozen=True)
class Corpus:
    """A data set: its files, and how an entry of them is read."""

    folder: str  # here
    published: str  # folder in the official repository
    files: dict[str, tuple[str, str]]  # split -> file, id of its git blob
    entries: Callable[[Any], Iterable[Any]]  # of the whole content
    read: Callable[[int, Any], Entry]  # an entry and its number, from 1
    form: str  # of an entry, in words
    relation: Callable[[str], str]  # as a model reads it
    categories: Collection[str]


WEBNLG = Corpus(
    "webnlg", "webnlg_challenge_2017",
    {
        "train": ("train.json", "461766d1fe902bd659b821a03f49310c22403686"),
        "dev": ("dev.json", "180f096ff49a7e597dd7c507ea0c5441e839b770"),
        "test": ("test.json", "7f552799b7e3b5badf95b725c20d955e0886811e"),
    },
    lambda content: content["entries"], _webnlg_entry,
    '{"1": {"category", "modifiedtripleset": [{"subject", "property", "object"}], "lexicalisations": '
    '[{"comment", "lex"}]}} in "entries"',
    str, SEEN + UNSEEN,
)  # fmt: skip
DART = Corpus(
    "dart", "dart",
    {
        "train": ("dart-v1.1.1-full-train.json", "66d6ce4aeb5d01c318c7fc15d7747ef39ea320be"),
        "dev": ("dart-v1.1.1-full-dev.json", "e3a7a497677e7edd9c45a3aaadb3ab8fd5493f75"),
        "test": ("dart-v1.1.1-full-test.json", "c3de833701dcd475ff3bf0b72cd96e13aeeb6b68"),
    },
    list, _dart_entry, '{"tripleset": [[subject, relation, object]], "annotations": [{"text"}]} in a list', str.lower,
    ("",),
)  # fmt: skip


def load_webnlg(split: str, protocol: str = PROTOCOL, data_dir: Path | None = None) -> list[Example]:
    """Rows of the real data in file order; the development file has 2,258, for 872 entries.

    Raises FileNotFoundError if no place has the file and it cannot be downloaded; ValueError for a file that is no
    JSON, of another schema, of an unknown category, or not the released one.
    """
    return _examples(_load(WEBNLG, split, protocol, data_dir), WEBNLG, SEEN)


def load_dart(split: str, protocol: str = PROTOCOL, data_dir: Path | None = None) -> list[Example]:
    """Rows of the real data in file order; the development file has 6,980, for 2,768 entries.

    Raises as `load_webnlg`.
    """
    return _examples(_load(DART, split, protocol, data_dir), DART)


def load_webnlg_parts(split: str, protocol: str = PROTOCOL, data_dir: Path | None = None) -> list[Example]:
    """A part of WebNLG's development file; the categories HELD_OUT are in its test part alone, as unseen ones."""
    _require(split, protocol)
    seen = tuple(category for category in SEEN if category not in HELD_OUT)
    return _part(_examples(_load(WEBNLG, "dev", protocol, data_dir), WEBNLG, seen), split)


def load_dart_parts(split: str, protocol: str = PROTOCOL, data_dir: Path | None = None) -> list[Example]:
    """A part of DART's development file."""
    _require(split, protocol)
    return _part(_examples(_load(DART, "dev", protocol, data_dir), DART), split)


def load_builtin(split: str, protocol: str = PROTOCOL, data_dir: Path | None = None) -> list[Example]:
    """Rows of the `quick` scale, made by `generator.py`: no file, no network."""
    _require(split, protocol)
    return _examples(generator.generate(split), WEBNLG, generator.SEEN)


def linearise(triples: Iterable[Triple]) -> str:
    """`subject : relation : object | subject : relation : object`, as format_converting_webnlg.py writes triples.

    Raises TypeError for anything but triples of texts.
    """
    triples = list(triples)
    require_lists_of_texts(triples, "triples")
    if odd := [triple for triple in triples if len(triple) != 3]:
        raise TypeError(f"expected triples of texts, found {odd[0]!r}")
    return " | ".join(" : ".join(triple) for triple in triples)


def _examples(entries: Iterable[Entry], corpus: Corpus, seen: Collection[str] | None = None) -> list[Example]:
    examples = []
    for category, triples, texts in entries:
        read = [(subject, corpus.relation(relation), value) for subject, relation, value in triples]
        known = None if seen is None else category in seen
        examples += [Example(linearise(triples), linearise(read), text, known) for text in texts]
    return examples


def _part(examples: list[Example], split: str) -> list[Example]:
    """Of every ten inputs that are not unseen the first is for `test` and the second for `dev`."""
    contexts = dict.fromkeys(example.context for example in examples if example.seen is not False)
    part = {context: PART_OF.get(number % 10, "train") for number, context in enumerate(contexts)}
    return [example for example in examples if part.get(example.context, "test") == split]


def _load(corpus: Corpus, split: str, protocol: str, data_dir: Path | None) -> list[Entry]:
    _require(split, protocol)
    name, blob = corpus.files[split]
    url = f"{PUBLISHED}/{corpus.published}/{name}"
    remedy = f"replace it by {url}"

    def fetch() -> bytes:
        content = download(url)
        check_git_blob(content, blob, url, "try again")
        return content

    path = find_file(f"{corpus.folder}/{name}", data_dir, fetch, url)
    content = path.read_bytes()
    entries = _entries(content, corpus, path, remedy)  # before the checksum: what is wrong in a file says more
    check_git_blob(content, blob, path, remedy)
    return entries


def _entries(content: bytes, corpus: Corpus, source: Path, remedy: str) -> list[Entry]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no whole JSON ({error}); {remedy}") from error
    entries = []
    try:
        for number, entry in enumerate(corpus.entries(parsed), start=1):
            category, triples, texts = corpus.read(number, entry)
            if odd := [part for part in (category, *chain(*triples), *texts) if not isinstance(part, str)]:
                raise TypeError(f"{odd[0]!r} is no text")
            entries.append((category, triples, texts))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        place, found = f"{source}, entry {len(entries) + 1}", f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: expected {corpus.form}, found {found}; {remedy}") from error
    if unknown := {category for category, _, _ in entries} - {*corpus.categories}:
        known = ", ".join(corpus.categories)
        raise ValueError(f"{source} has the unknown category {min(unknown)!r}: expected one of {known}; {remedy}")
    return entries


def _require(split: str, protocol: str) -> None:
    if split not in WEBNLG.files:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(WEBNLG.files)}")
    if protocol != PROTOCOL:
        raise ValueError(f"triples have the text protocol {PROTOCOL!r} alone, found {protocol!r}; leave it out")
