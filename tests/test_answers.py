"""What the demonstration answers: each row as its adapter alone does, and a sentence for what it cannot answer."""

from __future__ import annotations

import pytest

from demo import cards
from lora import LoRAConfig
from models import load_model, load_tokenizer
from serving import answers as answering
from serving.adapters import AdapterBank
from serving.answers import BASE, MOST_ROWS, SENTENCE_LENGTH, VALUE_LENGTH, Answer, Answers, classify, write
from tasks.catalogue import glue_task
from tasks.e2e.beam_search import DecodingSettings
from test_serving import save

SLOTS = {"name": "Quillon", "eatType": "pub", "food": "French", "near": ""}
SENTENCES = ["The bread was hardly fresh.", "The coffee was rich."]
TASKS = {
    "sentiment": glue_task("sentiment-builtin"),
    "paraphrase": glue_task("paraphrase-builtin"),
    "another": glue_task("sentiment-builtin"),
}


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    monkeypatch.setattr(answering, "DECODING", DecodingSettings(beams=2, max_new_tokens=8))


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """gpt2-mini with two adapters whose pairs are random, and its tokenizer."""
    folder, model = tmp_path_factory.mktemp("writer"), load_model("gpt2-mini").eval()
    folders = [save(folder / name, model, LoRAConfig(r)) for name, r in (("thin", 1), ("thick", 4))]
    bank = AdapterBank(model)
    for place in folders:
        bank.add(place.name, place)
    return bank, load_tokenizer("gpt2-mini")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """MiniLM with an adapter and a head for each of TASKS, all random; its tokenizer, and the tasks."""
    folder, model = tmp_path_factory.mktemp("classifier"), load_model("minilm", 2).eval()
    folders = [save(folder / name, model, LoRAConfig(rank), 2) for rank, name in enumerate(TASKS, 1)]
    bank = AdapterBank(model)
    for place in folders:
        bank.add(place.name, place)
    return bank, load_tokenizer("minilm"), TASKS


def test_a_task_without_classes_is_answered_by_its_number(tmp_path):
    model = load_model("minilm", 1).eval()
    bank = AdapterBank(model)
    bank.add("alike", save(tmp_path / "alike", model, LoRAConfig(1), 1))
    (row,) = classify(bank, load_tokenizer("minilm"), {"alike": glue_task("stsb")}, SENTENCES, ["alike"]).rows
    assert -100 < float(row.text) < 100


def test_each_adapter_writes_in_the_batch_what_it_writes_alone(writer):
    names = [BASE, "thin", "thick", "thin"]
    answers = write(*writer, SLOTS, names)
    assert [row.adapter for row in answers.rows] == names and answers.same_alone
    for row, name in zip(answers.rows, names, strict=True):
        assert row.text == write(*writer, SLOTS, [name]).rows[0].text and row.seconds > 0
    assert answers.seconds > 0 and len({row.text for row in answers.rows}) == 3


def test_empty_slots_are_left_out_and_blanks_and_unknown_values_are_read(writer):
    (row,) = write(*writer, SLOTS | {"area": "  "}, ["thin"]).rows
    (same,) = write(*writer, {"name": " Quillon ", "eatType": "pub", "food": "French"}, ["thin"]).rows
    (other,) = write(*writer, SLOTS | {"food": "Zambian"}, ["thin"]).rows
    assert row.text == same.text != other.text


def test_a_sentence_is_read_by_the_adapters_of_its_task_and_a_pair_by_those_of_pairs(classifier):
    answers = classify(*classifier, SENTENCES, [*TASKS])
    one, other = ((sentence,) for sentence in SENTENCES)
    assert [(row.adapter, row.read) for row in answers.rows] == [
        ("sentiment", one), ("sentiment", other), ("paraphrase", (*SENTENCES,)), ("another", one), ("another", other)
    ]  # fmt: skip
    assert answers.same_alone
    for row in answers.rows:
        label, _, share = row.text.partition(" ")
        assert label in TASKS[row.adapter].labels and 50 <= int(share.strip("(%)")) <= 100
    (alone,) = classify(*classifier, ["", SENTENCES[1]], ["sentiment"]).rows
    assert (alone.read, alone.text) == (answers.rows[1].read, answers.rows[1].text)


MANY = ["thin"] * (MOST_ROWS + 1)
WRITE = {
    "no slot": ({}, ["thin"], "Fill in a slot first"),
    "blank slots": ({"name": " ", "area": "\n"}, ["thin"], "Fill in a slot first"),
    "a long value": ({"near": "x" * (VALUE_LENGTH + 1)}, ["thin"], "60 characters, 'near' has 61"),
    "a value of signs": ({"name": "—!"}, ["thin"], "change 'name'"),
    "a value with brackets": ({"name": "a], food[b"}, ["thin"], "no square brackets: change 'name'"),
    "another slot": ({"name": "Quillon", "colour": "red"}, ["thin"], "each slot at most once"),
    "too many tokens": (dict.fromkeys(("name", "near", "food", "area"), "ж" * VALUE_LENGTH), ["thin"], "shorten some"),
    "no adapter": (SLOTS, [], "1 to 8 rows, these would be 0"),
    "many adapters": (SLOTS, MANY, "1 to 8 rows, these would be 9"),
    "an unknown adapter": (SLOTS, ["<b>"], "There is no such adapter: choose among no adapter, thin, thick"),
}
CLASSIFY = {
    "no sentence": (["", " \n"], ["sentiment"], "Write a sentence first"),
    "a long sentence": (["a" * (SENTENCE_LENGTH + 1), ""], ["sentiment"], "300 characters, one has 301"),
    "too many tokens": (["!" * 200, ""], ["sentiment"], "128 tokens at most"),
    "half a pair": (
        ["", "Alone."],
        ["sentiment", "paraphrase"],
        "'paraphrase' compares two sentences, found 1: write both",
    ),
    "no adapter": (SENTENCES, [], "1 to 8 rows, these would be 0"),
    "many adapters": (SENTENCES, ["sentiment"] * 5, "1 to 8 rows, these would be 10"),
    "an unknown adapter": (SENTENCES, [BASE], "There is no such adapter: choose among sentiment"),
}


@pytest.mark.parametrize("case", WRITE)
def test_slots_that_cannot_be_answered_are_refused_with_a_sentence(writer, case):
    slots, names, message = WRITE[case]
    with pytest.raises(ValueError, match=message):
        write(*writer, slots, names)


@pytest.mark.parametrize("case", CLASSIFY)
def test_sentences_that_cannot_be_answered_are_refused_with_a_sentence(classifier, case):
    sentences, names, message = CLASSIFY[case]
    with pytest.raises(ValueError, match=message):
        classify(*classifier, sentences, names)


def test_what_is_typed_and_what_is_generated_are_text_on_the_page_and_no_html():
    said = "<script>alert(1)</script>"
    html = cards(Answers((Answer(said, (said,), said, 0.5),), 0.25, False))
    assert "<script" not in html and html.count("&lt;script&gt;") == 3
    assert "1 rows in one batch: <b>250 ms</b>. One after the other: 500 ms, answers that differ." in html


@pytest.mark.parametrize("sentences", ["Bad", [None, "Good."], None])
def test_what_is_no_list_of_sentences_is_refused(classifier, sentences):
    with pytest.raises(TypeError, match="expected a list of texts as sentences"):
        classify(*classifier, sentences, ["sentiment"])


def test_a_slot_that_is_no_text_is_refused_and_so_are_three_sentences_for_a_pair(writer, classifier):
    with pytest.raises(TypeError, match="expected a list of texts as slots"):
        write(*writer, {"name": None}, ["thin"])
    with pytest.raises(ValueError, match="'paraphrase' compares two sentences, found 3"):
        classify(*classifier, [*SENTENCES, "A third."], ["paraphrase"])
