"""What is fetched from the model hub, through its own client in a process of its own, from a hub on localhost."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import sentencepiece
import torch
from httpx import TooManyRedirects
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)

import files
from models import load_model, load_tokenizer
from stand_in_hub import StandInHub
from tasks.glue.data import COMMIT, REPOSITORY, load_glue

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SENTENCES = [{"sentence": "The tea is hot.", "label": 1}, {"sentence": "The hot is tea.", "label": 0}]
GLUE_FILE = "cola/validation-00000-of-00001.parquet"

FETCH = """
import json, sys
from pathlib import Path
import files
from tasks.glue import data as glue_data
from models import load_model, load_tokenizer

cache, checksum = sys.argv[1:]
files.CACHE, files.SHARED = Path(cache), Path(cache, "none")
glue_data.CHECKSUMS["cola/validation"] = checksum
fetched = {"cola": [example.texts[0] for example in glue_data.load_glue("cola", "validation").examples]}
glue_data.CHECKSUMS["rte/validation"] = checksum
for name in ("rte", "mrpc"):
    try:
        glue_data.load_glue(name, "validation")
    except Exception as error:
        fetched[name] = [type(error).__name__, str(error)]
fetched["gpt2"] = [load_model("gpt2").transformer.wte.weight.sum().item(), load_tokenizer("gpt2")("tea").input_ids]
for name, head_dropout in (("roberta-base", None), ("deberta-v2-xlarge", 0.15), ("deberta-v2-xlarge", 0.0)):
    model = load_model(name, 3, head_dropout)
    facts = [model.num_labels, getattr(model, "dropout", None) and model.dropout.p]
    words = load_tokenizer(name)("tea", "tea")
    fetched[name] = [model.base_model.embeddings.word_embeddings.weight.sum().item(), dict(words)]
    fetched.setdefault(f"{name}'s heads", []).append(facts)
print(json.dumps(fetched))
"""


def fill(folder):
    """The files that the hub serves: GLUE's CoLA and RTE (the latter broken), and three tiny models."""
    torch.manual_seed(0)
    for file in (GLUE_FILE, "rte/validation-00000-of-00001.parquet"):
        path = folder / "datasets" / REPOSITORY / file
        path.parent.mkdir(parents=True)
        pd.DataFrame(SENTENCES if file == GLUE_FILE else SENTENCES[:1]).to_parquet(path)
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    after = {symbol: i for i, symbol in enumerate(BYTES, 5)}
    models = folder / "models"
    for source, model, tokenizer in (
        (
            "openai-community/gpt2",
            GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=300, bos_token_id=0, eos_token_id=0)),
            GPT2Tokenizer(vocab={"<|endoftext|>": 0} | after, merges=[]),
        ),
        (
            "FacebookAI/roberta-base",
            RobertaForMaskedLM(RobertaConfig(vocab_size=300, type_vocab_size=1, max_position_embeddings=514, **TINY)),
            RobertaTokenizer(vocab=special | after, merges=[], model_max_length=512),
        ),
    ):
        model.save_pretrained(models / source)
        tokenizer.save_pretrained(models / source)
    deberta = models / "microsoft/deberta-v2-xlarge"
    DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=16, pos_att_type=["c2p"], **TINY)).save_pretrained(deberta)
    (deberta / "spm.model").write_bytes(pieces())  # all that the real repository has of a tokenizer


def pieces():
    """A SentencePiece model with DeBERTa's special pieces, to which "tea" is one piece."""
    special = {f"{role}_id": number for number, role in enumerate(("pad", "bos", "eos", "unk"))}
    special |= {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["tea"] * 9 + ["a tea"]), model_writer=(written := io.BytesIO()), vocab_size=9,
        hard_vocab_limit=False, minloglevel=2, **special,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """The hub's folder, what a process with an empty HF_HOME fetched, what was asked for, and its GLUE cache."""
    folder, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    fill(folder)
    checksum = hashlib.sha256((folder / "datasets" / REPOSITORY / GLUE_FILE).read_bytes()).hexdigest()
    with StandInHub(folder, commit=COMMIT, renamed={"roberta-base": "FacebookAI/roberta-base"}) as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LORA_"))}
        done = subprocess.run(
            [sys.executable, "-c", FETCH, str(home / "cache"), checksum],
            env=environment | settings | {"PYTHONPATH": str(files.ROOT / "code")},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), hub.asked, home / "cache"


def sum_of(folder, source, name):
    """The sum of a tensor in the file that the hub serves: which weights were loaded."""
    return pytest.approx(load_file(folder / "models" / source / "model.safetensors")[name].sum().item())


def test_glue_comes_from_the_hub_at_the_declared_commit(visit):
    _, fetched, asked, _ = visit
    assert fetched["cola"] == [row["sentence"] for row in SENTENCES]
    assert f"HEAD /datasets/nyu-mll/glue/resolve/{COMMIT}/{GLUE_FILE}" in asked


def test_what_the_hub_gave_is_found_in_the_cache_without_it(visit, monkeypatch):
    *_, cache = visit
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", cache)
    monkeypatch.setattr(files, "SHARED", cache / "none")
    split = load_glue("cola", "validation")
    assert [example.label for example in split.examples] == [1, 0]
    assert split.subset  # two rows of 1,043
    assert [path.name for path in (cache / "glue" / "cola").iterdir()] == ["validation-00000-of-00001.parquet"]


def test_a_file_with_another_checksum_is_refused_and_not_kept(visit):
    folder, fetched, _, cache = visit
    served = folder / "datasets" / REPOSITORY / "rte/validation-00000-of-00001.parquet"
    kind, message = fetched["rte"]
    assert kind == "ValueError" and hashlib.sha256(served.read_bytes()).hexdigest() in message
    assert not (cache / "glue" / "rte").exists()


def test_a_file_that_no_place_has_is_one_error_that_names_them_all(visit):
    *_, fetched, _, cache = visit
    kind, message = fetched["mrpc"]
    assert kind == "FileNotFoundError"
    for place in (
        cache / "glue/mrpc/validation-00000-of-00001.parquet",
        cache / "none",
        f"nyu-mll/glue at {COMMIT[:7]}",
    ):
        assert str(place) in message


@pytest.mark.parametrize("load", [load_model, load_tokenizer], ids=["model", "tokenizer"])
def test_a_connection_that_goes_in_a_circle_is_said_with_what_to_check(load, monkeypatch):
    def circle(*_, **__):
        raise TooManyRedirects("Exceeded 20 redirects")

    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", circle)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", circle)
    with pytest.raises(
        FileNotFoundError, match=r"gpt2 from openai-community/gpt2: Exceeded 20 .* Check the connection"
    ):
        load("gpt2")


def test_data_whose_connection_goes_in_a_circle_are_in_none_of_the_places_tried(monkeypatch, tmp_path):
    def circle(*_, **__):
        raise TooManyRedirects("Exceeded 20 redirects")

    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", tmp_path)
    monkeypatch.setattr(files, "SHARED", tmp_path)
    monkeypatch.setattr("tasks.glue.data.hf_hub_download", circle)
    with pytest.raises(FileNotFoundError, match=r"none of the places(.|\n)*TooManyRedirects: Exceeded 20"):
        load_glue("cola", "validation")


def test_gpt2_and_its_tokenizer_come_from_the_hub(visit):
    folder, fetched, asked, _ = visit
    weights, tokens = fetched["gpt2"]
    assert weights == sum_of(folder, "openai-community/gpt2", "transformer.wte.weight")
    assert [BYTES[token - 5] for token in tokens] == ["t", "e", "a"]
    assert "GET /lfs/models/openai-community/gpt2/model.safetensors" in asked


def test_roberta_comes_from_the_hub_under_its_old_name(visit):
    folder, fetched, *_ = visit
    weights, words = fetched["roberta-base"]
    assert weights == sum_of(folder, "FacebookAI/roberta-base", "roberta.embeddings.word_embeddings.weight")
    assert words["input_ids"][0] == 0 and words["input_ids"].count(2) == 3 and "token_type_ids" not in words


def test_deberta_comes_from_the_hub_with_token_types_and_a_sentencepiece_model_as_tokenizer(visit):
    folder, fetched, asked, _ = visit
    assert f"GET /microsoft/deberta-v2-xlarge/resolve/{COMMIT}/spm.model" in asked
    weights, words = fetched["deberta-v2-xlarge"]
    assert weights == sum_of(folder, "microsoft/deberta-v2-xlarge", "deberta.embeddings.word_embeddings.weight")
    assert words == {"input_ids": [1, 4, 2, 4, 2], "token_type_ids": [0, 0, 0, 1, 1], "attention_mask": [1] * 5}


def test_an_encoder_from_the_hub_has_the_outputs_and_deberta_the_head_dropout_that_are_asked_for(visit):
    _, fetched, *_ = visit
    assert fetched["roberta-base's heads"] == [[3, None]]
    assert fetched["deberta-v2-xlarge's heads"] == [[3, 0.15], [3, 0.0]]
