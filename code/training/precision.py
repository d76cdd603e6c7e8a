"""The precision in which a run computes, and what makes it fast there without changing what is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experiments.settings import Settings
from families import family_of, layers
from training.machine import has_fast_bfloat16


def uses_bfloat16(settings: Settings) -> bool:
    """Whether a run computes in bfloat16: if asked for, or with `auto` if the machine has it in hardware.

    Raises ValueError where it is asked of a GPU that only emulates it, many times slower (T4, V100).
    """
    asked = settings.precision == "bfloat16"
    if asked and torch.cuda.is_available() and not has_fast_bfloat16():
        raise ValueError(
            f"expected a GPU with bfloat16 (A100 or later), found {torch.cuda.get_device_name()}, which emulates it, "
            "many times slower: take such a GPU, or scale `cpu`, whose runs compute in float32 there"
        )
    return asked or (settings.precision == "auto" and has_fast_bfloat16())


def autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """The context in which a run computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(settings))


def set_products(settings: Settings) -> bool:
    """Let float32 products be TF32's if the settings say so; return whether this machine computes them so.

    TF32 rounds what enters a product to 10 bits behind the point, on GPUs from Ampere on; sums stay in float32.
    """
    asked = settings.precision == "tf32"
    torch.set_float32_matmul_precision("high" if asked else "highest")
    return asked and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def keep_frozen_in_bfloat16(model: nn.Module) -> None:
    """Convert once what autocast would convert at every use, in a model that computes in bfloat16: frozen matrices, and
    the output of norms that enters matrices alone.

    A product with them is the same to the last bit. Two things are rounded earlier: an output matrix that is the word
    embeddings' too, and the cosines and sines of rotary positions, as in a model that is loaded in bfloat16. What
    enters the first layer is float32 as before.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for parameter in module.parameters(recurse=False):
                # BitFit trains the bias beside a frozen matrix; a matrix in int8 is of a class of its own
                if not parameter.requires_grad and type(parameter) is nn.Parameter:
                    parameter.data = parameter.data.bfloat16()
    for layer in layers(model):
        for name in family_of(model).matrix_norms:
            layer.get_submodule(name).register_forward_hook(_as_bfloat16)
    if family_of(model).rotation:
        rotation = model.base_model.get_submodule(family_of(model).rotation)
        rotation.register_forward_hook(_parts_as_bfloat16)
    embeddings = model.get_input_embeddings()
    if embeddings.weight.dtype == torch.bfloat16:
        embeddings.register_forward_hook(_as_float32)


def _as_bfloat16(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.bfloat16()


def _parts_as_bfloat16(module: nn.Module, inputs: tuple, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(output.bfloat16() for output in outputs)


def _as_float32(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.float()
