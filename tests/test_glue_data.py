"""GLUE's declarations and data: what each task is, where its files are found, how its rows become batches."""

from __future__ import annotations

import random
import re

import huggingface_hub
import pandas as pd
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, DebertaV2Tokenizer, RobertaTokenizer

import files
from tasks.catalogue import TASKS, GlueTask, glue_task
from tasks.glue import data as glue_data
from tasks.glue.data import CHECKSUMS, Example, GlueSplit, collate, data_fingerprint, encode, held_out_tenth, load_glue

GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
LETTERS = tuple("abcdefgh")
ROWS = [
    {"sentence1": "a b", "sentence2": "c", "label": 1, "idx": 0},
    {"sentence1": "d", "sentence2": "e f", "label": 0, "idx": 1},
]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Every place of its own below tmp_path, all empty; the hub cannot be reached and its client's cache is empty."""
    folders = {name: tmp_path / name for name in ("chosen", "named", "cache", "shared")}
    folders["chosen"].mkdir()
    folders["named"].mkdir()
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", folders["cache"])
    monkeypatch.setattr(files, "SHARED", folders["shared"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folders


def put(folder, rows, task="mrpc", split="validation", **options):
    path = folder / "glue" / task / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path, **options)
    return path


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={t: i for i, t in enumerate([*special, *LETTERS])}, model_max_length=32)


def roberta():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return RobertaTokenizer(vocab={t: i for i, t in enumerate(special)}, merges=[], model_max_length=32)


def deberta():
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"▁{letter}" for letter in LETTERS)]
    return DebertaV2Tokenizer(vocab=[(piece, -1.0) for piece in pieces], model_max_length=32)


# --- declarations -----------------------------------------------------------------------------------------------------


def test_the_eight_tasks_report_the_metrics_of_table_2():
    reported = {name: glue_task(name).main_metric for name in GLUE}
    assert reported == dict.fromkeys(GLUE, "accuracy") | {"cola": "matthews", "stsb": "pearson"}
    assert all(set(TASKS[name].metrics) >= {"accuracy", "f1", "precision", "recall"} for name in GLUE if name != "stsb")
    assert set(TASKS["stsb"].metrics) == {"pearson", "spearman"}
    assert all(all(TASKS[name].metrics.values()) for name in GLUE)  # of all of them, higher is better


def test_the_head_has_an_output_for_each_class_and_one_for_a_number():
    assert {name: glue_task(name).outputs for name in GLUE} == dict.fromkeys(GLUE, 2) | {"mnli": 3, "stsb": 1}


def test_mnli_has_two_validation_splits_and_reports_matched():
    mnli = glue_task("mnli")
    assert list(mnli.validation) == ["validation_matched", "validation_mismatched"]
    assert mnli.test_inputs == 9_815


def test_every_downloaded_split_has_a_checksum():
    assert set(CHECKSUMS) == {f"{name}/{split}" for name in GLUE for split in ("train", *glue_task(name).validation)}
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in CHECKSUMS.values())
    assert len(set(CHECKSUMS.values())) == 17


def test_a_split_with_fewer_rows_than_released_is_a_subset():
    assert glue_task("qnli").is_subset("train", 104_742)
    assert not glue_task("qnli").is_subset("train", 104_743)
    assert not glue_task("qnli").is_subset("validation", 5_463)
    assert glue_task("mnli").is_subset("validation_mismatched", 9_831)


@pytest.mark.parametrize("name", ["glue", "e2e", "MRPC"])
def test_an_unknown_task_is_answered_with_those_there_are(name):
    with pytest.raises(ValueError, match=rf"no GLUE task is called '{name}'; the tasks are mnli, sst2, mrpc, .*stsb"):
        load_glue(name, "train")


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_the_real_data_fit_their_declaration(shared_data, name):
    task = glue_task(name)
    partial = {
        ("qnli", "train"),
        ("qqp", "train"),
        ("qqp", "validation"),
        ("mnli", "train"),
        ("mnli", "validation_matched"),
    }
    for split in ("train", next(iter(task.validation))):
        found = load_glue(name, split, shared_data)
        assert found.subset == ((name, split) in partial)
        released = task.train_rows if split == "train" else task.test_inputs
        assert (len(found.examples) == released) != found.subset
        assert {len(example.texts) for example in found.examples} == {len(task.columns)}
        labels = {example.label for example in found.examples}
        assert labels == set(range(task.outputs)) if task.labels else (min(labels), max(labels)) == (0.0, 5.0)


def test_the_first_rows_of_mrpc_and_stsb_are_as_released(shared_data):
    mrpc = load_glue("mrpc", "train", shared_data).examples[0]
    assert mrpc.texts[0].startswith('Amrozi accused his brother, whom he called "the witness"') and mrpc.label == 1
    assert load_glue("stsb", "train", shared_data).examples[0] == Example(
        ("A plane is taking off.", "An air plane is taking off."), 5.0
    )


# --- places -----------------------------------------------------------------------------------------------------------


def test_the_folder_that_was_chosen_comes_before_the_environments_and_the_cache(places, monkeypatch):
    for number, place in enumerate(("shared", "cache", "named", "chosen"), start=1):
        put(places[place], ROWS * number)
    monkeypatch.setenv("LORA_DATA_DIR", str(places["named"]))
    assert len(load_glue("mrpc", "validation", places["chosen"]).examples) == 8
    assert len(load_glue("mrpc", "validation").examples) == 6
    monkeypatch.delenv("LORA_DATA_DIR")
    assert len(load_glue("mrpc", "validation").examples) == 4


def test_rows_keep_the_order_of_the_file_and_the_label_its_kind(places):
    put(places["cache"], ROWS)
    assert load_glue("mrpc", "validation") == GlueSplit(
        [Example(("a b", "c"), 1), Example(("d", "e f"), 0)], subset=True
    )
    put(places["cache"], [row | {"label": 4} for row in ROWS], "stsb")
    assert type(load_glue("stsb", "validation").examples[0].label) is float


def test_a_file_in_the_cache_that_is_not_what_was_fetched_is_refused_and_one_that_was_put_there_is_not(places):
    content = put(places["shared"], ROWS).read_bytes()
    other = put(places["chosen"], ROWS[:1]).read_bytes()
    (places["shared"] / "glue/mrpc/validation-00000-of-00001.parquet").unlink()
    path = files.find_file("glue/mrpc/validation-00000-of-00001.parquet", None, lambda: content, "a hub")
    assert path.is_relative_to(places["cache"]) and len(load_glue("mrpc", "validation").examples) == 2
    path.write_bytes(other)
    with pytest.raises(ValueError, match=r"parquet is not the released file: .*delete it, and it is fetched anew"):
        load_glue("mrpc", "validation")
    places["cache"].with_name("cache.sha256").rename(places["cache"] / "no checksums")
    assert len(load_glue("mrpc", "validation").examples) == 1


def test_where_no_place_has_the_file_one_error_names_them_all(places):
    with pytest.raises(FileNotFoundError, match="none of the places tried") as error:
        load_glue("mrpc", "validation", places["chosen"])
    for place in (places["chosen"], places["cache"], places["shared"], "nyu-mll/glue"):
        assert str(place) in str(error.value)
    assert "set LORA_DATA_DIR" in str(error.value)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("name", ["sentiment-builtin", "paraphrase-builtin"])
def test_the_builtin_tasks_need_no_place(places, monkeypatch, name, split):
    monkeypatch.setenv("LORA_DATA_DIR", str(places["chosen"] / "nowhere"))
    found = load_glue(name, split)
    assert len(found.examples) == (2_000 if split == "train" else 200) and not found.subset
    assert {len(example.texts) for example in found.examples} == {len(glue_task(name).columns)}


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "dev", "validation_matched"])
def test_a_split_without_labels_or_unknown_is_refused(places, split):
    with pytest.raises(
        ValueError, match=rf"mrpc has no labelled split '{split}': expected one of train, validation"
    ) as error:
        load_glue("mrpc", split)
    assert ("does not publish" in str(error.value)) == (split == "test")


@pytest.mark.parametrize("column", ["sentence2", "label"])
def test_a_missing_column_is_named_with_those_there_are(places, column):
    path = put(places["cache"], [{k: v for k, v in row.items() if k != column} for row in ROWS])
    with pytest.raises(ValueError, match=rf"{path} has no column {column}: mrpc needs .*, found sentence1, .*idx"):
        load_glue("mrpc", "validation")


@pytest.mark.parametrize(
    ("task", "label", "expected"),
    [
        ("mrpc", 2, "the class ids 0 to 1, found 2"),
        ("mrpc", -1, "the class ids 0 to 1, found -1; -1 stands for hidden labels"),
        ("mrpc", 0.5, "the class ids 0 to 1, found 0.5"),
        ("stsb", 5.25, "a number from 0 to 5, found 5.25"),
        ("stsb", float("nan"), "a number from 0 to 5, found nan"),
        ("mrpc", None, "the class ids 0 to 1, found nan"),
    ],
)
def test_a_label_out_of_the_tasks_range_is_refused_with_its_row(places, task, label, expected):
    path = put(places["cache"], [ROWS[0], ROWS[1] | {"label": label}], task)
    with pytest.raises(ValueError, match=f"{path}, row 1: expected as label {expected}"):
        load_glue(task, "validation")


@pytest.mark.parametrize(
    ("task", "label", "expected"),
    [
        ("mrpc", "1", "the class ids 0 to 1, found '1'"),
        ("stsb", "3.2", "a number from 0 to 5, found '3.2'"),
        ("mrpc", [1], r"the class ids 0 to 1, found array\(\[1\]\)"),
        ("stsb", [3.2], r"a number from 0 to 5, found array\(\[3.2\]\)"),
        ("mrpc", {"id": 1}, "the class ids 0 to 1, found {'id': 1}"),
        ("mrpc", True, "the class ids 0 to 1, found True"),
        ("stsb", True, "a number from 0 to 5, found True"),
        ("mrpc", None, "the class ids 0 to 1, found None"),
    ],
)
def test_a_label_that_is_no_number_is_shown_as_what_it_is(places, task, label, expected):
    path = put(places["cache"], [row | {"label": label} for row in ROWS], task)
    with pytest.raises(ValueError, match=f"{path}, row 0: expected as label {expected}"):
        load_glue(task, "validation")


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_a_null_in_a_column_of_nullable_integers_is_refused_with_its_row(places, task):
    labels = pd.array([1, None], dtype="Int64")
    path = put(places["cache"], pd.DataFrame(ROWS).assign(label=labels), task)
    with pytest.raises(ValueError, match=f"{path}, row 1: expected as label .*, found <NA>"):
        load_glue(task, "validation")


def test_a_column_of_nullable_integers_without_a_null_is_read(places):
    put(places["cache"], pd.DataFrame(ROWS).astype({"label": "Int64"}))
    labels = [example.label for example in load_glue("mrpc", "validation").examples]
    assert labels == [1, 0] and {*map(type, labels)} == {int}


def test_a_file_that_is_no_parquet_is_named(places):
    path = put(places["cache"], ROWS)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=rf"{path} cannot be read as parquet"):
        load_glue("mrpc", "validation")


def test_a_parquet_file_with_a_broken_byte_is_named(places):
    path = put(places["cache"], ROWS)
    content = bytearray(path.read_bytes())
    content[-20:-12] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} cannot be read as parquet"):
        load_glue("mrpc", "validation")


def test_a_parquet_file_whose_text_is_no_utf_8_is_named(places):
    path = put(places["cache"], ROWS, compression=None)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"e f", b"e\xff\xfe"))
    with pytest.raises(ValueError, match=rf"{path} cannot be read as parquet"):
        load_glue("mrpc", "validation")


@pytest.mark.parametrize("rows", [[], [ROWS[0] | {"sentence2": None}, ROWS[1]], [ROWS[0] | {"sentence2": 7}]])
def test_a_file_without_rows_or_with_something_else_than_text_is_refused(places, rows):
    path = put(places["cache"], rows)
    if not rows:
        pd.DataFrame(ROWS).head(0).to_parquet(path)
    with pytest.raises(ValueError, match=rf"{path} has {len(rows)} rows: expected one or more, each with text in sent"):
        load_glue("mrpc", "validation")


# --- rows -> tokens ---------------------------------------------------------------------------------------------------


def test_a_pair_for_bert_has_a_separator_and_token_types():
    (row,) = encode([Example(("a b", "c"), 1)], bert(), 32).rows
    assert row == {"input_ids": [2, 5, 6, 3, 7, 3], "token_type_ids": [0, 0, 0, 0, 1, 1], "label": 1}


def test_a_pair_for_deberta_has_token_types_too():
    (row,) = encode([Example(("a b", "c"), 1)], deberta(), 32).rows
    assert row == {"input_ids": [1, 5, 6, 2, 7, 2], "token_type_ids": [0, 0, 0, 0, 1, 1], "label": 1}


def test_a_pair_for_roberta_has_two_separators_and_no_token_types():
    tokenizer = roberta()
    (row,) = encode([Example(("ab", "c"), 0)], tokenizer, 32).rows
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<s>", "a", "b", "</s>", "</s>", "c", "</s>"]
    assert row.keys() == {"input_ids", "label"}


def test_one_sentence_is_encoded_alone():
    (row,) = encode([Example(("a b",), 0)], bert(), 32).rows
    assert row["input_ids"] == [2, 5, 6, 3]


def test_the_longer_sentence_is_cut_first_and_the_cut_rows_are_counted():
    examples = [Example(("a", "b c d e f"), 0), Example(("a b c d e", "f g h"), 0), Example(("a b", "c d"), 1)]
    encoded = encode(examples, bert(), 7)
    assert [row["input_ids"] for row in encoded.rows] == [
        [2, 5, 3, 6, 7, 8, 3],  # five of the second sentence are three
        [2, 5, 6, 3, 10, 11, 3],  # five and three are two and two
        [2, 5, 6, 3, 7, 8, 3],  # exactly full, nothing cut
    ]
    assert encoded.truncated == 2


@pytest.mark.parametrize("max_length", [33, None])
def test_more_tokens_than_the_model_takes_or_no_number_of_them_are_refused(max_length):
    with pytest.raises(ValueError, match=f"max_length must be from 3, .*, to the 32 tokens .*; found {max_length}"):
        encode([Example(("a",), 0)], bert(), max_length)


@pytest.mark.parametrize(
    ("tokenizer", "texts", "least"), [(bert, ("a b",), 3), (bert, ("a b", "c d"), 5), (roberta, ("ab", "cd"), 6)]
)
def test_a_length_that_leaves_no_token_of_a_sentence_is_refused_and_the_next_cuts_to_it(tokenizer, texts, least):
    examples = [Example(texts, 0)]
    for length in range(least):
        with pytest.raises(ValueError, match=f"max_length must be from {least}, a token of each .*; found {length}"):
            encode(examples, tokenizer(), length)
    encoded = encode(examples, tokenizer(), least)
    assert (len(encoded.rows[0]["input_ids"]), encoded.truncated) == (least, 1)


@pytest.mark.parametrize(
    ("texts", "found"),
    [("a b", "a plain string, 'a b'"), (("a", None), "NoneType, None at index 1"), ((["a"],), r"list, \['a'\] at")],
)
def test_what_is_no_tuple_of_texts_is_named(texts, found):
    with pytest.raises(TypeError, match=rf"expected a list of texts as texts\[1\], found .*{found}"):
        encode([Example(("a", "b"), 0), Example(texts, 0)], bert(), 32)


# --- tokens -> batches ------------------------------------------------------------------------------------------------


def test_a_batch_is_padded_to_its_longest_row():
    batch = collate(encode([Example(("a b", "c"), 1), Example(("d", "e"), 0)], bert(), 32).rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3, 7, 3], [2, 8, 3, 9, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.int64


def test_the_padding_is_the_models_own_token():
    tokenizer = roberta()
    batch = collate(encode([Example(("ab",), 1), Example(("a",), 0)], tokenizer, 32).rows, tokenizer.pad_token_id)
    assert tokenizer.pad_token_id == 1 and batch["input_ids"][1, -1] == 1
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_a_similarity_is_a_float_label():
    batch = collate([{"input_ids": [2, 3], "label": 3.8}, {"input_ids": [2, 3], "label": 5.0}], pad_token_id=0)
    assert batch["labels"].dtype == torch.float32


def test_padding_to_a_fixed_length_changes_no_logit():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    rows = encode([Example(("a b", "c"), 1), Example(("d e f g", "h h"), 0)], bert(), 32).rows
    with torch.no_grad():
        alone = torch.cat([model(**collate([row], 0)).logits for row in rows])
        padded = collate(rows, 0, pad_to=32)
        assert padded["input_ids"].shape == (2, 32)
        torch.testing.assert_close(model(**collate(rows, 0)).logits, alone)
        torch.testing.assert_close(model(**padded).logits, alone)
        unmasked = model(**padded | {"attention_mask": torch.ones(2, 32, dtype=torch.long)}).logits
        assert not torch.allclose(unmasked, alone, atol=1e-3)


# --- held out, fingerprint --------------------------------------------------------------------------------------------


def test_a_tenth_of_the_rows_is_held_out_and_the_rest_is_kept():
    kept, held_out = held_out_tenth(range(2_490))
    assert len(held_out) == 249 and sorted(kept + held_out) == list(range(2_490))
    assert kept == sorted(kept) and held_out == sorted(held_out)
    assert max(held_out) - min(held_out) > 2_000  # from all over the file


def test_a_single_training_row_cannot_be_held_out_and_trained_on():
    with pytest.raises(ValueError, match=r"expected two or more training rows, .*, found 1"):
        held_out_tenth(["a row"])
    assert held_out_tenth(["a", "b"]) in ((["a"], ["b"]), (["b"], ["a"]))


def test_the_tenth_depends_on_its_seed_alone():
    random.seed(1)
    first = held_out_tenth(range(100))
    random.seed(2)
    assert held_out_tenth(range(100)) == first != held_out_tenth(range(100), seed=1)
    assert held_out_tenth(range(100))[1] == [5, 33, 38, 49, 51, 53, 61, 62, 65, 97]
    assert len(held_out_tenth(range(11))[1]) == 2


def test_the_fingerprint_sees_every_text_label_and_the_order():
    examples = [Example(("a", "b"), 0), Example(("c", "d"), 1)]
    others = [
        [Example(("a", "b"), 1), examples[1]],
        [Example(("ab", ""), 0), examples[1]],
        [Example(("a", "b"), 0.0), examples[1]],
        examples[::-1],
        examples[:1],
    ]
    found = {data_fingerprint(other) for other in (examples, *others)}
    assert len(found) == 6 and data_fingerprint(list(examples)) in found
    assert all(re.fullmatch("[0-9a-f]{16}", fingerprint) for fingerprint in found)


def test_every_glue_task_is_declared():
    assert {name for name, task in TASKS.items() if isinstance(task, GlueTask)} == {
        *GLUE,
        *glue_data.glue_generator.BUILTIN,
    }


@pytest.mark.parametrize(
    ("texts", "found"),
    [([("a", "b", "c")], "rows of 3"), ([("a",), ("a", "b")], "rows of 1 and 2"), ([], "no rows")],
    ids=str,
)
def test_rows_that_have_not_all_one_sentence_or_all_two_are_refused(texts, found):
    with pytest.raises(ValueError, match=f"all one sentence or all two, found {found}"):
        encode([Example(each, 0) for each in texts], bert(), 32)
