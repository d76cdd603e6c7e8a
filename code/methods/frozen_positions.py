"""DeBERTa as the authors' code adapts it: LoRA's pair of the query is for words, not for relative positions.

transformers sends words and positions through one and the same layer. The authors' code projects positions by the
frozen weight alone (`nn.Linear.forward(self.query_proj, rel_embeddings)`, line 729 of modeling_deberta_v2.py):
https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLU/src/transformers/models/deberta_v2
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor, nn

from families import family_of


def require_positions(model: nn.Module, targets: Collection[str]) -> None:
    """Raise ValueError if the model's attention projects no positions, or its query is to have no pair."""
    if family_of(model).projects_positions is None:
        raise ValueError(f"frozen_positions is of DeBERTa's attention, found {type(model).__name__}: leave it out")
    if "query" not in targets:
        raise ValueError("frozen_positions is of the query's pair, found none: leave it out, or adapt the query")


def freeze_positions(model: nn.Module) -> None:
    """Project positions by the frozen query, in a model with pairs, as `require_positions` has it.

    Such a pair can be neither merged nor saved as plain LoRA.
    """
    name = family_of(model).projects_positions
    for attention in (module for module in model.modules() if hasattr(module, name)):
        setattr(attention, name, partial(_by_frozen_query, attention, getattr(attention, name)))
        attention.query_proj.apart = "DeBERTa's positions see the query without it, and no plain model could do that"


def _by_frozen_query(attention: nn.Module, bias: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The attention's bias for relative positions, without the query's pair.

    After `remove_lora` there is one weight for both, also for the pairs that come after.
    """
    if not getattr(attention.query_proj, "apart", ""):
        return bias(*inputs)
    adapted, attention.query_proj = attention.query_proj, attention.query_proj.base_layer
    try:
        return bias(*inputs)
    finally:
        attention.query_proj = adapted
