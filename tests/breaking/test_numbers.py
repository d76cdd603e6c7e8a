"""NaN and infinity wherever a number can be: the step and the culprit are named, and no table has such a run.

And the same command twice gives the same record, apart from times.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import count

import pytest
import torch
from torch import nn

import files
from adapter_files import save_lora
from analysis.summary import cells
from experiments.settings import BOUNDS, Settings
from lora import LoRAConfig, add_lora, lora_layers, merge_lora
from methods.saved import save_trained
from runs import execute, records
from runs.run import Run
from synthetic_records import write_e2e
from tasks.e2e.loss import completion_loss
from test_reproduce import FULL, LORA, find, small_runs  # noqa: F401, a fixture
from test_training import SETTINGS, run_training, tiny_model
from tiny_models import adapted, settings, step, tiny
from training.trainer import TrainingDiverged

ODD = {"NaN": math.nan, "infinity": math.inf, "-infinity": -math.inf}
NOT_FINITE = pytest.mark.parametrize("odd", ODD)
PAIRS = replace(SETTINGS, method="lora", rank=2, alpha=4.0, targets=("query", "value"))


# While a model is trained -----------------------------------------------------------------------------------------


def at(call: int, act: Callable[[nn.Module], object]) -> Callable:
    """The loss; before its call of that number, `act(model)`, whose result multiplies it."""
    calls = count(1)

    def loss(model: nn.Module, batch: dict) -> torch.Tensor:
        factor = act(model) if next(calls) == call else None
        return completion_loss(model, batch) * (1.0 if factor is None else factor)

    return loss


def fill(name: str, value: float) -> Callable[[nn.Module], None]:
    def act(model: nn.Module) -> None:
        dict(model.named_parameters())[name].data.view(-1)[-1] = value

    return act


PAIR = "transformer.h.1.attn.c_attn.lora_"
TRAINED = {"full": ("transformer.h.0.mlp.c_fc.weight", "transformer.ln_f.bias"), "lora": (f"{PAIR}A", f"{PAIR}B")}
FROZEN = ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.base_layer.weight", "transformer.ln_f.bias")
CULPRITS = [("full", name) for name in TRAINED["full"]] + [("lora", name) for name in (*TRAINED["lora"], *FROZEN)]


@NOT_FINITE
@pytest.mark.parametrize("number", [1, 7, 10, 13, 20])
def test_a_loss_that_is_no_number_stops_at_its_step(tmp_path, odd, number, tally):
    with pytest.raises(
        TrainingDiverged, match=rf"the loss is -?(nan|inf) at step {number} of 20; the last good state is"
    ):
        run_training(tmp_path, loss=at(number, lambda model: ODD[odd]))
    tally("numbers", f"{odd} in the loss", "stopped with step and culprit")


@NOT_FINITE
@pytest.mark.parametrize("number", [2, 10, 20])
@pytest.mark.parametrize(("method", "name"), CULPRITS)
def test_a_weight_that_is_no_number_is_named_with_the_step(tmp_path, odd, number, method, name, tally):
    with pytest.raises(
        TrainingDiverged, match=rf"^{name} is not finite after step {number - 1} of 20; ".replace(".", r"\.")
    ):
        run_training(tmp_path, SETTINGS if method == "full" else PAIRS, loss=at(number, fill(name, ODD[odd])))
    tally(
        "numbers",
        f"{odd} in a {'trained' if name in TRAINED[method] else 'frozen'} weight",
        "stopped with step and culprit",
    )


@NOT_FINITE
@pytest.mark.parametrize(
    ("method", "name"), [("full", TRAINED["full"][0]), *(("lora", name) for name in TRAINED["lora"])]
)
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_no_number_is_named_with_the_step(tmp_path, odd, method, name, clip, tally):
    model, backwards = tiny_model(), count(1)
    chosen = SETTINGS if method == "full" else PAIRS
    if method == "lora":
        add_lora(model, LoRAConfig(2, 4.0))
    parameter = dict(model.named_parameters())[name]
    parameter.register_hook(lambda gradient: gradient * (ODD[odd] if next(backwards) == 7 else 1.0))
    named = rf"^the gradient of {name} is not finite at step 7 of 20; ".replace(".", r"\.")
    with pytest.raises(TrainingDiverged, match=named):
        run_training(tmp_path, replace(chosen, max_grad_norm=clip), model)
    assert all(p.isfinite().all() for p in model.parameters())
    tally("numbers", f"{odd} in a gradient", "stopped with step and culprit")


# In settings and files --------------------------------------------------------------------------------------------

BOUNDED = [name for names, _, _ in BOUNDS for name in names]
NUMBERS = [field.name for field in fields(Settings) if "int" in field.type or "float" in field.type]


def test_every_number_of_the_settings_has_bounds():
    assert set(NUMBERS) == set(BOUNDED)


@NOT_FINITE
@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_that_is_no_number_is_refused_by_its_name(odd, name, tally):
    several = isinstance(getattr(SETTINGS, name), tuple)
    with pytest.raises(ValueError, match=rf"^{name} must be .*found"):
        replace(SETTINGS, **{name: (ODD[odd], ODD[odd]) if several else ODD[odd]})
    tally("numbers", f"{odd} as a setting", "refused by its name")


@NOT_FINITE
def test_settings_of_lora_that_are_no_numbers_are_refused(odd, tally):
    for name in ("rank", "alpha", "dropout"):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            LoRAConfig(**{name: ODD[odd]})
        tally("numbers", f"{odd} as a setting", "refused by its name")


@NOT_FINITE
def test_what_is_no_number_is_neither_merged_nor_saved_and_no_record_holds_it(tmp_path, odd, tally, monkeypatch):
    model = tiny("bert")
    add_lora(model, LoRAConfig(2))
    [*_, name], [*_, layer] = lora_layers(model), lora_layers(model).values()
    layer.lora_A.data[0, 0] = ODD[odd]
    for act in (merge_lora, lambda m: save_lora(m, tmp_path / "adapter")):
        with pytest.raises(ValueError, match=f"the pair of {name} can be neither merged nor saved"):
            act(model)
    other = step(adapted("bitfit"))
    other.transformer.ln_f.bias.data[0] = ODD[odd]
    with pytest.raises(ValueError, match=r"NaN or infinity in transformer\.ln_f\.bias"):
        save_trained(other, settings("bitfit"), tmp_path / "adapter")
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    for facts in ({"scores": {"BLEU": ODD[odd]}}, {"dev_loss": ODD[odd]}, {"history": [{"step": 1, "loss": ODD[odd]}]}):
        with pytest.raises(ValueError, match="Out of range float values"):
            write_e2e("table3/gpt2-mini/full", 0, 0.6, **facts)
    assert not list(tmp_path.rglob("*.json*"))
    tally("numbers", f"{odd} in what is saved", "refused, and nothing was written")


def test_a_record_in_which_a_number_was_made_none_is_passed_over(tmp_path, tally, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    record = write_e2e("table3/gpt2-mini/full", 0, 0.6)
    path = records.record_path(record["name"], "cpu", 0)
    for word in ("NaN", "Infinity", "-Infinity"):
        text = json.dumps(record, indent=1).replace("0.6,", f"{word},", 1)  # without a digest, as the first ones
        path.write_text(text, encoding="utf-8")
        assert records.read_records("cpu") == [] and records.damaged("cpu") == [path]
        tally("numbers", f"{word} in a record", "named, passed over and counted")


# Whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FULL, LORA])
def test_a_run_that_diverges_is_in_no_table(small_runs, monkeypatch, name, tally):  # noqa: F811
    real = execute.WORKFLOWS["e2e"]
    broken = count(1)

    def breaking(model: nn.Module, *others: object) -> tuple:
        hook = lambda module, inputs, output: output * (math.nan if next(broken) == 3 else 1.0)  # noqa: E731
        model.transformer.h[0].mlp.register_forward_hook(hook)
        return real(model, *others)

    monkeypatch.setitem(execute.WORKFLOWS, "e2e", breaking)
    run = Run(find(name), 0)
    with pytest.raises(TrainingDiverged, match=r"at step \d+ of|after step \d+ of"):
        execute.do(run, say=lambda _: None)
    assert not run.record.exists() and records.unfinished("quick", "diverged") == 1
    assert not cells([run.experiment])["n"].any()
    tally("numbers", "a run that diverges", "noted apart, in no table")


TIMES = {"started", "training_seconds", "evaluation_seconds", "peak_memory_gib", "digest"}


def test_the_same_command_twice_gives_the_same_record_but_for_times(tmp_path, tally):
    def record(place: str) -> dict:
        folders = {
            "LORA_RESULTS_DIR": str(tmp_path / place),
            "LORA_CHECKPOINT_DIR": str(tmp_path / f"{place} checkpoints"),
        }
        environment = os.environ | folders
        command = [sys.executable, str(files.ROOT / "code" / "reproduce.py"), "run", LORA, "--seed", "0"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        [path] = (tmp_path / place / "runs" / "quick").glob("*.json")
        [texts] = (tmp_path / place / "predictions" / "quick").glob("*.jsonl")
        return json.loads(path.read_text(encoding="utf-8")) | {"texts": texts.read_text(encoding="utf-8")}

    one, two = record("one"), record("two")
    differing = {key for key in one | two if one.get(key) != two.get(key)}
    assert differing <= TIMES, differing
    tally("numbers", "the same command twice", "the same record, apart from times")
