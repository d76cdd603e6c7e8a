"""AdapterHub's side of test_adapters_parity.py, run by the interpreter of an environment with its package:

    python tests/adapterhub_reference.py FOLDER     cases.json, 0.safetensors, ... -> 0-results.safetensors, ...

A case is a model's configuration, the kind of its adapters, and all weights by our names. The results are the logits,
and by our names the gradients of the sum of their squares with respect to the adapters' weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapters
import torch
from adapters.methods.modeling import Adapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

NEW = "a"  # AdapterHub's adapters have names


def settings(case: dict) -> adapters.BnConfig:
    """AdapterHub has no name for Lin et al.'s adapter: one after the layer, which reads a LayerNorm of its own."""
    config = case["config"]
    width = config.get("n_embd") or config["hidden_size"]
    shared = {"reduction_factor": width / case["bottleneck"], "leave_out": list(range(case["dropped_layers"]))}
    if case["kind"] == "houlsby":
        return adapters.DoubleSeqBnConfig(**shared)
    if case["kind"] == "lin":
        norm_is_before = config["model_type"] == "gpt2"  # of the sub-layers, so that none follows the sum
        shared |= {"ln_before": True, "original_ln_after": norm_is_before, "residual_before_ln": norm_is_before}
    return adapters.SeqBnConfig(**shared)


def weights(model: nn.Module, case: dict, layers: str) -> dict[str, nn.Parameter]:
    """AdapterHub's weights by our names; its adapters come layer by layer, that of the attention first."""
    named, a_layer = {}, 2 if case["kind"] == "houlsby" else 1
    for number, adapter in enumerate(module for module in model.modules() if isinstance(module, Adapter)):
        prefix = f"{layers}.{case['dropped_layers'] + number // a_layer}.adapters.{number % a_layer}"
        *norm, down, _ = adapter.adapter_down
        parts = {"down": down, "up": adapter.adapter_up} | ({"norm": norm[0]} if norm else {})
        for part, module in parts.items():
            named |= {f"{prefix}.{part}.{name}": parameter for name, parameter in module.named_parameters()}
    return named


def results(case: dict, saved: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    config = AutoConfig.for_model(**case["config"])
    auto = AutoModelForCausalLM if config.model_type == "gpt2" else AutoModelForSequenceClassification
    model = auto.from_config(config).eval()
    missing, unexpected = model.load_state_dict({n: t for n, t in saved.items() if ".adapters." not in n}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    adapters.init(model)
    model.add_adapter(NEW, config=settings(case))
    model.set_active_adapters(NEW)
    ours = {name for name in saved if ".adapters." in name}
    named = weights(model, case, next(iter(ours)).partition(".adapters.")[0].rpartition(".")[0])
    assert named.keys() == ours, named.keys() ^ ours
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(saved[name])
    logits = model(tokens).logits
    logits.square().sum().backward()
    return {"logits": logits.detach()} | {name: parameter.grad for name, parameter in named.items()}


def main(folder: Path) -> None:
    request = json.loads((folder / "cases.json").read_text())
    for number, case in enumerate(request["cases"]):
        found = results(case, load_file(folder / f"{number}.safetensors"), torch.tensor(request["tokens"]))
        save_file(found, folder / f"{number}-results.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
