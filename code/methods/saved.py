"""The folder of what a method trained: LoRA's pairs as `adapter_files` writes them, all else parameter by parameter.

save_adapter(model, settings, folder)    # after training; what was frozen is not written
load_adapter(model, folder)              # on a plain copy of the base model
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from adapter_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    base_fingerprint,
    checksum,
    inside,
    load_lora,
    not_for_this_model,
    plain_name,
    read_tensors,
    save_lora,
    whole_folder,
    write_tensors,
)
from experiments.settings import Settings
from lora import require_plain
from methods.catalogue import apply_method, method

TRAINED_FILE = "trained.safetensors"


def save_adapter(model: nn.Module, settings: Settings, folder: str | Path) -> None:
    """Write what the method of `settings` trained, with the head, into the folder.

    `save_lora` holds plain LoRA, one pair for each projection. A `packed_pair` over all of `c_attn`, and pairs beside
    `frozen_positions`, go to `save_trained`.
    """
    folder = Path(folder)
    if method(settings.method).pairs and not (settings.packed_pair or settings.frozen_positions):
        save_lora(model, folder)
        others = [TRAINED_FILE]
    else:
        save_trained(model, settings, folder)
        others = [WEIGHTS_FILE, CONFIG_FILE]
    for other in others:  # of an earlier run
        (folder / other).unlink(missing_ok=True)


def load_adapter(model: nn.Module, folder: str | Path) -> None:
    """Put what `save_adapter` wrote on the plain base model; raises ValueError if the folder is not for it."""
    folder = Path(folder)
    if (folder / TRAINED_FILE).exists() and (folder / WEIGHTS_FILE).exists():
        raise ValueError(
            f"expected one adapter in {folder}, found {TRAINED_FILE} and {WEIGHTS_FILE}: delete one of them"
        )
    load = load_trained if (folder / TRAINED_FILE).exists() else load_lora
    load(model, folder)


def save_trained(model: nn.Module, settings: Settings, folder: str | Path) -> None:
    """Write what the method trained, with the head, and nothing else: TRAINED_FILE in `folder`, whole or not.

    Its header has the settings, by which the model is changed, the fingerprint of all other parameters, and a checksum.
    Raises ValueError for numbers that are not finite.
    """
    trained = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    header = {"settings": asdict(settings), "base_sha256": base_fingerprint(model, without=trained)}
    header["sha256"] = checksum(trained, header)
    with whole_folder(Path(folder)) as new:
        write_tensors(trained, new / TRAINED_FILE, {"method": json.dumps(header)})


def load_trained(model: nn.Module, folder: str | Path) -> Settings:
    """Apply the saved method to the plain base model and put in what was trained; returns the settings.

    Raises ValueError if the file is incomplete or damaged, if its base, names or shapes are not this model's, or if the
    model is not plain. The model then stays as it is.
    """
    model, folder = inside(model), Path(folder)
    require_plain(model)
    header, tensors = read_tensors(folder / TRAINED_FILE, "method")
    try:
        saved = {key: tuple(value) if isinstance(value, list) else value for key, value in header["settings"].items()}
        settings, base_sha256, sha256 = Settings(**saved), header["base_sha256"], header.pop("sha256")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected the settings of save_trained in the header of {folder / TRAINED_FILE}, found {error!r}; "
            "save or copy it again"
        ) from error
    if sha256 != checksum(tensors, header):
        raise ValueError(f"expected in {folder} what was saved, found it damaged or edited since; copy it again")
    with torch.device("meta"):
        changed = type(model)(copy.deepcopy(model.config))
    apply_method(changed, settings)
    wanted = {(name, *p.shape) for name, p in changed.named_parameters() if p.requires_grad}
    wanted.add(("base weights", base_sha256))
    present = {(name, *tensor.shape) for name, tensor in tensors.items()}
    present.add(("base weights", base_fingerprint(model, without=tensors)))
    if wanted != present:
        raise ValueError(
            not_for_this_model(wanted, present, model, folder, f"load the model it is for ({settings.model})")
        )
    apply_method(model, settings)
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        parameters[name].data.copy_(tensor)
    return settings
