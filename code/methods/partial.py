"""Methods that train some of the model's own parameters: FT^Top k and BitFit, rows of Tables 2 and 3.

    train_top_layers(model, 2)    the last two layers, whole
    train_biases(model)           every bias (Zaken et al. 2021)

Both freeze all else, a new classification head too: unfreeze it after.
"""

from __future__ import annotations

from torch import nn

from families import layers
from lora import require_plain


def train_top_layers(model: nn.Module, number: int | None) -> None:
    """Partial fine-tuning: the last `number` layers, whole, and nothing above them (for GPT-2 not `ln_f`).

    Table 3's 25.19M are two layers of GPT-2 medium, without `ln_f`. Raises ValueError for none or too many.
    """
    require_plain(model)
    stack = layers(model)
    if number not in range(1, len(stack) + 1):
        raise ValueError(f"top_layers must be 1 to {len(stack)}, the layers of {type(model).__name__}; found {number}")
    model.requires_grad_(False)
    stack[-number:].requires_grad_(True)


def train_biases(model: nn.Module) -> None:
    """BitFit: every parameter with "bias" in its name, those of LayerNorms and embeddings too, as the official code.

    Raises ValueError for a model whose layers have no biases, such as Llama.
    """
    require_plain(model)
    if not any("bias" in name for name, _ in layers(model).named_parameters()):
        raise ValueError(
            f"BitFit trains biases, and the layers of {type(model).__name__} have none; choose another method"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)
