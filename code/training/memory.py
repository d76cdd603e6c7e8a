"""What training and decoding hold in a GPU's memory, by arithmetic: what fits, and what has to be recomputed.

    recomputes(model, settings, tokens=64)   # XXL LoRA, batch 8: False on a card of 40 GB, ValueError on one of 4

Several runs may share a GPU (`sweep --workers`): each counts with its share.
"""

from __future__ import annotations

import math
import os

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from experiments.settings import Settings
from families import family_of
from training.precision import uses_bfloat16

RUNS_PER_GPU = "LORA_RUNS_PER_GPU"  # in the environment of a sweep's worker
USABLE = 0.9  # of the memory; the rest is fragments and the libraries' own
GIBIBYTE = 2**30
# Numbers kept for the backward pass, for each token, layer and hidden unit: beside a frozen base, and with all trained.
# Counted in tests/test_memory.py: RoBERTa's 15 and 21; DeBERTa's 46 to 60 and 54 to 67, for 64 to 512 tokens.
KEPT = {"deberta-v2": (50, 56)}
OTHERS_KEPT = (16, 21)
LONG, LONG_KEPT = 256, {"deberta-v2": 0.05}  # of a longer row: so much more for each further token, its scores' share
INPUT = 4  # bytes of a hidden unit that enters a layer, all that is kept where the forward pass is recomputed
SCORED_SHARE = 0.5  # of a text's tokens carry a loss, so need logits
CONTEXTS, MOST_CONTEXTS = 16, 128  # decoded at once: without a GPU, and at most
PROMPT = 100  # tokens of a long context


def _runs() -> int:
    """The runs that share this one's GPU, itself among them."""
    return int(os.environ.get(RUNS_PER_GPU, "1"))


def card_bytes() -> int | None:
    """This run's share of the GPU's memory, without what programs of others hold; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    share = torch.cuda.get_device_properties(0).total_memory // _runs()
    if _runs() > 1:
        return share  # the others are runs of this sweep, each with a share of its own
    return min(share, torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())


def keep_to_share() -> None:
    """Let this run take no more of a shared GPU than its share: torch would keep what it has freed from the others."""
    if torch.cuda.is_available() and _runs() > 1:
        torch.cuda.set_per_process_memory_fraction(1 / _runs())


def weight_bytes(model: nn.Module, bfloat16: bool) -> int:
    """Of the parameters; a trained one has a gradient and two moments, a frozen matrix may be kept in bfloat16.

    The model may be without weights. Under bfloat16 autocast a trained matrix has a copy in it.
    """
    size_by_parameter = {}
    for module in model.modules():
        matrix = bfloat16 and isinstance(module, nn.Linear | Conv1D)
        for parameter in module.parameters(recurse=False):
            size = (18 if matrix else 16) if parameter.requires_grad else 2 if matrix else 4
            size_by_parameter.setdefault(parameter, size)  # one that is tied counts once
    return sum(parameter.numel() * size for parameter, size in size_by_parameter.items())


def training_bytes(model: nn.Module, rows: int, tokens: int, recomputed: bool, bfloat16: bool) -> float:
    """The peak of a training step on a batch of so many rows and tokens a row; the model may be without weights."""
    config, frozen = model.config, any(not p.requires_grad for p in model.parameters())
    kept = KEPT.get(config.model_type, OTHERS_KEPT)[0 if frozen else 1]
    kept += LONG_KEPT.get(config.model_type, 0) * max(0, tokens - LONG)
    layer, layers = rows * tokens * config.hidden_size * kept * (2 if bfloat16 else 4), config.num_hidden_layers
    inputs = rows * tokens * config.hidden_size * INPUT * layers
    writes = not family_of(model).head  # an encoder's head is small
    logits = writes * rows * tokens * SCORED_SHARE * config.vocab_size * 4 * 3
    return weight_bytes(model, bfloat16) + (inputs + layer if recomputed else layers * layer) + logits + GIBIBYTE / 2


def recomputes(model: nn.Module, settings: Settings, tokens: int) -> bool:
    """Whether the forward pass is recomputed for the backward pass, with rows of at most so many tokens.

    As the settings say or, where they leave it open, if the GPU's memory asks for it. Raises ValueError where a step
    does not fit the GPU even so.
    """
    memory, said = card_bytes(), settings.gradient_checkpointing
    if memory is None:
        return bool(said)
    rows = math.ceil(settings.batch_size / int(os.environ.get("WORLD_SIZE", "1")))  # of each process

    def needed(recomputed: bool) -> float:
        return training_bytes(model, rows, tokens, recomputed, uses_bfloat16(settings))

    chosen = said if said is not None else needed(False) > USABLE * memory
    if needed(chosen) > memory:
        raise ValueError(
            f"a step of {settings.model}, {settings.method}, on {rows} rows of {tokens} tokens takes "
            f"about {needed(chosen) / GIBIBYTE:.1f} GiB, found {memory / GIBIBYTE:.1f} GiB for a run on "
            f"{torch.cuda.get_device_name(0)}: take a larger GPU or fewer --workers, or a smaller model or batch"
        )
    return chosen


def contexts_at_once(model: nn.Module, beams: int, new_tokens: int) -> int:
    """How many contexts are decoded in a batch: as many as the GPU's memory holds with their beams."""
    memory = card_bytes()
    if memory is None:
        return CONTEXTS
    config = model.config
    cache = 2 * 4 * config.num_hidden_layers * config.hidden_size * (PROMPT + beams * new_tokens)
    logits = 4 * 4 * beams * config.vocab_size
    free = USABLE * memory - weight_bytes(model, bfloat16=False)
    return int(min(MOST_CONTEXTS, max(1, free // (cache + logits))))
