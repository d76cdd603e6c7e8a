"""Layers that compute what torch's and transformers' do, in less time on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from families import family_of
from lora import lora_layers


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
            least = min(round(self.p * 2**16) - 2**15, 2**15 - 1)
            kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= least
            self.last = x, x * (kept * x.new_tensor(1 / (1 - self.p)))
        return self.last[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"last": None}  # tensors of a graph can be neither copied nor pickled


class _RMSNorm(torch.autograd.Function):
    """y = w x s with s = 1 / sqrt(mean x^2 + epsilon);  dx = s (w dy - x s^2 mean(w dy x)),  dw = sum of dy x s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x * scale, weight, out=torch.empty_like(x, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        needed = ctx.needs_input_grad[1]
        weight_gradient = (x * scale).mul_(gradient).flatten(0, -2).sum(0) if needed else None
        gradient = gradient * weight
        along = torch.linalg.vecdot(gradient, x).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
        return gradient.mul_(scale).addcmul_(x, along), weight_gradient, None, None


class QuickRMSNorm(LlamaRMSNorm):
    """Llama's norm in fewer passes. Under autocast it gives what the matrices behind it take, since nothing else
    reads it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon, dtype)


class _Attention(torch.autograd.Function):
    """softmax(s q k^T + mask) v, the softmax in float32: q (n, queries, d), k and v (n, keys, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
        scores = torch.baddbmm(mask, query, key.mT, alpha=scaling)
        shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        ctx.save_for_backward(query, key, value, shares)
        ctx.scaling = scaling
        return shares @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, shares = ctx.saved_tensors
        scores = torch._softmax_backward_data(gradient @ value.mT, shares, -1, shares.dtype).mul_(ctx.scaling)
        return scores @ key, scores.mT @ query, shares.mT @ gradient, None, None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention (batch, heads, tokens, d) as matrix products, for sentences: at their lengths a fused kernel is slower.

    Llama's heads that share keys and values are one longer list of queries, so that keys and values are not repeated.
    """
    if dropout:
        raise ValueError(f"expected a model without dropout in its attention, found {dropout}")
    dtype, (batch, groups, keys, _) = value.dtype, key.shape
    mask = mask.clamp(min=torch.finfo(dtype).min).to(dtype)
    mask = mask.expand(-1, query.shape[1], -1, -1).reshape(batch * groups, -1, keys)
    with torch.autocast(value.device.type, enabled=False):
        mixed = _Attention.apply(
            query.to(dtype).reshape(batch * groups, -1, query.shape[-1]), key.to(dtype).flatten(0, 1),
            value.flatten(0, 1), mask, scaling,
        )  # fmt: skip
    return mixed.view(query.shape).transpose(1, 2).contiguous(), None


ATTENTION = "matrix-products"
AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def use_quick_layers(model: nn.Module) -> None:
    """Let a model's layers be those above where they fit, in place: same parameters, names and results.

    Language models get norms and attention. LoRA layers get dropout, those of one part of a layer the same.
    """
    by_part: dict[str, QuickDropout] = {}
    for name, layer in lora_layers(model).items():
        if isinstance(layer.dropout, nn.Dropout):
            dropout = by_part.setdefault(name.rpartition(".")[0], QuickDropout(layer.dropout.p))
            layer.dropout = dropout.train(layer.training)
    for module in model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = QuickRMSNorm
    if not family_of(model).reads_both_ways and model.config._attn_implementation == "eager":  # else it has a prefix
        model.set_attn_implementation(ATTENTION)
