"""Method and settings -> a model whose trainable set is exactly right.

Each method is one function of `METHODS`: it changes the model in place and decides what is
trained. `finish` makes the trained model plain again for decoding (LoRA is folded into W).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from experiments import Settings
from lora import LoRAConfig, add_lora, merge_lora, remove_lora


def _full(model: nn.Module, settings: Settings) -> None:
    """Full fine-tuning (FT): every parameter is trained."""
    model.requires_grad_(True)


def _lora(model: nn.Module, settings: Settings) -> None:
    """LoRA (section 4): low-rank pairs beside the frozen matrices of `settings.targets`."""
    add_lora(model, LoRAConfig(settings.rank, settings.alpha, settings.lora_dropout, settings.targets))


METHODS: dict[str, Callable[[nn.Module, Settings], None]] = {"full": _full, "lora": _lora, "released": _lora}


def apply_method(model: nn.Module, settings: Settings) -> None:
    """Change `model` in place as the method says; afterwards exactly its trained set requires a gradient."""
    if settings.method not in METHODS:
        raise ValueError(f"no method is called {settings.method!r}; the methods are {', '.join(METHODS)}")
    METHODS[settings.method](model, settings)


def finish(model: nn.Module, settings: Settings) -> None:
    """Fold what can be folded: the decoded model has the plain architecture and speed (section 4.1)."""
    if settings.method in ("lora", "released"):
        merge_lora(model)
        remove_lora(model)
