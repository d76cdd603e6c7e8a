"""The two built-in sentence tasks: always the same, no sentence twice, labels that are true and not given away."""

from __future__ import annotations

import hashlib
import itertools
import random
import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from tasks.catalogue import glue_task
from tasks.glue.generator import ACTS, BUILTIN, OPPOSITES, PEOPLE, REVIEWED, VERDICTS, generate

SENTIMENT, PARAPHRASE = BUILTIN
DIGESTS = {SENTIMENT: "b169b2a00b2d0590", PARAPHRASE: "0107184d4fc7e238"}


def words(text):
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("name", BUILTIN)
def test_the_rows_are_those_of_the_declared_version(name):
    """Whoever changes a sentence raises the task's version in tasks/catalogue.py, and then this digest."""
    rows = [row for split in ("train", "validation") for row in generate(name, split)]
    assert glue_task(name).version == 2
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", BUILTIN)
def test_the_sizes_are_the_declared_ones(name):
    task = glue_task(name)
    assert (len(generate(name, "train")), len(generate(name, "validation"))) == (task.train_rows, task.test_inputs)
    assert {len(texts) for texts, _ in generate(name, "train")} == {len(task.columns)}


@pytest.mark.parametrize("name", BUILTIN)
def test_no_sentence_is_twice_in_all_the_splits(name):
    rows = generate(name, "train") + generate(name, "validation")
    sentences = [text for texts, _ in rows for text in texts]
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_labels_are_balanced(name, split):
    labels = [label for _, label in generate(name, split)]
    assert set(labels) == {0, 1} and 0.45 < np.mean(labels) < 0.55


@pytest.mark.parametrize("name", BUILTIN)
def test_every_sentence_is_written_out(name):
    for texts, _ in generate(name, "train"):
        for text in texts:
            assert re.fullmatch(r"[A-Z][A-Za-z ,:;]+[a-z]\.", text) and "  " not in text


# --- the labels are true ----------------------------------------------------------------------------------------------


def test_a_review_agrees_with_its_verdict():
    seen = 0
    for (text,), label in generate(SENTIMENT, "train"):
        for thing, (side, verdict) in itertools.product(REVIEWED, enumerate(zip(*VERDICTS, strict=True))):
            for frame in verdict:
                if re.search(rf"\b{re.escape(frame.format(thing=thing))}\b", text, re.IGNORECASE):
                    seen += 1
                    assert label == side, text
    assert seen > 1_000


SIGNS = {"": 1, "really ": 1, "not ": -1, "never ": -1, "hardly ": -1, "far from ": -1, "anything but ": -1}
CONTRAST = re.compile(r", but |^although |, even though |; all the same, ", re.IGNORECASE)


def test_an_opinion_agrees_with_the_label_and_a_concession_disagrees():
    seen = {True: 0, False: 0}
    parts = [(part, *words) for parts in REVIEWED.values() for part, words in parts.items()]
    for (text,), label in generate(SENTIMENT, "train"):
        contrast = bool(CONTRAST.search(text))
        for part, against, favourable in parts:
            for found in re.finditer(rf"\bthe {part} was ({'|'.join(SIGNS)})(\w+)\b", text, re.IGNORECASE):
                if found[2] in against + favourable:
                    sign = SIGNS[found[1].lower()] * (1 if found[2] in favourable else -1)
                    assert (sign > 0) == (bool(label) ^ contrast), text
                    seen[contrast] += 1
    assert min(seen.values()) > 100


def meaning_of(text, choices):
    """The text with each of the choices' words replaced by the first of its synonyms."""
    for first, *others in choices:
        for other in others:
            text = re.sub(rf"\b{other}\b", first, text)
    return text


def comparison(text):
    """(dimension, the one with more of it, the other, degree), or None if the sentence compares nobody."""
    text = meaning_of(text.lower().rstrip("."), (*PEOPLE, ("much", "far"), ("slightly", "a little")))
    match = re.fullmatch(r"the (?P<a>.+) is (?P<degree>\w+) (?P<adjective>\w+) than the (?P<b>.+)", text)
    match = match or re.fullmatch(
        r"compared with the (?P<b>.+), the (?P<a>.+) is (?P<degree>\w+) (?P<adjective>\w+)", text
    )
    if not match:
        return None
    more, less = next(pair for pair in OPPOSITES if match["adjective"] in pair)
    order = (match["a"], match["b"]) if match["adjective"] == more else (match["b"], match["a"])
    return more, less, *order, match["degree"]


def order(text):
    """(who, what, later who, later what), or None if the sentence tells no order."""
    text = meaning_of(text.lower().rstrip("."), (*PEOPLE, *ACTS))
    who, what = "|".join(choice[0] for choice in PEOPLE), "|".join(choice[0] for choice in ACTS)
    one, two = f"the ({who}) ({what})", f"the ({who}) ({what})"
    for frame, later_first in (
        (f"{one} before {two}", False),
        (f"after {one}, {two}", False),
        (f"first {one}, and then {two}", False),
        (f"{one} after {two}", True),
        (f"before {one}, {two}", True),
    ):
        if match := re.fullmatch(frame, text):
            found = match.groups()
            return found[2:] + found[:2] if later_first else found
    return None


@pytest.mark.parametrize("parse", [comparison, order])
def test_a_pair_is_a_paraphrase_exactly_if_both_say_the_same(parse):
    parsed = [(parse(one), parse(two), label) for (one, two), label in generate(PARAPHRASE, "train") if parse(one)]
    assert len(parsed) > 300
    assert all((one == two) == bool(label) for one, two, label in parsed)
    assert all(two for _, two, _ in parsed)


def test_the_same_words_in_another_order_may_say_the_same_or_not():
    pairs = [(*map(words, texts), label) for texts, label in generate(PARAPHRASE, "train")]
    labels = [label for one, two, label in pairs if sorted(one) == sorted(two)]
    assert min(labels.count(0), labels.count(1)) > 3


# --- and are not given away -------------------------------------------------------------------------------------------


def accuracy_of_word_counts(name):
    train, validation = generate(name, "train"), generate(name, "validation")
    vectors = CountVectorizer(token_pattern=r"\w+", binary=True)
    model = LogisticRegression(max_iter=500)
    model.fit(vectors.fit_transform([" ".join(texts) for texts, _ in train]), [label for _, label in train])
    return model.score(
        vectors.transform([" ".join(texts) for texts, _ in validation]), [label for _, label in validation]
    )


def test_the_words_of_a_review_say_much_but_not_all():
    assert 0.65 < accuracy_of_word_counts(SENTIMENT) < 0.85


def test_the_words_of_a_pair_do_not_say_all():
    assert accuracy_of_word_counts(PARAPHRASE) < 0.85


def test_the_share_of_common_words_does_not_say_all():
    rows = generate(PARAPHRASE, "train")
    sets = [[set(words(text)) for text in texts] for texts, _ in rows]
    overlap = np.array([len(one & two) / len(one | two) for one, two in sets])
    labels = np.array([label for _, label in rows])
    assert max(np.mean((overlap >= cut) == labels) for cut in np.unique(overlap)) < 0.8


def test_the_rows_do_not_depend_on_the_shared_random_numbers():
    def anew(seed):
        random.seed(seed)
        generate.cache_clear()
        return generate(SENTIMENT, "validation")

    assert anew(1) == anew(2)
