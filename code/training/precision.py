"""The precision in which a run computes, and what makes it fast there without changing what is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experiments.settings import Settings
from lora import lora_layers
from models import family_of, layers
from training.machine import has_fast_bfloat16


def uses_bfloat16(settings: Settings) -> bool:
    """Whether a run computes in bfloat16: if asked for, or with `auto` if the machine has it in hardware."""
    return settings.precision == "bfloat16" or (settings.precision == "auto" and has_fast_bfloat16())


def autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """The context in which a run computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(settings))


def keep_frozen_in_bfloat16(model: nn.Module) -> None:
    """Convert once what autocast would convert at every use, in a model that computes in bfloat16: frozen matrices, and
    the output of norms that enters matrices alone.

    A product with them is the same to the last bit. An output matrix that is the word embeddings' too changes more: the
    embeddings are rounded. What enters the first layer is float32 as before.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:  # BitFit trains the bias beside a frozen matrix
                    parameter.data = parameter.data.bfloat16()
    for layer in layers(model):
        for name in family_of(model).matrix_norms:
            layer.get_submodule(name).register_forward_hook(_as_bfloat16)
    embeddings = model.get_input_embeddings()
    if embeddings.weight.dtype == torch.bfloat16:
        embeddings.register_forward_hook(_as_float32)


def _as_bfloat16(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.bfloat16()


def _as_float32(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.float()


class QuickDropout(nn.Dropout):
    """Dropout for a CPU, where drawing masks takes most of its time: 16 random bits a number, four numbers at once.

    A number is kept with the probability 1 - p, rounded to 1 / 65,536. Layers that share an instance and read the same
    tensor get the same numbers, as query and value do in the official code of GPT-2.
    """

    def __init__(self, p: float):
        super().__init__(p)
        self.last: tuple[Tensor, Tensor] | None = None  # input and output

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.last is None or self.last[0] is not x:
            bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
            kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
            self.last = x, x * (kept.to(x.dtype) / (1 - self.p))
        return self.last[1]


def use_quick_dropout(model: nn.Module) -> None:
    """Let the LoRA layers draw their masks quickly, those of one part of the model together."""
    by_part: dict[str, QuickDropout] = {}
    for name, layer in lora_layers(model).items():
        if isinstance(layer.dropout, nn.Dropout):
            dropout = by_part.setdefault(name.rpartition(".")[0], QuickDropout(layer.dropout.p))
            layer.dropout = dropout.train(layer.training)
