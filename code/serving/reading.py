"""An adapter read from its folder for a base model that stays as it is: its pairs, and the head of its task.

The folder is `save_lora`'s, or PEFT's with plain LoRA. Unlike in `load_lora`, rank and scale may differ from matrix to
matrix, and a pair may be over all of a packed one. What is kept takes no more memory than what was trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapter_files import blocks_of, not_for_this_model, read_folder
from families import head_parameters
from lora import LoRAConfig, projections

A_NAME, B_NAME = ".lora_A.weight", ".lora_B.weight"
REMEDY = "take the folder of an adapter that was trained on this base"
Settings = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Pair:
    """W0 + scale B A of one matrix (d_out, d_in); B is zero outside its blocks."""

    A: Tensor  # (k, d_in)
    blocks: tuple[tuple[slice, slice, Tensor], ...]  # rows of d_out, columns of k, and B^T there
    scale: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """What one folder adds to the base, by the names of the base's modules."""

    pairs: dict[str, Pair]
    heads: dict[str, tuple[Tensor, Tensor]]  # weight and bias of the matrices of the head that the task trained


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that a pair can stand beside, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def output_matrix(model: nn.Module) -> str | None:
    """The name of the head's last matrix, with an output for each class; None where there is no head."""
    return next((name.rpartition(".")[0] for name in reversed(head_parameters(model))), None)


def read_adapter(folder: Path, model: nn.Module, fingerprint: Callable[[frozenset], str]) -> Adapter:
    """The adapter in the folder; `fingerprint` gives the base's without the parameters named.

    Raises ValueError if the folder is damaged, or its base, names, shapes or ranks do not fit this model.
    """
    settings, header, tensors = read_folder(folder)
    trained = {n: tensor for n, tensor in tensors.items() if ".lora_" not in n}
    base, head = dict(model.named_parameters()), head_parameters(model)
    if others := sorted(trained.keys() & base.keys() - head.keys()):
        raise ValueError(f"expected pairs and a head in {folder}, found {others[0]} trained too; merge that adapter")
    wanted = _wanted_pairs(settings, tensors, model) | _wanted_head(settings, trained, model)
    mine = fingerprint(frozenset(trained))
    wanted.add(("base weights", mine))
    present = {(n, *tensor.shape) for n, tensor in tensors.items()}
    present.add(("base weights", header.get("base_sha256", mine)))  # PEFT keeps no fingerprint
    if present != wanted or len(tensors) == len(trained):
        raise ValueError(not_for_this_model(wanted, present, model, folder, REMEDY))
    device = next(model.parameters()).device
    on_device = {n: tensor.to(device, copy=True) for n, tensor in tensors.items()}
    pairs = {n.removesuffix(A_NAME): A for n, A in on_device.items() if n.endswith(A_NAME)}
    try:
        read = {n: _pair(n, A, on_device[n + B_NAME], settings) for n, A in pairs.items()}
    except (KeyError, TypeError, ValueError, ArithmeticError, re.error) as error:
        raise ValueError(f"expected LoRA's settings in {folder}, found {error!r}; save or copy it again") from error
    return Adapter(read, _heads(on_device, head, trained))


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(f".{module}." in f".{name}." for module in modules)


def _wanted_pairs(settings: Settings, tensors: dict[str, Tensor], model: nn.Module) -> set[tuple]:
    """(name, *shape) of the pairs that this model should find in the folder, of the ranks that are there."""
    heads, targets = settings.get("modules_to_save") or [], settings.get("target_modules")
    if not isinstance(targets, list) or settings.get("layers_to_transform") or settings.get("exclude_modules"):
        targets = []  # a regular expression, or some of the layers: these do not say what must be there
    ends = tuple(f".{target}" for target in targets)
    wanted = set()
    for name, module in matrices(model).items():
        if name + A_NAME in tensors or (f".{name}".endswith(ends) and not _within(name, heads)):
            d_out, d_in = module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape
            rank = tensors[name + A_NAME].shape[:1] if name + A_NAME in tensors else ("r",)
            wanted |= {(name + A_NAME, *rank, d_in), (name + B_NAME, d_out, *rank)}
    return wanted


def _wanted_head(settings: Settings, trained: dict[str, Tensor], model: nn.Module) -> set[tuple]:
    """(name, *shape) of the head; its last matrix has as many outputs as the task has classes."""
    heads, head, last = settings.get("modules_to_save") or [], head_parameters(model), f"{output_matrix(model)}."
    outputs = next((trained.get(name, p).shape[:1] for name, p in head.items() if name == f"{last}weight"), ())
    wanted = set()
    for name, parameter in head.items():
        sizes = outputs if name.startswith(last) else parameter.shape[:1]
        if name in trained or _within(name, heads) or sizes != parameter.shape[:1]:
            wanted.add((name, *sizes, *parameter.shape[1:]))
    return wanted


def _pair(name: str, A: Tensor, B: Tensor, settings: Settings) -> Pair:
    """The pair of one matrix; ValueError for settings with which LoRA cannot be."""

    def of_this(pattern: str, usual: str) -> Any:  # as PEFT: the first pattern that ends the name, else that of all
        patterns = settings.get(pattern) or {}
        if odd := [key for key in patterns if not re.fullmatch(r"[\w.\\^$|]*([*+?][\w.\\^$|]*){,2}", key)]:
            raise ValueError(
                f"{odd[0]!r} in {pattern}: names with two repetitions at most, as more could take for ever"
            )
        return next((patterns[key] for key in patterns if re.fullmatch(rf"(.*\.)?({key})", name)), settings[usual])

    k, alpha = of_this("rank_pattern", "r"), of_this("alpha_pattern", "lora_alpha")
    if k != len(A):
        raise ValueError(f"rank {k} beside a pair of rank {len(A)} for {name}")
    blocks = blocks_of(name, B, settings["r"])
    rank, size = (settings["r"], len(B) // len(projections(name))) if blocks else (k, len(B))
    LoRAConfig(rank, alpha, settings["lora_dropout"])
    if rank > min(size, A.shape[1]):
        raise ValueError(f"rank {rank} is larger than the matrix to adapt, ({size}, {A.shape[1]}), {name}")
    places = [(slice(p * size, (p + 1) * size), slice(i * rank, (i + 1) * rank)) for p, i in blocks or [(0, 0)]]
    return Pair(A, tuple((rows, columns, B[rows, columns].T.contiguous()) for rows, columns in places), alpha / k)


def _heads(
    tensors: dict[str, Tensor], head: dict[str, nn.Parameter], trained: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of each matrix of the head that was trained at least in part, as precise as the base's."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in trained)
    both = {module: (f"{module}.weight", f"{module}.bias") for module in modules}
    return {
        module: tuple(tensors.get(name, head[name]).detach().to(head[name].dtype) for name in names)
        for module, names in both.items()
    }
