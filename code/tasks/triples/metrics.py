"""BLEU, METEOR and TER of generated text: the scores of Tables 13 and 14.

    >>> score(predictions, references)    # as GenerationEval prints them (BLEU times 100 there)
    {"BLEU": 0.553, "METEOR": 0.41, "TER": 0.39}

The official code (microsoft/LoRA at c4593f0, examples/NLG) lower-cases every text and sets each character that is no
letter, digit or underscore apart (gpt2_decode.py, `--tokenize --lower`). It takes the first six references of an input
and runs eval.py of https://github.com/WebNLG/GenerationEval (at 8067849):

- BLEU: multi-bleu-detok.perl, the corpus score over mteval-v13a tokens.
- METEOR: version 1.5 with `-l en -norm`, over NLTK's word tokens. E2E's METEOR has the same options, but drops
  punctuation first.
- TER: pyter3 for each output against its best reference, then the mean. It is a mean of ratios and not, as in
  tercom, the ratio of all edits to all words of the references.

Its `nltk.word_tokenize` first splits a text into sentences; over texts set apart in this way that changes no token. One
slip is not repeated. gpt2_decode.py ends its files with a newline, which eval.py takes for one more output: its METEOR
then stops with an error, and that output's TER counts as 1 (on 1,862 outputs with a TER of 0.39 it adds 0.0003).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pyter
from nltk.tokenize import NLTKWordTokenizer

from tasks.e2e import meteor
from tasks.e2e.data import Inputs
from tasks.e2e.metrics import bleu, check_texts

REFERENCES = 6  # of an input, at most: `--ref_num 6`
METRICS = ("BLEU", "METEOR", "TER")


def set_apart(text: str) -> str:
    """Lower-case words and other characters, each apart: `It's 2,702.0` -> `it ' s 2 , 702 . 0`."""
    return " ".join(" ".join(re.split(r"(\W)", text.lower())).split())


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """BLEU, METEOR and TER of a corpus as fractions; of TER less is better, and it may exceed 1.

    `references[i]` are all the references of `predictions[i]`. METEOR is None if `meteor_unavailable()` says why.
    Raises ValueError for empty lists or different lengths, and TypeError for anything but lists of strings.
    """
    check_texts(predictions, references)
    texts, targets = _texts(predictions, references)
    return _of_corpus(texts, targets, _each_ter(texts, targets))


def score_texts(inputs: list[Inputs], texts: list[str], settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores of all texts and the TER of each; where categories are seen or unseen, `BLEU seen` and so on too.

    Scores over no text at all are left out. Where METEOR fails for all texts it is not asked for a part of them: so
    `meteor_unavailable()` still says why.
    """
    outputs, references = _texts(texts, [item.references for item in inputs])
    ters = _each_ter(outputs, references)
    if all(item.seen is None for item in inputs):
        return _of_corpus(outputs, references, ters), [{"TER": ter} for ter in ters]
    seen, scores = [item.seen for item in inputs], {}
    for part, kept in (("all", (True, False)), ("seen", (True,)), ("unseen", (False,))):
        rows = [row for *row, known in zip(outputs, references, ters, seen, strict=True) if known in kept]
        if rows:
            of_part = _of_corpus(*zip(*rows, strict=True), with_meteor=None not in scores.values())
            scores |= {f"{metric} {part}": value for metric, value in of_part.items()}
    return scores, [{"seen": known, "TER": ter} for known, ter in zip(seen, ters, strict=True)]


def _texts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    targets = [[set_apart(text) for text in texts[:REFERENCES]] for texts in references]
    return [set_apart(text) for text in predictions], targets


def _of_corpus(
    texts: Sequence[str], references: Sequence[Sequence[str]], ters: Sequence[float], with_meteor: bool = True
) -> dict[str, float | None]:
    tokens, reference_tokens = [_tokens(text) for text in texts], [[*map(_tokens, targets)] for targets in references]
    of_meteor = meteor.METEOR.score(tokens, reference_tokens) if with_meteor else None
    return dict(zip(METRICS, (bleu(texts, references), of_meteor, fmean(ters)), strict=True))


def _each_ter(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Each output's edits (insertions, deletions, substitutions and shifts) for a word of its best reference."""
    return [
        min(pyter.ter(_tokens(text), words) if (words := _tokens(target)) else 1.0 for target in dict.fromkeys(targets))
        for text, targets in zip(texts, references, strict=True)
    ]


def _tokens(text: str) -> list[str]:
    return NLTKWordTokenizer().tokenize(text)
