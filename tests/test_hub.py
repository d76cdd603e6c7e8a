"""What is fetched from the model hub, through its own client in a process of its own, from a hub on localhost."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import sentencepiece
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
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
    RobertaModel,
    RobertaTokenizer,
)

import files
from models import BASES, base_revision, load_model, load_tokenizer
from stand_in_hub import NEWEST, PINNED, StandInHub
from tasks.glue.data import COMMIT, REPOSITORY, load_glue

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SENTENCES = [{"sentence": "The tea is hot.", "label": 1}, {"sentence": "The hot is tea.", "label": 0}]
XLARGE, XXLARGE = "microsoft/deberta-v2-xlarge", "microsoft/deberta-v2-xxlarge"
GLUE_FILE = "cola/validation-00000-of-00001.parquet"

FETCH = """
import json, os, sys, threading
from pathlib import Path
import transformers
import files
from tasks.glue import data as glue_data
from models import BASES, base_revision, load_model, load_tokenizer

converted = []
transformers.modeling_utils.auto_conversion = lambda *_, **__: converted.append(threading.current_thread().name)
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
every = [("roberta-base", 0.25), ("deberta-v2-xlarge", 0.15), ("deberta-v2-xlarge", 0.0), ("deberta-v2-xxlarge", None)]
for name, head_dropout in every:
    model = load_model(name, 3, head_dropout)
    facts = [model.num_labels, (getattr(model, "dropout", None) or model.classifier.dropout).p]
    words = load_tokenizer(name)("tea", "tea")
    fetched[name] = [model.base_model.embeddings.word_embeddings.weight.sum().item(), dict(words)]
    fetched.setdefault(f"{name}'s heads", []).append(facts)
    fetched[f"{name}'s types"] = sorted({str(tensor.dtype) for tensor in model.state_dict().values()})
try:
    load_model("gpt2-large")
except Exception as error:
    fetched["gpt2-large"] = [type(error).__name__, str(error)]
fetched["revisions"] = {name: base_revision(name) for name in BASES}
fetched["threads"] = list(converted)
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "0"
load_model("deberta-v2-xlarge", 3)
[thread.join() for thread in threading.enumerate() if "conversion" in thread.name]
fetched["threads of a model that is loaded plainly"] = converted
print(json.dumps(fetched))
"""


def fill(folder):
    """The files that the hub serves: GLUE's CoLA and RTE (the latter broken), and tiny models, each as the real one is.

    GPT-2: no prefix, and a mask `attn.bias`. RoBERTa: `position_ids` and a pooler. DeBERTa: a float16 `.bin` alone.
    """
    torch.manual_seed(0)
    for file in (GLUE_FILE, "rte/validation-00000-of-00001.parquet"):
        path = folder / "datasets" / REPOSITORY / file
        path.parent.mkdir(parents=True)
        pd.DataFrame(SENTENCES if file == GLUE_FILE else SENTENCES[:1]).to_parquet(path)
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    after = {symbol: i for i, symbol in enumerate(BYTES, 5)}
    models = folder / "models"
    gpt2 = GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=300, bos_token_id=0, eos_token_id=0)
    mask = torch.ones(16, 16).tril()[None, None]
    state = {"h.0.attn.bias": mask} | GPT2LMHeadModel(gpt2).transformer.state_dict()  # no prefix, no second wte
    serve(models / "openai-community/gpt2", gpt2, state)
    shutil.copytree(models / "openai-community/gpt2", models / "openai-community/gpt2-large")
    GPT2Tokenizer(vocab={"<|endoftext|>": 0} | after, merges=[]).save_pretrained(models / "openai-community/gpt2")
    roberta = RobertaConfig(vocab_size=300, type_vocab_size=1, max_position_embeddings=514, **TINY)
    model = RobertaForMaskedLM(roberta)
    model.roberta.pooler = RobertaModel(roberta).pooler
    serve(
        models / "FacebookAI/roberta-base",
        roberta,
        model.state_dict() | {"roberta.embeddings.position_ids": torch.arange(514)[None]},
    )
    tokenizer = RobertaTokenizer(vocab=special | after, merges=[], model_max_length=512)
    tokenizer.save_pretrained(models / "FacebookAI/roberta-base")
    deberta = DebertaV2Config(**BASES["deberta-v2-xlarge"].shape | TINY | {"vocab_size": 16})
    serve(models / XLARGE, deberta, DebertaV2ForMaskedLM(deberta).half().state_dict(), "pytorch_model.bin")
    (models / XLARGE / "spm.model").write_bytes(pieces())  # all that the real repository has of a tokenizer
    shutil.copytree(models / XLARGE, models / XXLARGE)


def serve(folder, config, state, file="model.safetensors"):
    """Write a repository of a configuration and one file of weights, its tensors as the real one names them."""
    config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in state.items() if name != "lm_head.decoder.weight"}  # tied
    torch.save(state, folder / file) if file.endswith(".bin") else save_file(state, folder / file, {"format": "pt"})


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
    with StandInHub(folder, renamed={"roberta-base": "FacebookAI/roberta-base"}) as hub:
        hub.commits["openai-community/gpt2-large"] = NEWEST  # its publisher has rewritten the history
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


def served(folder, source):
    """The name of the one file of weights that the hub has of a model, and its tensors."""
    [file] = (folder / "models" / source).glob("*model*.[sb]*")
    return file.name, torch.load(file) if file.suffix == ".bin" else load_file(file)


def sum_of(folder, source, name):
    """The sum of a tensor in the file that the hub serves: which weights were loaded."""
    return pytest.approx(served(folder, source)[1][name].float().sum().item())


def test_the_hub_serves_files_as_the_publishers_do(visit):
    of_gpt2, of_roberta, of_deberta = (
        served(visit[0], source) for source in ("openai-community/gpt2", "FacebookAI/roberta-base", XLARGE)
    )
    assert of_gpt2[0] == of_roberta[0] == "model.safetensors" and of_deberta[0] == "pytorch_model.bin"
    assert "h.0.attn.bias" in of_gpt2[1] and not any(name.startswith("transformer.") for name in of_gpt2[1])
    assert {"roberta.embeddings.position_ids", "roberta.pooler.dense.weight"} <= of_roberta[1].keys()
    assert {tensor.dtype for tensor in of_deberta[1].values()} == {torch.float16}


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


class TooManyRedirects(HTTPError):
    """As the package has it that the hub's client fetches with: httpx, and from version 2 of the client on httpx2."""


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
    assert weights == sum_of(folder, "openai-community/gpt2", "wte.weight")
    assert [BYTES[token - 5] for token in tokens] == ["t", "e", "a"]
    assert "GET /lfs/models/openai-community/gpt2/model.safetensors" in asked


def test_roberta_comes_from_the_hub_under_its_old_name(visit):
    folder, fetched, *_ = visit
    weights, words = fetched["roberta-base"]
    assert weights == sum_of(folder, "FacebookAI/roberta-base", "roberta.embeddings.word_embeddings.weight")
    assert words["input_ids"][0] == 0 and words["input_ids"].count(2) == 3 and "token_type_ids" not in words


def test_deberta_comes_from_the_hub_with_token_types_and_a_sentencepiece_model_as_tokenizer(visit):
    folder, fetched, asked, _ = visit
    assert f"GET /microsoft/deberta-v2-xlarge/resolve/{PINNED[XLARGE]}/spm.model" in asked
    weights, words = fetched["deberta-v2-xlarge"]
    assert weights == sum_of(folder, XLARGE, "deberta.embeddings.word_embeddings.weight")
    assert words == {"input_ids": [1, 4, 2, 4, 2], "token_type_ids": [0, 0, 0, 1, 1], "attention_mask": [1] * 5}


def test_an_encoder_from_the_hub_has_the_outputs_and_the_head_dropout_that_are_asked_for(visit):
    _, fetched, *_ = visit
    assert fetched["roberta-base's heads"] == [[3, 0.25]]
    assert fetched["deberta-v2-xlarge's heads"] == [[3, 0.15], [3, 0.0]]


def test_float16_weights_of_deberta_in_a_bin_file_are_loaded_as_float32(visit):
    _, fetched, asked, _ = visit
    assert f"GET /lfs/models/{XLARGE}/pytorch_model.bin" in asked
    assert fetched["deberta-v2-xlarge's types"] == ["torch.float32"]


def test_weights_and_tokenizer_are_asked_for_at_the_pinned_commit_alone_which_the_record_has(visit):
    _, fetched, asked, _ = visit
    for source, commit in PINNED.items():
        revisions = {path.split("/resolve/")[1].split("/")[0] for path in asked if f"/{source}/resolve/" in path}
        assert revisions <= {commit}, source
    assert any(f"/{XXLARGE}/resolve/main/" in path for path in asked)  # the only one that is not pinned
    for name, entry in BASES.items():
        expected = NEWEST if entry.source == XXLARGE else entry.revision or entry.sha256
        assert fetched["revisions"][name] == expected


def test_a_commit_that_the_hub_does_not_have_is_named_and_no_other_is_taken(visit):
    kind, message = visit[1]["gpt2-large"]
    assert kind == "FileNotFoundError" and message.startswith("cannot load gpt2-large from openai-community/gpt2-large")
    assert PINNED["openai-community/gpt2-large"] in message and "Check the connection to the hub" in message


def test_no_thread_asks_for_safetensors_where_the_publisher_has_a_bin_file(visit):
    _, fetched, asked, _ = visit
    assert fetched["threads"] == []
    assert fetched["threads of a model that is loaded plainly"] == ["Thread-auto_conversion"]
    assert not [path for path in asked if "discussions" in path or "refs/pr" in path]


def test_the_newest_of_a_base_that_is_not_in_the_hubs_cache_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr("models.try_to_load_from_cache", lambda *_: None)
    assert base_revision("deberta-v2-xxlarge") is None
    assert base_revision("gpt2") == PINNED["openai-community/gpt2"]
