"""A frozen base in int8, by torchao: a quarter of float32's memory, half of bfloat16's, beside pairs in float32.

The nearest int8 to W0 / scale stands for W0; each row of W0 (one output) has a scale of its own, so that its largest
number is 127. A product has the matrix back as numbers first. What is trained and computed beside it is as before.

    hold_in_int8(model)    # after `apply_method`: what is frozen then
    as_numbers(model)      # before saving and merging: plain matrices of the rounded numbers
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from families import layers

TORCHAO = "torchao>=0.18,<0.19"  # no requirement: where it is installed, transformers imports it at every start


def hold_in_int8(model: nn.Module) -> None:
    """Round the frozen matrices of all layers to int8, in place; embeddings and heads stay as they are.

    Raises as `frozen_matrices` and `require_torchao`.
    """
    frozen = frozen_matrices(model)
    require_torchao()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for module in frozen:
        quantize_(module, Int8WeightOnlyConfig())


def frozen_matrices(model: nn.Module) -> list[nn.Linear]:
    """What int8 can hold in all layers; ValueError if no layer has any (GPT-2 has matrices of another class)."""
    linear = [module for layer in layers(model) for module in layer.modules() if isinstance(module, nn.Linear)]
    frozen = [module for module in linear if not module.weight.requires_grad]
    if not frozen:
        raise ValueError(
            f"int8_base needs frozen matrices of class nn.Linear, found none in {type(model).__name__}: leave it out "
            "of full fine-tuning and of GPT-2"
        )
    return frozen


def require_torchao() -> None:
    """Raise ImportError, which says how to install it, where torchao is missing."""
    if find_spec("torchao") is None:
        raise ImportError(f'int8_base needs torchao, which is not installed: pip install "{TORCHAO}"')


@torch.no_grad()
def as_numbers(model: nn.Module) -> None:
    """Make plain matrices of those in int8, in place. An adapter that was trained beside them is of this base."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter:
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
