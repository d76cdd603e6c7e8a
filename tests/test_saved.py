"""What a method learnt comes back from its file as it was, or the file is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from adapter_files import WEIGHTS_FILE
from experiments.settings import Job
from lora import merge_lora
from methods.catalogue import apply_method
from methods.saved import TRAINED_FILE, load_adapter, load_trained, save_adapter, save_trained
from runs import execute
from tiny_models import INSIDE, SOME_CASES, adapted, expected_names, logits, settings, step, tiny


def another_head(model: nn.Module, family: str) -> nn.Module:
    """As a new head is: other numbers than in the model that was trained."""
    for name, parameter in model.named_parameters():
        if name.startswith(INSIDE[family][1]) and INSIDE[family][1]:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("method", "family"), [*SOME_CASES, ("bitfit", "bert"), ("adapter-h", "roberta")])
def test_a_saved_model_comes_back_from_what_was_trained_alone(tmp_path, method, family):
    model = step(adapted(method, family), 2)
    save_trained(model, settings(method, family), tmp_path)
    loaded = another_head(tiny(family), family)
    assert load_trained(loaded, tmp_path) == settings(method, family)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.allclose(logits(tiny(family)), logits(model), atol=1e-3)
    assert load_file(tmp_path / TRAINED_FILE).keys() == expected_names(method, family)
    trainable = [[name for name, p in m.named_parameters() if p.requires_grad] for m in (model, loaded)]
    assert trainable[0] == trainable[1]


@pytest.fixture
def saved(tmp_path):
    """A folder with what Adapter^H learnt on RoBERTa."""
    save_trained(step(adapted("adapter-h", "roberta"), 2), settings("adapter-h", "roberta"), tmp_path)
    return tmp_path


@pytest.mark.parametrize(("method", "family"), [("lora", "gpt2"), ("adapter-h", "bert"), ("prelayer", "llama")])
def test_a_merged_or_wrapped_model_is_saved_and_loaded_under_the_names_of_the_plain_one(tmp_path, method, family):
    pair = {"packed_pair": True, "rank": 2, "alpha": 4.0, "targets": ("query", "value")} if method == "lora" else {}
    model = step(adapted(method, family, **pair), 2).eval()
    want = logits(model)
    merge_lora(model)
    layers = model.get_submodule(INSIDE[family][0])
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer, backend="eager")
    save_trained(nn.DataParallel(model), settings(method, family, **pair), tmp_path)
    loaded = tiny(family)
    load_trained(torch.compile(loaded, backend="eager"), tmp_path)
    assert torch.equal(logits(loaded), want)
    assert not torch.allclose(logits(tiny(family)), want, atol=1e-3)


def rewrite(folder, change, header=None) -> None:
    """The file with `change(tensors)` applied, and its header or another."""
    with safe_open(folder / TRAINED_FILE, "pt") as opened:
        header = header or opened.metadata()
    tensors = load_file(folder / TRAINED_FILE)
    change(tensors)
    save_file(tensors, folder / TRAINED_FILE, header)


def refused(model: nn.Module, folder, message: str) -> None:
    before = [(name, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        load_trained(model, folder)
    for (name, tensor, needs), (name_after, p) in zip(before, model.named_parameters(), strict=True):
        assert name == name_after and torch.equal(tensor, p) and needs == p.requires_grad


def test_what_was_trained_on_another_base_is_refused(saved):
    model = tiny("roberta")
    with torch.no_grad():
        model.roberta.encoder.layer[0].intermediate.dense.weight[0, 0] += 0.1
    refused(
        model, saved, r"is not for this Roberta.*expected \[\('base weights', '\w{64}'\)\].*load the model it is for"
    )
    load_trained(tiny("roberta"), saved)


def test_biases_trained_on_another_base_are_refused(tmp_path):
    save_trained(step(adapted("bitfit")), settings("bitfit"), tmp_path)
    refused(tiny(seed=1), tmp_path, "base weights")
    model = tiny()
    nn.init.normal_(model.transformer.h[0].mlp.c_fc.bias)  # what is replaced may be anything
    load_trained(model, tmp_path)


def test_what_was_trained_on_another_architecture_is_refused(saved):
    refused(tiny("bert"), saved, "is not for this BertForSequenceClassification")
    refused(tiny(), saved, "is not for this GPT2LMHeadModel")
    refused(tiny("roberta", num_hidden_layers=2), saved, r"found \[.*layer.2.adapters")


def test_a_head_with_other_outputs_is_refused(saved):
    refused(tiny("roberta", num_labels=3), saved, r"expected \[\('classifier.out_proj.bias', 3\)")


BIAS = "classifier.dense.bias"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.popitem(),
        lambda tensors: tensors.update(extra=torch.ones(1)),
        lambda tensors: tensors.update({BIAS: torch.ones(3)}),
        lambda tensors: tensors.update({BIAS: tensors[BIAS] + 1}),
        lambda tensors: tensors.update({BIAS: tensors[BIAS].bfloat16()}),
    ],
    ids=["missing", "unexpected", "shape", "value", "type"],
)
def test_a_file_that_was_changed_since_it_was_saved_is_refused(saved, change):
    rewrite(saved, change)
    refused(tiny("roberta"), saved, "expected in .* what was saved, found it damaged or edited since")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_neither_saved_nor_loaded(saved, value):
    model = step(adapted("adapter-h", "roberta"))
    model.classifier.dense.bias.data[0] = value
    with pytest.raises(ValueError, match=f"found NaN or infinity in {BIAS}"):
        save_trained(model, settings("adapter-h", "roberta"), saved / "new")
    assert not (saved / "new").exists()
    rewrite(saved, lambda tensors: tensors[BIAS].fill_(value))
    refused(tiny("roberta"), saved, f"NaN or infinity in {BIAS}")


def test_a_file_that_is_cut_short_or_absent_is_refused(saved):
    file = saved / TRAINED_FILE
    file.write_bytes(file.read_bytes()[:-8])
    refused(tiny("roberta"), saved, "expected a whole trained.safetensors .*SafetensorError")
    file.unlink()
    refused(tiny("roberta"), saved, "expected a whole trained.safetensors .*FileNotFoundError")


def test_a_pickle_is_refused_unopened(saved):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (saved / TRAINED_FILE).write_bytes(pickle.dumps(Trap()))
    refused(tiny("roberta"), saved, "expected a whole trained.safetensors .*a pickle is never opened")


@pytest.mark.parametrize("header", [{"format": "pt"}, {"method": "{}"}, {"method": '{"settings": {"no": 1}}'}], ids=str)
def test_a_file_that_save_trained_did_not_write_is_refused(saved, header):
    rewrite(saved, lambda tensors: None, header)
    refused(tiny("roberta"), saved, "expected the settings of save_trained in the header of .*trained.safetensors")


@pytest.mark.parametrize(
    ("method", "file"),
    [
        ("lora", "adapter_model.safetensors"),
        ("full", None),
        ("bitfit", TRAINED_FILE),
        ("adapter-h", TRAINED_FILE),
        ("prelayer", TRAINED_FILE),
    ],
)
def test_a_run_keeps_what_its_method_learnt_and_no_whole_model(tmp_path, monkeypatch, method, file):
    def trained(model, tokenizer, job, keep_adapter):
        keep_adapter(model)
        return {}, []

    monkeypatch.setattr(execute, "load_model", lambda *_: tiny())
    monkeypatch.setattr(execute, "load_tokenizer", lambda *_: None)
    monkeypatch.setitem(execute.WORKFLOWS, "e2e", trained)
    lora = {"rank": 2, "alpha": 2, "targets": ("query", "value")} if method == "lora" else {}
    job = Job(settings(method, **lora), 0, tmp_path / "checkpoints")
    measured, _ = execute.measure(job, tmp_path / "kept")
    found = {path.name for path in (tmp_path / "kept").glob("*.safetensors")}
    assert found == ({file} if file else set())
    assert measured["parameters"]["trainable"] > 0


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_a_folder_may_be_named_by_a_text(tmp_path, method):
    model = tiny("gpt2")
    chosen = settings(method, "gpt2", **({"rank": 2, "alpha": 2.0, "targets": ("query",)} if method == "lora" else {}))
    apply_method(model, chosen)
    save_adapter(model, chosen, f"{tmp_path}/kept")
    load_adapter(tiny("gpt2"), f"{tmp_path}/kept")


@pytest.mark.parametrize("methods", [("bitfit", "lora"), ("lora", "bitfit")], ids=str)
def test_of_two_methods_saved_into_one_folder_the_later_is_there(tmp_path, methods):
    pair = {"lora": {"rank": 2, "alpha": 4.0, "targets": ("query",)}, "bitfit": {}}
    for method in methods:
        model = step(adapted(method, "bert", **pair[method]), 2)
        save_adapter(model, settings(method, "bert", **pair[method]), tmp_path)
    loaded = tiny("bert")
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_a_folder_with_two_adapters_is_refused(tmp_path):
    for name in (TRAINED_FILE, WEIGHTS_FILE):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"expected one adapter in .*: delete one of them"):
        load_adapter(tiny("bert"), tmp_path)
