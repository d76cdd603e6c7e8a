"""Whatever text, file or number is given: a declared error that says what was expected and found, or a sound result.

Texts are drawn from all of Unicode and from what E2E looks like, so that both parsers and scores are reached.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import tasks.e2e.data as e2e_data
from adapter_files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, load_lora, save_lora
from lora import LoRAConfig, add_lora, lora_layers
from methods.saved import TRAINED_FILE, load_adapter
from tasks.catalogue import TASKS, GlueTask
from tasks.e2e import meteor
from tasks.e2e.data import PROTOCOLS, group_by_context, pretokenise, to_context
from tasks.e2e.metrics import course_score, mteval_tokenize, output_lengths, score
from tasks.e2e.ptb_tokenizer import ptb_tokenize
from tasks.e2e.slot_errors import SLOTS, parse_mr, slot_errors
from tasks.glue import metrics as glue_metrics
from tasks.glue.data import load_glue
from tiny_models import tiny

Report = Callable[[str, str, str], None]
THOROUGHLY = settings(
    max_examples=400, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)  # fmt: skip
ODD = [
    "",
    " ",
    "\n",
    "\0",
    "\u2028",
    "\ufeff",
    "e\u0301",
    "\u202e",
    "\ud800",
    "🍕",
    "£20-25",
    "|||",
    "&quot;",
    "<skipped>",
    "[",
    "]",
    ",",
]
WORDS = [
    "a",
    "pub",
    "cheap",
    "riverside",
    "Zizzi",
    "is",
    "near",
    "family",
    "friendly",
    "not",
    "5",
    "out",
    "of",
    "price",
    ".",
    "n't",
]
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*ODD, *WORDS]), max_size=25).map(" ".join),
    st.text(st.characters(), max_size=9),  # surrogates too
)
VALUE = st.one_of(st.sampled_from(["Zizzi", "pub", "riverside", "yes", "£20-25", "é", "-", " ", "[", "a, b"]), TEXT)
GOOD_MR = st.dictionaries(
    st.sampled_from(SLOTS),
    st.sampled_from(["Zizzi", "pub", "cheap", "riverside", "yes", "£20-25", "é", "a, b"]),
    min_size=1,
).map(lambda slots: ", ".join(f"{slot}[{value}]" for slot, value in slots.items()))
MR = st.one_of(
    TEXT,
    GOOD_MR,
    st.lists(st.tuples(st.one_of(st.sampled_from(SLOTS), TEXT), VALUE), max_size=5).map(
        lambda pairs: ", ".join(f"{slot}[{value}]" for slot, value in pairs)
    ),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@pytest.fixture
def no_meteor(monkeypatch):
    monkeypatch.setattr(meteor.METEOR, "score", lambda *_: None)


def declared(error: Exception) -> bool:
    """Whether the message says what was expected and what was found."""
    words = str(error)
    return len(words) > 20 and any(word in words for word in ("expected", "must be", "is malformed", "cannot be read"))


# Parsers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_meaning_representation_is_parsed_or_refused(protocol, tally: Report):
    @THOROUGHLY
    @given(mr=st.one_of(GOOD_MR, MR, ANYTHING))
    @example(mr="name[" + "a" * 10**5)
    @example(mr="name[a]" + ", near[b]" * 10**4)
    @example(mr="a" * 10**5 + "[")
    def parse(mr) -> None:
        try:
            slots = parse_mr(mr)
        except ValueError as error:
            assert declared(error)
            with pytest.raises(ValueError, match="malformed"):
                to_context(mr, protocol)
            tally("hostile input", f"a meaning representation ({protocol})", "refused with a reason")
        else:
            assert slots.keys() <= set(SLOTS) and all(slots.values())
            assert to_context(mr, protocol)
            again = ", ".join(f"{slot}[{value}]" for slot, value in slots.items())
            assert parse_mr(again) == slots
            tally("hostile input", f"a meaning representation ({protocol})", "parsed")

    parse()


def csv_of_e2e(content: bytes) -> list[e2e_data.Example]:
    """As if a file of this content were the release."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "e2e" / "devset.csv"
        path.parent.mkdir()
        path.write_bytes(content)
        patch.setitem(e2e_data.FILES, "dev", ("devset.csv", sha256(content).hexdigest()))
        return e2e_data.load_e2e("dev", "lora", Path(folder))


def as_csv(rows: list[tuple[str, ...]]) -> str:
    csv.writer(text := io.StringIO()).writerows(rows)
    return text.getvalue()


def test_any_csv_is_read_or_refused(tally: Report):
    row = st.one_of(st.tuples(GOOD_MR, TEXT), st.tuples(MR, TEXT), st.lists(TEXT, max_size=4))
    rows = st.one_of(st.lists(st.tuples(GOOD_MR, TEXT), max_size=4), st.lists(row, max_size=4)).map(as_csv)

    @THOROUGHLY
    @given(
        content=st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=200).map(lambda tail: b"mr,ref\n" + tail),
            rows.map(lambda text: b"mr,ref\n" + text.encode(errors="surrogatepass")),
        )
    )
    @example(content=b'mr,ref\n"' + b"a" * 200_000)
    @example(content=b"mr,ref\nname[a],b,c\n")
    @example(content=b"mr,ref\nname[a]\n")
    @example(content=b"mr,ref\n\nname[a],b\n")
    @example(content=b"mr,ref\nname[a],\xff\n")
    @example(content=b"mr,ref\nname[a],\0\n")
    @example(content=b"mr,ref\n")
    def read(content: bytes) -> None:
        try:
            examples = csv_of_e2e(content)
        except ValueError as error:
            assert declared(error), error
            tally("hostile input", "a CSV file of E2E", "refused with a reason")
        else:
            assert examples and all(parse_mr(e.mr) for e in examples)
            assert group_by_context(examples)
            tally("hostile input", "a CSV file of E2E", "read")

    read()


@pytest.mark.filterwarnings("ignore")  # of pandas, about what it writes here
def test_any_parquet_file_of_glue_is_read_or_refused(tmp_path, tally: Report):
    path = tmp_path / "glue" / "mrpc" / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    cell = st.one_of(
        TEXT, st.none(), st.integers(-2, 3), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2)
    )
    column = st.lists(cell, min_size=2, max_size=2)
    names = st.sampled_from(["sentence1", "sentence2", "label", "idx", ""])

    good = st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(WORDS), min_size=2, max_size=2) for name in ("sentence1", "sentence2")}
        | {"label": st.lists(st.integers(0, 1), min_size=2, max_size=2)}
    )
    tables = st.one_of(good, st.dictionaries(names, column, max_size=5))

    @THOROUGHLY
    @given(table=tables, cut=st.one_of(st.none(), st.integers(0, 2000)))
    def read(table: dict, cut: int | None) -> None:
        try:
            content = pd.DataFrame(table).to_parquet()
        except Exception:
            assume(False)  # pandas cannot write it
        path.write_bytes(content[:cut])
        try:
            split = load_glue("mrpc", "validation", tmp_path)
        except ValueError as error:
            assert declared(error) or "has no column" in str(error), error
            tally("hostile input", "a parquet file of GLUE", "refused with a reason")
        else:
            assert all(type(e.label) is int and e.label in (0, 1) and len(e.texts) == 2 for e in split.examples)
            tally("hostile input", "a parquet file of GLUE", "read")

    read()


# Adapter loaders --------------------------------------------------------------------------------------------------


def tensors_file(header: object, entry: str, length: int = 4) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header, default=str)
    return save({f"{PREFIX}x": torch.ones(length)}, {entry: text.encode(errors="replace").decode()})


@pytest.mark.parametrize("kind", ["LoRA's folder", "the folder of other methods"])
def test_any_files_in_the_place_of_an_adapters_are_refused(kind, tmp_path, tally: Report):
    other = tiny("bert")
    add_lora(other, LoRAConfig(2))
    save_lora(other, tmp_path)
    whole = {file: (tmp_path / file).read_bytes() for file in (WEIGHTS_FILE, CONFIG_FILE)}
    names = (
        "r lora_alpha lora_dropout peft_type modules_to_save rank_pattern alpha_pattern init_lora_weights use_rslora"
    )
    names = [*names.split(), "settings", "base_sha256", "sha256", "targets", "target_modules"]
    entries = st.dictionaries(st.one_of(st.sampled_from(names), TEXT), ANYTHING, max_size=6)
    config = st.one_of(
        st.binary(max_size=80), entries.map(lambda e: json.dumps(e, default=str).encode(errors="replace"))
    )
    entry = "lora" if kind.startswith("LoRA") else "method"
    weights = st.one_of(
        st.none(), st.binary(max_size=80), st.one_of(entries, ANYTHING).map(lambda header: tensors_file(header, entry))
    )
    model = tiny("bert")

    @THOROUGHLY
    @given(config=config, weights=weights)
    def load(config: bytes, weights: bytes | None) -> None:
        if entry == "lora":
            assume(config != whole[CONFIG_FILE] or weights is not None)
            (tmp_path / CONFIG_FILE).write_bytes(config)
            (tmp_path / WEIGHTS_FILE).write_bytes(whole[WEIGHTS_FILE] if weights is None else weights)
        else:
            (tmp_path / TRAINED_FILE).write_bytes(weights or b"")
        with pytest.raises(ValueError) as refused:
            (load_lora if entry == "lora" else load_adapter)(model, tmp_path)
        assert declared(refused.value), refused.value
        assert not lora_layers(model)
        tally("hostile input", kind, "refused with a reason")

    load()


# Scores -----------------------------------------------------------------------------------------------------------

CORPUS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=5)
RANGES = {"BLEU": (0, 1), "NIST": (0, math.inf), "ROUGE_L": (0, 1), "CIDEr": (0, 10)}


def columns(corpus: list[tuple[str, list[str]]]) -> tuple[list[str], list[list[str]]]:
    return [output for output, _ in corpus], [targets for _, targets in corpus]


def test_scores_of_any_texts_are_in_their_range_and_do_not_depend_on_the_order(no_meteor, tally: Report):
    @THOROUGHLY
    @given(corpus=CORPUS, seed=st.integers(0, 9))
    def check(corpus, seed) -> None:
        found = score(*columns(corpus)) | {f"course {k}": v / 100 for k, v in course_score(*columns(corpus)).items()}
        for name, value in found.items():
            low, high = RANGES.get(name, (0, 1))
            assert value is None or low <= value <= high + 1e-9, (name, value)
        shuffled = random.Random(seed).sample(corpus, len(corpus))
        shuffled = [(output, random.Random(seed).sample(targets, len(targets))) for output, targets in shuffled]
        again = score(*columns(shuffled))
        assert all(again[name] == pytest.approx(found[name], abs=1e-9) for name in RANGES)
        lengths = output_lengths(*columns(corpus))
        assert 0 <= lengths["brevity_penalty"] <= 1 and all(math.isfinite(value) for value in lengths.values())
        tally("hostile input", "scores of texts", "in their range, in any order")

    check()


def test_a_perfect_output_scores_best(no_meteor, tally: Report):
    @THOROUGHLY
    @given(references=st.lists(TEXT, min_size=1, max_size=4), other=TEXT, at=st.integers(0, 3))
    def check(references, other, at) -> None:
        targets = [[reference] for reference in references]
        perfect = score(references, targets)
        worse = [other if i == at % len(references) else reference for i, reference in enumerate(references)]
        changed = score(worse, targets)
        for name in ("BLEU", "ROUGE_L", "CIDEr"):  # NIST weighs rare words, and may rise where common ones are left out
            assert changed[name] <= perfect[name] + 1e-9, (name, changed[name], perfect[name])
        if all(ptb_tokenize(text) for text in references):
            assert perfect["ROUGE_L"] == pytest.approx(1)
        if all(len(mteval_tokenize(text)) >= 4 for text in references):
            assert perfect["BLEU"] == pytest.approx(1)
        tally("hostile input", "scores of the references themselves", "best")

    check()


def test_anything_but_lists_of_texts_is_a_declared_error(no_meteor, tally: Report):
    @THOROUGHLY
    @given(predictions=ANYTHING, references=ANYTHING)
    def check(predictions, references) -> None:
        for function in (score, course_score, output_lengths, slot_errors):
            try:
                function(predictions, references)
            except (ValueError, TypeError) as error:
                assert declared(error), error
                tally("hostile input", "something else than texts to score", "refused with a reason")

    check()


def test_meteor_of_any_texts_is_a_number_from_0_to_1(tally: Report):
    if meteor.meteor_unavailable():
        pytest.skip(meteor.meteor_unavailable())

    @settings(THOROUGHLY, max_examples=100)
    @given(corpus=CORPUS)
    def check(corpus) -> None:
        value = score(*columns(corpus))["METEOR"]
        assert value is not None, (meteor.meteor_unavailable(), corpus)
        assert 0 <= value <= 1
        tally("hostile input", "METEOR of texts", "a number from 0 to 1")

    check()


def test_slot_errors_of_any_texts_are_counted_alike_in_any_order(tally: Report):
    mrs = st.dictionaries(st.sampled_from(SLOTS), VALUE, min_size=1, max_size=5).map(
        lambda slots: ", ".join(f"{slot}[{value}]" for slot, value in slots.items())
    )

    @THOROUGHLY
    @given(rows=st.lists(st.tuples(mrs, TEXT), min_size=1, max_size=5), seed=st.integers(0, 9))
    def check(rows, seed) -> None:
        try:
            found = slot_errors(*map(list, zip(*rows, strict=True)))
        except ValueError as error:
            assert declared(error)
            tally("hostile input", "slot errors of texts", "refused with a reason")
            return
        kinds = sum(found[kind] for kind in ("added", "missing", "wrong", "repeated"))
        assert found["rate"] >= 0 and sum(found["per_output"]) == kinds and len(found["per_output"]) == len(rows)
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        again = slot_errors([rows[i][0] for i in order], [rows[i][1] for i in order])
        assert again["per_output"] == [found["per_output"][i] for i in order] and again["rate"] == found["rate"]
        silent = slot_errors([mr for mr, _ in rows], ["" for _ in rows])
        assert silent["missing"] == silent["slots"] and silent["rate"] == 1
        tally("hostile input", "slot errors of texts", "counted alike in any order")

    check()


def test_any_text_is_tokenised(tally: Report):
    @THOROUGHLY
    @given(text=TEXT)
    @example(text="a-" * 50_000)
    @example(text="a." * 50_000)
    @example(text="1," * 50_000)
    @example(text="'" * 50_000)
    def check(text) -> None:
        assert all(ptb_tokenize(text)) and pretokenise(pretokenise(text)) is not None
        assert not any(character.isspace() for token in ptb_tokenize(text) for character in token)
        tally("hostile input", "tokens of a text", "tokens")

    check()


NUMBER = st.one_of(
    st.integers(-2, 4), st.floats(), st.booleans(), st.none(), st.just(10**400), st.sampled_from(["0", "1", ""])
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["mrpc", "cola", "mnli", "stsb"])
def test_glues_scores_of_any_numbers_are_in_their_range_or_refused(name, tally: Report):
    task = TASKS[name]
    assert isinstance(task, GlueTask)
    fitting = st.integers(0, len(task.labels) - 1) if task.labels else st.floats(0, 5)
    rows = st.one_of(
        st.lists(st.tuples(fitting, fitting), min_size=1, max_size=8), st.lists(st.tuples(NUMBER, NUMBER), max_size=4)
    )

    @THOROUGHLY
    @given(rows=rows, seed=st.integers(0, 9))
    def check(rows, seed) -> None:
        guesses, truth = [guess for guess, _ in rows], [label for _, label in rows]
        try:
            found = glue_metrics.score(task, guesses, truth)
        except ValueError as error:
            assert declared(error), error
            tally("hostile input", f"scores of {name}", "refused with a reason")
            return
        low = -1 if name in ("cola", "stsb") else 0
        assert all(low - 1e-9 <= found[metric] <= 1 + 1e-9 for metric in task.metrics), found
        shuffled = random.Random(seed).sample(rows, len(rows))
        again = glue_metrics.score(task, [guess for guess, _ in shuffled], [label for _, label in shuffled])
        assert all(again[metric] == pytest.approx(found[metric], abs=1e-6) for metric in task.metrics)
        perfect = glue_metrics.score(task, truth, truth)
        assert all(perfect[metric] >= found[metric] - 1e-9 for metric in task.metrics)
        tally("hostile input", f"scores of {name}", "in their range, in any order, best where perfect")

    check()


def test_any_bytes_of_parquet_are_refused(tmp_path, tally: Report):
    buffer = io.BytesIO()
    pd.DataFrame({"sentence1": ["a"], "sentence2": ["b"], "label": [1]}).to_parquet(buffer)
    path = tmp_path / "glue" / "mrpc" / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)

    @THOROUGHLY
    @given(content=st.binary(max_size=200))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as parquet"):
            load_glue("mrpc", "validation", tmp_path)
        tally("hostile input", "bytes in the place of a parquet file", "refused with a reason")

    read()
