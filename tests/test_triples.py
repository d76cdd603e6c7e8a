"""DART and WebNLG: their files and formats, the scores of Tables 13 and 14, and what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

import files
from experiments.catalogue import find
from publish.tables import notes, table
from tasks.catalogue import TASKS
from tasks.e2e import meteor
from tasks.e2e.data import Example, data_fingerprint, group_by_context
from tasks.e2e.meteor import meteor_unavailable
from tasks.triples import data, metrics
from tasks.triples.data import DART, WEBNLG, load_builtin, load_dart, load_dart_parts, load_webnlg, load_webnlg_parts

GOLDEN = json.loads((Path(__file__).parent / "generation_eval_golden.json").read_text(encoding="utf-8"))
TEXTS = [case["output"] for case in GOLDEN["texts"]]
REFERENCES = [case["references"] for case in GOLDEN["texts"]]


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def webnlg_file(category: str = "Airport", **facts) -> str:
    triples = [
        {"subject": "Amber_Field", "property": "cityServed", "object": "Orrin"},
        {"subject": "Amber_Field", "property": "runwayLength", "object": "1200.0"},
    ]
    texts = [
        {"comment": "good", "lex": "Amber Field serves Orrin; its runway is 1200.0 long."},
        {"comment": "toFix", "lex": "Amber Field serve Orrin."},
        {"comment": "good", "lex": "Orrin's airport is Amber Field."},
    ]
    entry = {"category": category, "modifiedtripleset": triples, "lexicalisations": texts} | facts
    return json.dumps({"entries": [{"1": entry}]})


DART_FILE = json.dumps(
    [{"tripleset": [["Orrin", "YEAR", "1902"], ["Orrin", "[TITLE]", "A Town"]],
      "annotations": [{"text": "Orrin was a Town in 1902."}, {"text": "In 1902 ."}]}]
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder of our own; nothing is fetched."""
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    for place in ("CACHE", "SHARED"):
        monkeypatch.setattr(files, place, tmp_path / place.lower())
    monkeypatch.setattr(data, "PUBLISHED", "http://127.0.0.1:9")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def put(folder: Path, corpus: data.Corpus, content: str | bytes, monkeypatch, released: bool = True) -> Path:
    """The development file of a corpus; with `released` it is taken for the released one."""
    content = content.encode() if isinstance(content, str) else content
    name, identity = corpus.files["dev"]
    monkeypatch.setitem(corpus.files, "dev", (name, blob(content) if released else identity))
    path = folder / corpus.folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


# formats


def test_webnlg_has_a_row_for_each_good_text_and_its_triples_as_they_are(folder, monkeypatch):
    put(folder, WEBNLG, webnlg_file(), monkeypatch)
    context = "Amber_Field : cityServed : Orrin | Amber_Field : runwayLength : 1200.0"
    assert load_webnlg("dev", data_dir=folder) == [
        Example(context, context, "Amber Field serves Orrin; its runway is 1200.0 long.", True),
        Example(context, context, "Orrin's airport is Amber Field.", True),
    ]


def test_dart_reads_relations_in_lower_case_and_keeps_the_rest(folder, monkeypatch):
    put(folder, DART, DART_FILE, monkeypatch)
    released, read = "Orrin : YEAR : 1902 | Orrin : [TITLE] : A Town", "Orrin : year : 1902 | Orrin : [title] : A Town"
    assert load_dart("dev", data_dir=folder) == [
        Example(released, read, "Orrin was a Town in 1902."), Example(released, read, "In 1902 ."),
    ]  # fmt: skip


@pytest.mark.parametrize(("category", "seen"), [("Food", True), ("City", True), ("Athlete", False)])
def test_a_category_is_seen_if_it_is_one_of_the_ten_of_the_official_code(folder, monkeypatch, category, seen):
    put(folder, WEBNLG, webnlg_file(category), monkeypatch)
    rows = load_webnlg("dev", data_dir=folder)
    assert [row.seen for row in rows] == [seen, seen] and group_by_context(rows)[0].seen is seen
    others = [replace(row, seen=not seen) for row in rows]
    assert data_fingerprint(rows) != data_fingerprint(others)


@pytest.mark.parametrize(("load", "rows", "inputs"), [(load_webnlg, 2_258, 870), (load_dart, 6_980, 2_721)])
def test_the_development_files_have_the_published_sizes(shared_data, load, rows, inputs):
    examples = load("dev", data_dir=shared_data)
    assert (len(examples), len(group_by_context(examples))) == (rows, inputs)


@pytest.mark.parametrize("name", ["webnlg-dev", "dart-dev", "triples-builtin"])
def test_the_parts_of_a_development_file_share_no_input_and_have_the_sizes_of_the_catalogue(shared_data, name):
    task = TASKS[name]
    parts = {split: task.load(split, "lora", shared_data) for split in ("train", "dev", "test")}
    contexts = [{row.context for row in rows} for rows in parts.values()]
    assert sum(map(len, contexts)) == len(set().union(*contexts))
    assert len(parts["train"]) == task.train_rows and len(contexts[2]) == task.test_inputs
    seen = [{row.seen for row in rows} for rows in parts.values()]
    assert seen == ([{None}] * 3 if name == "dart-dev" else [{True}, {True}, {True, False}])


def test_the_parts_are_all_of_the_development_file(shared_data):
    for whole, part in ((load_webnlg, load_webnlg_parts), (load_dart, load_dart_parts)):
        parts = [row for split in ("train", "dev", "test") for row in part(split, data_dir=shared_data)]
        rows = whole("dev", data_dir=shared_data)
        assert sorted((row.mr, row.reference) for row in parts) == sorted((row.mr, row.reference) for row in rows)


def test_every_built_in_text_names_its_subject_and_values():
    for row in load_builtin("train") + load_builtin("test"):
        for triple in row.context.split(" | "):
            subject, _, value = triple.split(" : ")
            assert subject.replace("_", " ") in row.reference and value.replace("_", " ") in row.reference


# what is refused

FORM = 'expected {"1": {"category", "modifiedtripleset"'


@pytest.mark.parametrize(
    ("corpus", "content", "message"),
    [
        (WEBNLG, webnlg_file()[:-40], "dev.json is no whole JSON"),
        (WEBNLG, b"\xff\xfe", "dev.json is no whole JSON"),
        (WEBNLG, "[" * 100_000, "dev.json is no whole JSON"),
        (WEBNLG, "<benchmark><entries/></benchmark>", "dev.json is no whole JSON .*replace it by http"),
        (WEBNLG, DART_FILE, f"dev.json, entry 1: {FORM}.*found TypeError"),
        (WEBNLG, webnlg_file().replace('"property"', '"relation"'), f"entry 1: {FORM}.*found KeyError: 'property'"),
        (WEBNLG, webnlg_file().replace('"1":', '"2":'), f"entry 1: {FORM}.*found KeyError: '1'"),
        (WEBNLG, webnlg_file(lexicalisations=[{"comment": "good", "lex": None}]), "entry 1: .*None is no text"),
        (WEBNLG, webnlg_file("Starship"), "unknown category 'Starship': expected one of Airport, Astronaut"),
        (WEBNLG, webnlg_file(category=["Food"]), r"entry 1: .*\['Food'\] is no text"),
        (DART, webnlg_file(), 'entry 1: expected {"tripleset".*found TypeError'),
        (DART, DART_FILE.replace('"YEAR", ', ""), "entry 1: .*not enough values to unpack"),
        (DART, DART_FILE.replace('"annotations"', '"texts"'), "entry 1: .*found KeyError: 'annotations'"),
        (DART, "7", 'entry 1: expected {"tripleset".*found TypeError'),
    ],
)
def test_a_file_of_another_form_is_refused_by_what_is_wrong_in_it(folder, monkeypatch, corpus, content, message):
    put(folder, corpus, content, monkeypatch)
    load = load_webnlg if corpus is WEBNLG else load_dart
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        load("dev", data_dir=folder)


def test_a_file_that_is_not_the_released_one_is_refused_by_its_blob(folder, monkeypatch):
    path = put(folder, WEBNLG, webnlg_file(), monkeypatch, released=False)
    found = blob(path.read_bytes())
    expected = "180f096ff49a7e597dd7c507ea0c5441e839b770"
    with pytest.raises(ValueError, match=f"expected git blob {expected}, found {found}; replace it by http"):
        load_webnlg("dev", data_dir=folder)


def test_a_download_that_is_not_the_released_file_is_refused_and_leaves_no_file(folder, monkeypatch):
    monkeypatch.setattr(data, "download", lambda url: b"Sign in")
    with pytest.raises(ValueError, match=r"dart-v1.1.1-full-test.json is not the official file.*try again"):
        load_dart("test", data_dir=folder)
    assert not files.CACHE.exists()


@pytest.mark.parametrize(
    ("load", "file"), [(load_webnlg, "webnlg/test.json"), (load_dart, "dart/dart-v1.1.1-full-test.json")]
)
def test_a_file_that_is_nowhere_is_named_with_where_to_put_it(folder, load, file):
    with pytest.raises(FileNotFoundError, match=f"{file} is in none of the places tried") as raised:
        load("test", data_dir=folder)
    assert str(folder / file) in str(raised.value) and "http://127.0.0.1:9" in str(raised.value)


def test_an_unknown_split_and_another_protocol_are_refused(folder):
    for load in (load_webnlg, load_dart, load_webnlg_parts, load_dart_parts, load_builtin):
        with pytest.raises(ValueError, match="unknown split 'valid': expected one of train, dev, test"):
            load("valid", data_dir=folder)
        with pytest.raises(ValueError, match="text protocol 'lora' alone, found 'challenge'"):
            load("dev", "challenge", folder)


# scores


@pytest.fixture
def no_meteor(monkeypatch):
    monkeypatch.setattr(meteor.METEOR, "score", lambda *_: None)


def test_bleu_and_ter_are_those_of_the_official_evaluation(no_meteor):
    scores = metrics.score(TEXTS, REFERENCES)
    assert round(100 * scores["BLEU"], 2) == GOLDEN["scores"]["BLEU"]
    assert scores["TER"] == pytest.approx(GOLDEN["scores"]["TER"], abs=1e-12)
    each = metrics.score_texts(group_by_context(examples()), TEXTS, None)[1]
    assert [row["TER"] for row in each] == pytest.approx(GOLDEN["TER_each"], abs=1e-12)
    worse = metrics.score(TEXTS[1:] + TEXTS[:1], REFERENCES)
    assert worse["BLEU"] < 0.9 * scores["BLEU"] and worse["TER"] > 1.1 * scores["TER"]


@pytest.mark.slow
def test_meteor_is_that_of_the_official_evaluation():
    if reason := meteor_unavailable():
        pytest.skip(reason)
    assert metrics.score(TEXTS, REFERENCES)["METEOR"] == pytest.approx(GOLDEN["scores"]["METEOR"], abs=1e-9)


def examples(seen: bool | None = None) -> list[Example]:
    return [Example(str(i), str(i), text, seen) for i, texts in enumerate(REFERENCES) for text in texts]


@pytest.mark.parametrize(
    ("text", "references", "ter"),
    [
        ("a b c d", ["a b c d"], 0),
        ("a b x d", ["a b c d"], 1 / 4),  # a substitution
        ("a b c", ["a b c d"], 1 / 4),  # an insertion
        ("c d a b", ["a b c d"], 1 / 4),  # one shift of two words
        ("x y z w v", ["a b"], 5 / 2),  # may exceed 1
        ("", ["a b"], 1),
        ("a b", ["x y", "a b"], 0),  # of the best reference
        ("A, b.", ["a , b ."], 0),  # lower case, and every character apart
        ("a b", ["x"] * 6 + ["a b"], 2),  # the first six references only
    ],
)
def test_ter_counts_edits_and_shifts_for_a_word_of_the_best_reference(no_meteor, text, references, ter):
    assert metrics.score([text], [references])["TER"] == pytest.approx(ter)


def test_bleu_by_hand(no_meteor):
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2; as long as its reference
    found = metrics.score(["a b c d x"], [["a b c d e"]])["BLEU"]
    assert found == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert metrics.score([""], [["a b c d e"]])["BLEU"] == 0


def test_text_is_set_apart_as_by_the_official_code():
    assert metrics.set_apart('It\'s 2,702.0 m –\t"Upper_Perrin"') == 'it \' s 2 , 702 . 0 m – " upper_perrin "'


def test_where_a_sentence_ends_changes_no_token_of_text_that_is_set_apart():
    words = " ".join(
        metrics.set_apart(text) for text in (*TEXTS, "Cannot? \"We're gonna.\" 'No.' (e.g. 3.5%)...")
    ).split()
    whole = metrics._tokens(" ".join(words))
    for cut in range(1, len(words)):
        assert metrics._tokens(" ".join(words[:cut])) + metrics._tokens(" ".join(words[cut:])) == whole


def test_scores_on_seen_and_unseen_categories_are_those_of_their_texts_alone(no_meteor):
    inputs = group_by_context(examples(seen=True))
    inputs[9:] = [replace(item, seen=False) for item in inputs[9:]]
    scores, findings = metrics.score_texts(inputs, TEXTS, None)
    for part, chosen in (("all", slice(None)), ("seen", slice(9)), ("unseen", slice(9, None))):
        alone = metrics.score(TEXTS[chosen], REFERENCES[chosen])
        assert {name: scores[f"{name} {part}"] for name in alone} == pytest.approx(alone)
    assert scores["BLEU seen"] != scores["BLEU unseen"]
    assert [row["seen"] for row in findings] == [True] * 9 + [False] * (len(TEXTS) - 9)
    assert {*scores} | {"share_at_cap"} == {*TASKS["webnlg"].metrics}


def test_without_unseen_categories_there_is_no_score_on_them(no_meteor):
    scores, _ = metrics.score_texts(group_by_context(examples(seen=True)), TEXTS, None)
    assert {name.split()[1] for name in scores} == {"all", "seen"}


def test_a_table_says_what_seen_means_and_that_parts_are_no_released_test_set():
    by_name = {name: " ".join(notes(table([find(name)]), find(name).scale)) for name in (
        "table14/gpt2-medium/webnlg/lora-r4", "table14/smollm2-135m/webnlg-dev/lora-r4",
        "table16/minilm/mnli/100/lora-r8",
    )}  # fmt: skip
    paper, parts, few = by_name.values()
    assert "*seen*: categories that are trained on too" in paper and "parts of the development file" not in paper
    assert "*seen*" in parts and "parts of the development file" in parts
    assert "GPT-3 is not public" in few and "*seen*" not in few


@pytest.mark.parametrize(
    "triples", [("Aarhus", "country", "Denmark"), [("Aarhus", "country")], [("Aarhus", "country", None)]], ids=str
)
def test_what_is_no_triple_of_texts_is_not_written_as_one(triples):
    with pytest.raises(TypeError, match=r"expected (a list of (lists of )?texts as triples|triples of texts)"):
        data.linearise(triples)


def test_where_meteor_fails_for_all_texts_it_has_no_score_of_a_part_and_the_reason_is_kept(monkeypatch):
    answers = iter([None, 0.5, 0.5])
    monkeypatch.setattr(metrics.meteor.METEOR, "score", lambda *_: next(answers))
    inputs = group_by_context(examples(seen=True) + [replace(e, context="other", seen=False) for e in examples()])
    scores, _ = metrics.score_texts(inputs, ["a pub"] * len(inputs), None)
    assert {scores[f"METEOR {part}"] for part in ("all", "seen", "unseen")} == {None}
    assert next(answers) == 0.5  # it was asked once
    assert all(scores[f"BLEU {part}"] is not None for part in ("all", "seen", "unseen"))


def test_references_without_a_word_have_a_bleu_of_zero(no_meteor):
    assert metrics.score(["a pub"], [[""]])["BLEU"] == metrics.score(["a pub"], [[" "]])["BLEU"] == 0
