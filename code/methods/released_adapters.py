"""Reads the adapters that the authors of LoRA trained themselves: the files under microsoft/LoRA's GitHub releases.

`gpt2_md_lora_e2e.pt`, `roberta_base_lora_mnli.bin` and their like are `loralib` state dicts, written by torch.save.
With them our whole evaluation is checked against Tables 2 and 3 of the paper, without any training:

    model = GPT2LMHeadModel.from_pretrained("gpt2-medium")
    load_released_adapter(model, "gpt2_md_lora_e2e.pt", alpha=32)

A file holds, for each layer, one of two layouts, and for the encoders also the whole trained head:

    transformer.h.0.attn.c_attn.lora_A                    (2 r, d)    query's A above value's: loralib.MergedLinear with
    transformer.h.0.attn.c_attn.lora_B                    (2 d, r)    enable_lora=[True, False, True]
    roberta.encoder.layer.0.attention.self.query.lora_A   (r, d)      loralib.Linear, the same for value; DeBERTa calls
    roberta.encoder.layer.0.attention.self.query.lora_B   (d, r)      them query_proj and value_proj
    classifier.dense.weight, ...                                      all that is outside the pre-trained encoder

Neither alpha nor the base model is in the file, so neither can be checked: alpha is 32 for GPT-2 and DeBERTa-v2, and 16
in the scripts for RoBERTa. Layers: https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib
"""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from adapter_files import base_parameters, inside, not_for_this_model
from families import family_of
from files import download, find_file
from lora import LoRAConfig, add_lora, lora_layers, projections, remove_lora
from methods.frozen_positions import freeze_positions

RELEASES = {  # model -> the release, and the files in it
    "gpt2-medium": ("GPT-2", "gpt2_md_lora_{}.pt"),
    "gpt2-large": ("GPT-2", "gpt2_lg_lora_{}.pt"),
    "roberta-base": ("RoBERTa-base", "roberta_base_lora_{}.bin"),
    "roberta-large": ("RoBERTa-large", "roberta_large_lora_{}.bin"),
    "deberta-v2-xxlarge": ("DeBERTa", "deberta_v2_xxlarge_lora_{}.bin"),
}


def released_file(model: str, task: str, data_dir: Path | None = None) -> Path:
    """The path of a model's file for a task: from `released/` in a place of `files.py`, else from GitHub.

    Raises ValueError for a model without a release, FileNotFoundError where no place has the file.
    """
    if model not in RELEASES:
        raise ValueError(f"the authors released no adapter of {model!r}: expected one of {', '.join(RELEASES)}")
    release, pattern = RELEASES[model]
    name = pattern.format(task)
    url = f"https://github.com/microsoft/LoRA/releases/download/{release}/{name}"
    return find_file(f"released/{name}", data_dir, lambda: download(url), published=url)


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by their names in the model; nothing but tensors is ever unpickled.

    The E2E training script saves {"model_state_dict": ...} with names that begin with `module.`; both are undone.
    Raises ValueError for anything else, and for a damaged file: its format has checksums, which torch does not look at.
    """
    remedy = "download it again from the releases of github.com/microsoft/LoRA"
    try:
        if not Path(file).is_file():  # a pipe would be waited for
            raise FileNotFoundError(f"No such file: {file}")
        if is_zipfile(file):
            with ZipFile(file) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"another checksum of {damaged}")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the reader of pickles stumbles over
        found = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(f"expected a state dict of tensors alone in {file}, found {found}; {remedy}") from error
    state = state.get("model_state_dict", state) if isinstance(state, dict) else state
    named = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
    if not named or not any(".lora_" in name for name in state):
        raise ValueError(f"expected lora_A and lora_B tensors by name in {file}, found {str(state)[:80]}; {remedy}")
    for name, tensor in state.items():
        readable = tensor.layout is torch.strided and tensor.device.type != "meta" and tensor.itemsize > 1
        numbers = readable and tensor.is_floating_point() and tensor.isfinite().all()
        if not numbers or (".lora_" in name and tensor.dim() != 2):
            found = f"{name} of shape {tuple(tensor.shape)} and type {tensor.dtype}"
            raise ValueError(f"expected matrices of finite numbers in {file}, found {found}; {remedy}")
    if twice := [name for name in state if f"module.{name}" in state]:
        raise ValueError(f"expected each tensor once in {file}, found {twice[0]} and module.{twice[0]}; {remedy}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_released_adapter(model: nn.Module, file: str | Path, alpha: float, rank: int | None = None) -> list[str]:
    """Add the pairs, and the trained head, of a `loralib` state dict to its plain base model of transformers.

    `alpha` is not in the file; `rank` is, and a given one is only compared. Returns the names of the adapted modules,
    which are trainable like the head. DeBERTa's can be neither merged nor saved as plain LoRA: its query is adapted for
    words and not for positions. Raises ValueError, and leaves the model plain, if a name or a shape does not fit.
    """
    state, model = read_state_dict(file), inside(model)
    ranks = {tensor.shape[-1] for name, tensor in state.items() if name.endswith(".lora_B")}
    if len(ranks) != 1 or rank not in (None, *ranks):
        raise ValueError(f"expected pairs of rank {rank or 'r, the same for all'}, found {sorted(ranks)} in {file}")
    targets = {target for name in state for target in projections(name)}
    if any(len(projections(name)) > 1 for name in state):
        targets = {"query", "value"}  # the file does not name c_attn's two thirds; the authors' code does
    add_lora(model, LoRAConfig(rank=ranks.pop(), alpha=alpha, targets=tuple(sorted(targets))))
    slots = {f"{n}.lora_A": layer.lora_A for n, layer in lora_layers(model).items()}
    slots |= {f"{n}.lora_B": layer.lora_B for n, layer in lora_layers(model).items()}
    slots |= {n: p for n, p in base_parameters(model).items() if not n.startswith(f"{model.base_model_prefix}.")}
    wanted, present = ({(name, *tensor.shape) for name, tensor in tensors.items()} for tensors in (slots, state))
    if wanted != present:
        remove_lora(model)
        remedy = "load the model that the file is named after, with as many labels"
        raise ValueError(not_for_this_model(wanted, present, model, file, remedy))
    for name, parameter in slots.items():
        parameter.requires_grad_(True).data.copy_(state[name])
    if family_of(model).projects_positions:
        freeze_positions(model)
    return list(lora_layers(model))
