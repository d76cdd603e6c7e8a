"""Method and settings -> a model whose trainable set is exactly right.

Each method is one function of `METHODS`: it changes the model in place and decides what is
trained. `finish` makes the trained model plain again for decoding (LoRA is folded into W).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lora import LoRAConfig, add_lora, count_parameters, merge_lora, remove_lora
from models import head_parameters
from settings import Settings
from tasks import TASKS, GlueTask


def _full(model: nn.Module, settings: Settings) -> None:
    """Full fine-tuning (FT): every parameter is trained."""
    model.requires_grad_(True)


def _lora(model: nn.Module, settings: Settings) -> None:
    """LoRA (section 4): low-rank pairs beside the frozen matrices of `settings.targets`."""
    add_lora(model, LoRAConfig(settings.rank, settings.alpha, settings.lora_dropout, settings.targets))


METHODS: dict[str, Callable[[nn.Module, Settings], None]] = {"full": _full, "lora": _lora, "released": _lora}


def apply_method(model: nn.Module, settings: Settings) -> None:
    """Change `model` in place as the method says; afterwards exactly its trained set requires a gradient.

    A head is part of that set with every method, as in the official code (run_glue.py; issue 16 of
    microsoft/LoRA: "even though they were trained"). Raises ValueError for an unknown method, and for a
    model without the task's kind of head.
    """
    if settings.method not in METHODS:
        raise ValueError(f"no method is called {settings.method!r}; the methods are {', '.join(METHODS)}")
    if bool(head_parameters(model)) != isinstance(TASKS[settings.task], GlueTask):
        raise ValueError(
            f"{settings.model} does not fit {settings.task}: a GLUE task needs an encoder (BERT, RoBERTa, DeBERTa), "
            f"E2E a GPT-2; found {type(model).__name__}"
        )
    METHODS[settings.method](model, settings)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)


def count_trained(model: nn.Module) -> tuple[int, int, int]:
    """(trained without the head, the head, all) parameters of a model; the paper's counts are the first."""
    trained, total = count_parameters(model)
    head = sum(p.numel() for p in head_parameters(model).values())
    return trained - head, head, total


def finish(model: nn.Module, settings: Settings) -> None:
    """Fold what can be folded: the decoded model has the plain architecture and speed (section 4.1)."""
    if settings.method in ("lora", "released"):
        merge_lora(model)
        remove_lora(model)
