"""The folder of an adapter is written whole, read back as it was saved, and else refused; PEFT reads the same."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import adapter_files
from adapter_files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, base_fingerprint, load_lora, save_lora
from lora import LoRAConfig, add_lora, count_parameters, lora_layers, merge_lora, remove_lora, unmerge_lora
from tiny_models import LAYERS, TOKENS, logits, tiny

A = PREFIX + "bert.encoder.layer.0.attention.self.query.lora_A.weight"
OTHER_A = A.replace("layer.0", "layer.1")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
PEFT_WARNS = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
DAMAGED = "expected in .* what was saved, found it damaged or edited since"


def adapted(family: str = "bert", **config) -> nn.Module:
    """A tiny model with random pairs."""
    model = tiny(family)
    add_lora(model, LoRAConfig(rank=2, alpha=4.0, **config))
    torch.manual_seed(1)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3)
    return model


@pytest.fixture
def saved(tmp_path) -> Path:
    """The folder of a BERT with pairs."""
    save_lora(adapted(), tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder: Path, message: str, family: str = "bert") -> None:
    model = tiny(family)
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        load_lora(model, folder)
    assert not lora_layers(model) and torch.equal(logits(model), before)


# Damage and edits -------------------------------------------------------------------------------------------------


def swap(tensors: dict) -> None:
    tensors[A], tensors[OTHER_A] = tensors[OTHER_A], tensors[A]


def flip_a_bit(tensors: dict) -> None:
    tensors[A].view(torch.int32)[0, 0] ^= 1 << 20


CHANGES = {
    "swapped": (swap, DAMAGED),
    "one bit": (flip_a_bit, DAMAGED),
    "missing": (lambda tensors: tensors.pop(A), DAMAGED),
    "unexpected": (lambda tensors: tensors.update({PREFIX + "more": torch.ones(1)}), DAMAGED),
    "another shape": (lambda tensors: tensors.update({A: torch.ones(3, 16)}), DAMAGED),
    "another float": (lambda tensors: tensors.update({A: tensors[A].bfloat16()}), DAMAGED),
    "twice": (lambda tensors: tensors.update({A.removeprefix(PREFIX): tensors[A] + 1}), DAMAGED),
    "NaN": (lambda tensors: tensors[A].fill_(float("nan")), "NaN or infinity in .*lora_A"),
    "int8": (lambda tensors: tensors.update({A: tensors[A].to(torch.int8)}), "torch.int8 or NaN"),
    "float8": (lambda tensors: tensors.update({A: tensors[A].to(torch.float8_e4m3fn)}), "torch.float8_e4m3fn or NaN"),
    "bool": (lambda tensors: tensors.update({A: tensors[A].bool()}), "torch.bool or NaN"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_were_changed_since_they_were_saved_are_refused(saved, change):
    file = saved / WEIGHTS_FILE
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    alter, message = CHANGES[change]
    alter(tensors)
    save_file(tensors, file, header)
    refused(saved, message)


@pytest.mark.parametrize(
    "change",
    [{"targets": ["query", "key"]}, {"base_sha256": None}, {"sha256": None}, {"sha256": "0" * 64}, {"targets": None}],
    ids=str,
)
def test_a_header_that_was_changed_or_lacks_an_entry_is_refused(saved, change):
    file = saved / WEIGHTS_FILE
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["lora"])
    header = {key: value for key, value in (header | change).items() if value is not None}
    save_file(load_file(file), file, {"lora": json.dumps(header)})
    refused(saved, DAMAGED)


SETTINGS = [
    *({key: value} for key in ("r", "lora_alpha", "lora_dropout") for value in (None, [1], "4", float("nan"), 2.5)),
    {"r": 0}, {"r": 3}, {"lora_alpha": 5.0}, {"modules_to_save": 5}, {"init_lora_weights": ["x"]},
    {"target_modules": ["query"]},
]  # fmt: skip


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_settings_that_were_changed_are_refused_with_the_folders_name(saved, change):
    file = saved / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(saved, str(saved))


@pytest.mark.parametrize("change", [c for c in SETTINGS[:15] if c != {"lora_alpha": 2.5}], ids=str)
def test_settings_with_which_lora_cannot_be_are_refused_in_pefts_folder_too(saved, change):
    file = saved / WEIGHTS_FILE
    save_file(load_file(file), file)  # without our header
    settings = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(settings | change))
    refused(saved, "expected LoRA's settings in .*adapter_config.json")
    (saved / CONFIG_FILE).write_text(json.dumps({key: settings[key] for key in settings if key not in change}))
    refused(saved, "expected LoRA's settings in .*adapter_config.json, found KeyError")


NO_SETTINGS = [b"[]", b"null", b"[" * 99999, b'{"a": "\xe9"}', b'{"r": ' + b"9" * 6000 + b"}", b""]


@pytest.mark.parametrize("text", NO_SETTINGS, ids=lambda text: str(text)[:9])
def test_what_is_no_json_of_settings_is_refused(saved, text):
    (saved / CONFIG_FILE).write_bytes(text)
    refused(saved, "expected a whole adapter_config.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    refused(saved, f"expected a whole {name} .*in .*found FileNotFoundError")


@pytest.mark.parametrize("shape", [(), (16,), (16, 2, 1)], ids=str)
def test_a_pair_of_peft_that_is_no_matrix_is_refused(saved, shape):
    file = saved / WEIGHTS_FILE
    save_file(load_file(file) | {A.replace("lora_A", "lora_B"): torch.ones(shape)}, file)
    refused(saved, "expected .*found")


def test_the_name_of_the_base_may_be_edited(saved):
    file = saved / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "elsewhere"}))
    model = tiny("bert")
    load_lora(model, saved)
    assert torch.equal(logits(model), logits(adapted()))


# Whole or not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("earlier", [False, True], ids=["a new folder", "over an earlier adapter"])
def test_a_save_that_fails_leaves_what_was_there_and_nothing_half_written(tmp_path, monkeypatch, earlier):
    folder = tmp_path / "adapter"
    if earlier:
        save_lora(adapted(), folder)
    before = {file.name: file.read_bytes() for file in folder.glob("*")}

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(adapter_files.Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        save_lora(adapted(targets=("key",)), folder)
    assert {file.name: file.read_bytes() for file in folder.glob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"] * earlier


def test_a_later_adapter_takes_the_place_of_an_earlier_one(saved):
    model = adapted(targets=("key", "output"))
    save_lora(model, saved)
    again = tiny("bert")
    load_lora(again, saved)
    assert torch.equal(logits(again), logits(model)) and len(list(saved.iterdir())) == 2


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    left = tmp_path / f".adapter.{os.getpid()}.new"
    left.mkdir()
    (left / "half").touch()
    save_lora(adapted(), tmp_path / "adapter")
    assert not left.exists() and len(list((tmp_path / "adapter").iterdir())) == 2


def test_the_folder_where_one_is_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_lora(adapted(), ".")
    load_lora(tiny("bert"), ".")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_folder_may_be_of_another_file_system_than_the_one_around_it(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "adapter").symlink_to(elsewhere)
        save_lora(adapted(), tmp_path / "adapter")
        load_lora(tiny("bert"), elsewhere)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_both_files_have_the_modes_of_any_other_file(saved):
    (saved / "other").touch()
    assert len({stat.S_IMODE(file.stat().st_mode) for file in saved.iterdir()}) == 1


@pytest.mark.parametrize("act", [merge_lora, lambda model: save_lora(model, "never")], ids=["merge", "save"])
def test_a_pair_that_is_not_of_numbers_is_neither_merged_nor_saved(act):
    model = adapted()
    [*_, layer] = lora_layers(model).values()
    layer.lora_B.data[-1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer.2.attention.self.value can be neither merged nor saved: NaN"):
        act(model)
    assert all(layer.unmerged is None for layer in lora_layers(model).values()) and not Path("never").exists()


@pytest.mark.parametrize(("dtype", "number"), [(torch.float32, 1e25), (torch.float16, 300.0)], ids=str)
def test_pairs_of_numbers_whose_update_is_infinite_are_not_merged(dtype, number):
    model = adapted().to(dtype)
    for layer in lora_layers(model).values():
        nn.init.constant_(layer.lora_A, number), nn.init.constant_(layer.lora_B, number)
    with pytest.raises(ValueError, match="can be neither merged nor saved: NaN or infinity"):
        merge_lora(model)
    assert base_fingerprint(model) == base_fingerprint(tiny("bert").to(dtype))


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_is_not_contiguous_or_shared_comes_back_as_the_same_numbers(tmp_path, shared):
    model, A = adapted(), torch.randn(16, 2)
    model.classifier.requires_grad_(True).weight.data = torch.randn(16, 2).T
    for layer in lora_layers(model).values():
        layer.lora_A.data = A.T if shared else torch.randn(16, 2).T
    save_lora(model, tmp_path)
    again = tiny("bert")
    load_lora(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


# What is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["query.base_layer.bias", "LayerNorm.weight", "pooler.dense.bias"])
@pytest.mark.parametrize("family", ["bert"])
def test_one_trained_parameter_is_kept_alone_for_us_and_for_peft(tmp_path, family, name):
    model = adapted(family)
    for own, parameter in model.named_parameters():
        if own.endswith(name):
            parameter.requires_grad_(True).data += 0.3
    save_lora(model, tmp_path)
    again = tiny(family)
    load_lora(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert trained[0] == trained[1] and count_parameters(model) == count_parameters(again)
    theirs = peft.PeftModel.from_pretrained(tiny(family), tmp_path)
    assert torch.allclose(logits(theirs), logits(model), atol=1e-6)


@pytest.mark.parametrize("targets", [("query", "value"), ("key",), ("query", "key", "value", "output")], ids=str)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_folder_comes_back_through_peft(tmp_path, family, targets):
    model = adapted(family, targets=targets)
    save_lora(model, tmp_path / "ours")
    peft.PeftModel.from_pretrained(tiny(family), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = tiny(family)
    load_lora(again, tmp_path / "theirs")
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    ours, theirs = (dict(m.named_parameters()) for m in (model, again))
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


@PEFT_WARNS
@pytest.mark.parametrize(
    ("family", "end"),
    [("bert", "query.base_layer.bias"), ("roberta", "base_layer.bias"), ("deberta-v2", "bias"), ("gpt2", "wte.weight")],
)
def test_trained_biases_and_a_tied_embedding_come_back_through_peft(tmp_path, family, end):
    model = adapted(family)
    for name, parameter in model.named_parameters():
        if name.endswith(end):
            nn.init.normal_(parameter.requires_grad_(True))
    save_lora(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny(family), tmp_path / "ours")
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = tiny(family)
        load_lora(again, tmp_path / folder)
        assert torch.equal(logits(again), logits(model))


@PEFT_WARNS
@pytest.mark.parametrize(
    ("heads", "found"), [(["wte"], r"\[\]"), (["wte", "lm_head"], r".*apart from the one it is tied to")]
)
def test_an_embedding_that_peft_trained_apart_from_the_output_it_is_tied_to_is_refused(tmp_path, heads, found):
    settings = peft.LoraConfig(r=2, target_modules=["attn.c_proj"], fan_in_fan_out=True, modules_to_save=heads)
    theirs = peft.get_peft_model(tiny("gpt2"), settings)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    refused(tmp_path, rf"expected \[\('lm_head.weight', 24, 16\).*found {found}", "gpt2")


def test_ranks_are_told_to_peft_only_where_a_matrix_has_several_pairs(saved, tmp_path):
    assert not {"rank_pattern", "alpha_pattern"} & json.loads((saved / CONFIG_FILE).read_text()).keys()
    save_lora(adapted("gpt2"), tmp_path)
    assert set(json.loads((tmp_path / CONFIG_FILE).read_text())["rank_pattern"].values()) == {4}


def test_a_pair_that_peft_trained_over_all_of_a_packed_matrix_is_refused_and_no_block_is_dropped(tmp_path):
    save_lora(adapted("gpt2"), tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny("gpt2"), tmp_path, is_trainable=True)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1  # now the key is adapted too
    theirs.save_pretrained(tmp_path)
    refused(tmp_path, "expected plain LoRA of one rank and alpha in", "gpt2")


def test_a_head_and_all_biases_come_back_through_peft_which_writes_the_heads_three_times(tmp_path):
    model = adapted("bert")
    for name, parameter in model.named_parameters():
        if name.startswith("classifier") or name.endswith("bias"):
            nn.init.normal_(parameter.requires_grad_(True))
    save_lora(model, tmp_path / "ours")
    peft.PeftModel.from_pretrained(tiny("bert"), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert len([n for n in load_file(tmp_path / "theirs" / WEIGHTS_FILE) if n.endswith("classifier.bias")]) == 1
    again = tiny("bert")
    load_lora(again, tmp_path / "theirs")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("zero", [slice(0, 16), slice(16, 32), slice(None)], ids=["query", "value", "both"])
@pytest.mark.parametrize("layers", [1, LAYERS])
def test_a_block_of_zeros_comes_back_through_peft(tmp_path, layers, zero):
    model = adapted("gpt2")
    for layer in list(lora_layers(model).values())[:layers]:
        layer.lora_B.data[zero] = 0
    save_lora(model, tmp_path / "ours")
    peft.PeftModel.from_pretrained(tiny("gpt2"), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = tiny("gpt2")
    if layers == LAYERS and zero != slice(None):  # no layer tells which projection the zeros are of
        refused(tmp_path / "theirs", "expected plain LoRA of one rank and alpha in", "gpt2")
    else:
        load_lora(again, tmp_path / "theirs")
        assert torch.allclose(logits(again), logits(model), atol=1e-6)


@pytest.mark.parametrize(
    "edit", [{"target_modules": ["query"]}, {"exclude_modules": ["value"]}, {"layers_to_transform": [0]}], ids=str
)
def test_pairs_that_peft_would_leave_out_are_refused(tmp_path, edit):
    peft.get_peft_model(tiny("bert"), peft.LoraConfig(r=2, target_modules=["query", "value"])).save_pretrained(tmp_path)
    load_lora(tiny("bert"), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | edit))
    refused(tmp_path, rf"expected the pairs that {CONFIG_FILE} asks for in .*, found bert.*lora_A.weight too")


def test_layers_that_peft_repeats_are_no_plain_lora(tmp_path):
    settings = peft.LoraConfig(r=2, target_modules=["query"], layer_replication=[(0, 1), (0, 1), (1, 2)])
    peft.get_peft_model(tiny("bert"), settings).save_pretrained(tmp_path)
    refused(tmp_path, "expected plain LoRA in .*layer_replication")


# Wrappers ---------------------------------------------------------------------------------------------------------


class Compiled(nn.Module):
    """A module as torch.compile names it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._orig_mod = model

    def forward(self, *args, **kwargs):
        return self._orig_mod(*args, **kwargs)


def in_part(wrapper, *names: str):
    """A function that wraps these modules of a BERT."""

    def wrap(model: nn.Module) -> nn.Module:
        for name in names:
            model.set_submodule(name, wrapper(model.get_submodule(name)))
        return model

    return wrap


BLOCKS = [f"bert.encoder.layer.{i}" for i in range(LAYERS)]
WRAPPED = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "the other way round": lambda model: Compiled(nn.DataParallel(model)),
    "a part compiled": in_part(Compiled, "bert.encoder"),
    "a part parallel": in_part(nn.DataParallel, "bert.encoder"),
    "each layer compiled": in_part(Compiled, *BLOCKS),
    "each layer recomputed": in_part(checkpoint_wrapper, *BLOCKS),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_wrapped_model_saves_the_names_of_the_plain_one_and_takes_them(tmp_path, wrapper):
    model = adapted()
    model.classifier.requires_grad_(True)
    want = logits(model)
    save_lora(WRAPPED[wrapper](model), tmp_path)
    assert not any("_orig_mod" in name or "module" in name for name in load_file(tmp_path / WEIGHTS_FILE))
    again = tiny("bert")
    load_lora(again, tmp_path)
    assert torch.equal(logits(again), want)
    inner = tiny("bert")
    load_lora(WRAPPED[wrapper](inner), tmp_path)
    merge_lora(inner)
    remove_lora(inner)
    assert torch.allclose(inner(TOKENS).logits, want, atol=1e-5)


# Merged, and the state dict ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("merged", [(True, False), (False, True), (True, True)], ids=str)
def test_a_state_dict_counts_the_update_once_whether_its_models_are_merged_or_not(family, merged):
    model, other = adapted(family), adapted(family)
    for layer in lora_layers(other).values():
        nn.init.normal_(layer.lora_B)
    want = logits(model)
    for each, is_merged in zip((model, other), merged, strict=True):
        if is_merged:
            merge_lora(each)
    other.load_state_dict(model.state_dict())
    assert torch.allclose(logits(other), want, atol=1e-5)
    merge_lora(other)
    assert torch.allclose(logits(other), want, atol=1e-5)


@pytest.mark.parametrize(
    "read",
    [nn.Module.state_dict, base_fingerprint, lambda model: save_lora(model, "adapter"), copy.deepcopy, pickle.dumps],
    ids=["state dict", "fingerprint", "save", "copy", "pickle"],
)
def test_who_reads_a_merged_model_leaves_it_merged(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    model = adapted()
    want, unmerged = logits(model), read(adapted())
    merge_lora(model)
    merged = logits(model)
    assert read is not base_fingerprint or read(model) == unmerged
    read(model)
    assert torch.equal(logits(model), merged)
    remove_lora(model)
    assert torch.allclose(logits(model), want, atol=1e-5) and not torch.allclose(logits(tiny("bert")), want, atol=1e-2)


def test_a_state_dict_that_was_taken_before_merging_stays_that_of_an_unmerged_model():
    model, other = adapted(), adapted()
    state, want = model.state_dict(), logits(model)
    merge_lora(model)
    other.load_state_dict(state)
    assert torch.equal(logits(other), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_changes_its_type_while_it_is_merged_has_its_base_in_that_type(dtype):
    model = adapted()
    merge_lora(model)
    model.to(dtype)
    assert model.state_dict()["bert.encoder.layer.0.attention.self.query.base_layer.weight"].dtype == dtype
    unmerge_lora(model)
    remove_lora(model)
    assert all(torch.equal(*two) for two in zip(model.parameters(), tiny("bert").to(dtype).parameters(), strict=True))


def test_training_a_merged_model_trains_its_pairs_as_if_it_had_not_been_merged():
    def trained(merge: bool) -> list[torch.Tensor]:
        model = adapted().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if merge:
            merge_lora(model)
        model(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    ours, usual = trained(merge=True), trained(merge=False)
    assert ours and all(torch.equal(a, b) for a, b in zip(ours, usual, strict=True))
