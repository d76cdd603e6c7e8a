"""A frozen base in int8: near what it was, smaller, trained beside as before, and plain again before it is merged.

The slow ones install torchao into a folder of their own: in the environment, every process would import it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from families import layers
from lora import lora_layers, merge_lora, remove_lora
from test_precision import adapted, distance, in_bfloat16, loss_and_gradients
from tiny_models import logits
from training.int8 import TORCHAO, as_numbers, hold_in_int8
from training.optimizer import first_not_finite
from training.precision import keep_frozen_in_bfloat16
from training.quick_layers import use_quick_layers

FAMILIES = ("llama", "bert")


@pytest.fixture(scope="module")
def torchao(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchao")
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(folder), TORCHAO]
    subprocess.run([sys.executable, "-m", *install], check=True)
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def in_int8(test):
    """Mark a test that needs torchao."""
    return pytest.mark.slow(pytest.mark.usefixtures("torchao")(test))


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{i}.{name}": module.weight
        for i, layer in enumerate(layers(model))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


@in_int8
@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_a_frozen_matrix_is_within_half_a_step_of_its_rows_127th(family):
    model, _ = adapted(family=family)
    before = {name: weight.clone() for name, weight in matrices(model).items()}
    hold_in_int8(model)
    assert {str(type(weight).__name__) for weight in matrices(model).values()} == {"Int8Tensor"}
    as_numbers(model)
    for name, weight in matrices(model).items():
        step = before[name].abs().amax(1, keepdim=True) / 127
        assert type(weight) is nn.Parameter and not weight.requires_grad
        assert ((weight - before[name]).abs() <= step * 0.51).all() and not torch.equal(weight, before[name])


def results(family: str, precision: str, plain: bool) -> dict[str, torch.Tensor]:
    """The loss and the gradients of a model whose matrices are in int8, or plain ones of the same numbers."""
    model, chosen = adapted(family=family, precision=precision)
    hold_in_int8(model)
    if plain:
        as_numbers(model)
    if precision == "bfloat16":
        keep_frozen_in_bfloat16(model)
    return loss_and_gradients(model, chosen)


@in_int8
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_rounded_matrices(family):
    exact = results(family, "float32", plain=True)
    assert distance(results(family, "float32", plain=False), exact) < 1e-5
    usual = distance(results(family, "bfloat16", plain=True), exact)  # what bfloat16 itself rounds
    assert distance(results(family, "bfloat16", plain=False), exact) < 1.5 * usual


@in_int8
def test_a_model_in_int8_and_bfloat16_with_quick_layers_answers_as_without():
    model, chosen = adapted(family="llama")
    expected = in_bfloat16(model.eval(), chosen)
    hold_in_int8(model)
    keep_frozen_in_bfloat16(model)
    use_quick_layers(model)
    assert {str(type(weight).__name__) for weight in matrices(model).values()} == {"Int8Tensor"}
    assert (in_bfloat16(model, chosen) - expected).norm() < 0.05 * expected.norm()


@in_int8
def test_a_matrix_takes_a_byte_for_each_number_and_a_scale_for_each_row():
    model, _ = adapted(family="llama")
    hold_in_int8(model)
    weight = next(iter(lora_layers(model).values())).base_layer.weight
    assert weight.qdata.dtype == torch.int8 and weight.scale.shape == (len(weight), 1)


@in_int8
def test_what_is_not_finite_beside_matrices_in_int8_is_named():
    model, _ = adapted(family="llama")
    hold_in_int8(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert first_not_finite(parameters) is None
    name = next(name for name in parameters if name.endswith("v_proj.lora_B"))
    parameters[name][0, 0] = torch.nan
    assert first_not_finite(parameters) == name


@in_int8
def test_plain_again_it_is_merged_as_any_other():
    model, _ = adapted(family="llama")
    hold_in_int8(model)
    expected = logits(model.eval())
    as_numbers(model)
    merge_lora(model)
    remove_lora(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "family"), [("full", "llama"), ("lora", "gpt2")])
def test_a_model_without_frozen_linear_layers_is_refused(method, family):
    model, _ = adapted(method, family)
    with pytest.raises(ValueError, match=r"needs frozen matrices of class nn\.Linear, found none in"):
        hold_in_int8(model)


def test_without_torchao_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match='int8_base needs torchao, which is not installed: pip install "torchao>='):
        hold_in_int8(adapted(family="llama")[0])
