"""What a run is said to cost before it starts: its steps, its memory, its time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

import files
from costs import estimate as estimate_module
from costs.estimate import estimate
from costs.gpu_measurements import measured_steps, path_of
from experiments.catalogue import find, select
from experiments.settings import OFFICIAL, Settings
from methods.catalogue import apply_method
from runs import records
from tasks.catalogue import TASKS
from tasks.glue.data import held_out_tenth

MRPC_LORA, MRPC_FULL = "table2/roberta-base/mrpc/lora-r8", "table2/roberta-base/mrpc/full"
RECORDED = (
    "table2/minilm/mrpc/lora-r8", "table2/minilm/cola/full", "table2/minilm/sst2/full", "table2/minilm/stsb/lora-r8",
    "table6/minilm/sst2/query-value-r4", "learning-rate/minilm/rte/full/5e-05", "table3/gpt2-mini/lora-r4",
)  # fmt: skip


def paper(name: str, **changes: object) -> Settings:
    return replace(find(name, "paper").settings, **changes)


def test_as_many_steps_are_announced_as_runs_took():
    runs = {name: own[0] for name in RECORDED if (own := records.records_of(find(name)))}
    assert 2 * len(runs) > len(RECORDED)  # a setting that is changed outdates some for a while, not most
    announced = {name: estimate(find(name).settings, "cpu", [run]).steps for name, run in runs.items()}
    assert announced == {name: run["steps"] for name, run in runs.items()}


@pytest.mark.parametrize("name", ["mrpc", "stsb", "rte", "sentiment-builtin"])
def test_the_rows_trained_on_are_those_that_the_rule_leaves(name):
    task = TASKS[name]
    assert task.trained_rows == len(held_out_tenth(range(task.train_rows))[0])


def test_an_adapter_that_is_only_scored_takes_no_memory_of_training_and_one_pass_over_the_inputs():
    released, trained = paper("released/roberta-base/rte"), paper(f"table2/roberta-base/rte/lora-r8/{OFFICIAL}")
    cost = estimate(released, "paper")
    assert cost.steps == 0
    assert cost.gigabytes == pytest.approx(4 * cost.total / 2**30, abs=0.6)
    assert cost.gigabytes < estimate(trained, "paper").gigabytes
    assert cost.minutes == estimate(replace(released, epochs=1), "paper").minutes > 0


@pytest.mark.parametrize("name", [MRPC_LORA, MRPC_FULL])
def test_the_numbers_kept_for_the_backward_pass_are_those_that_a_layer_saves(name):
    settings = paper(name)
    more = estimate(replace(settings, batch_size=32), "paper").gigabytes
    more -= estimate(replace(settings, batch_size=16), "paper").gigabytes
    announced = more * 2**30 / 4 / (16 * 4 * TASKS["mrpc"].mean_tokens * 12 * 768)
    assert announced == pytest.approx((_saved(settings, layers=3) - _saved(settings, layers=1)) / 2, rel=0.1)


def _saved(settings: Settings, layers: int, rows: int = 4, tokens: int = 64, hidden: int = 384) -> float:
    """Float32 numbers a token and hidden unit that autograd keeps of a forward pass, the model's own left out."""
    config = RobertaConfig(
        vocab_size=200, hidden_size=hidden, num_attention_heads=6, intermediate_size=4 * hidden,
        num_hidden_layers=layers, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).train()
    apply_method(model, settings)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.full((rows, tokens), 5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, attention_mask=torch.ones_like(ids), labels=torch.zeros(rows, dtype=torch.long)).loss
    assert loss.requires_grad
    return sum(kept[place].nbytes() for place in kept.keys() - own) / 4 / (rows * tokens * hidden)


@pytest.mark.parametrize(("name", "ratio"), [(MRPC_LORA, 6 / 4), (MRPC_FULL, 8 / 6)])
def test_recomputing_the_forward_pass_takes_time_and_saves_memory(name, ratio):
    settings = paper(name, batch_size=256)
    plain, twice = (estimate(replace(settings, gradient_checkpointing=on), "paper") for on in (False, True))
    assert step_seconds(replace(settings, gradient_checkpointing=True)) == pytest.approx(
        step_seconds(replace(settings, gradient_checkpointing=False)) * ratio
    )
    assert twice.gigabytes < plain.gigabytes


def test_bfloat16_has_a_rate_of_its_own():
    precisions = ("float32", "bfloat16", "auto")
    minutes = {p: estimate(paper(MRPC_LORA, precision=p, batch_size=1024), "paper").minutes for p in precisions}
    assert minutes["auto"] == minutes["bfloat16"]  # the A100 has it, whatever this machine has
    assert 3 < minutes["float32"] / minutes["bfloat16"] < 16  # their peaks are as 1 to 16


# --- a step's floor, and steps that were measured ---------------------------------------------------------------------


def step_seconds(settings: Settings) -> float:
    """What a training step is said to take on an A100, scoring left out."""
    cost = estimate(settings, "paper")
    return 60 * (cost.minutes - cost.scoring_minutes) / cost.steps


@pytest.mark.parametrize(("model", "milliseconds"), [("roberta-base", 24), ("deberta-v2-xxlarge", 363)])
def test_a_step_takes_at_least_what_a_thread_needs_to_start_its_operations(model, milliseconds):
    settings = paper(f"table2/{model}/mrpc/lora-r8", gradient_checkpointing=False)
    few, fewer = (step_seconds(replace(settings, batch_size=batch)) for batch in (2, 1))
    assert few == pytest.approx(fewer) == pytest.approx(milliseconds / 1e3, rel=0.03)
    assert step_seconds(replace(settings, batch_size=4096)) > 10 * few


def test_the_floor_is_higher_where_the_forward_pass_is_recomputed():
    settings = paper("table2/deberta-v2-xxlarge/mrpc/lora-r8", batch_size=1)
    plain, twice = (step_seconds(replace(settings, gradient_checkpointing=on)) for on in (False, True))
    assert twice / plain == pytest.approx(527 / 363)


def test_a_run_without_a_gpu_has_no_such_floor():
    settings = replace(find("table2/minilm/mrpc/lora-r8").settings, precision="float32")
    two, one = (estimate(replace(settings, batch_size=b, evaluate="selection"), "cpu", []) for b in (2, 1))
    assert two.steps < one.steps
    assert two.minutes == pytest.approx(one.minutes, rel=0.5)  # the rate is measured anew; a floor would halve it
    assert two.minutes > 0


STEP = {
    "model": "roberta-base", "method": "lora", "batch_size": 16, "tokens": 53, "gradient_checkpointing": False,
    "precision": "float32", "seconds": 0.1, "gigabytes": 2.5,
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Writes what the steps of a GPU took."""
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    return lambda *steps, device="NVIDIA A100-SXM4-40GB": files.write_json(
        path_of(device), {"device": device, "steps": list(steps)}
    )


def test_a_measured_step_of_an_a100_corrects_time_and_memory(measured):
    settings = paper(MRPC_LORA, precision="float32")
    before = estimate(settings, "paper")
    measured(STEP | {"seconds": 50.0, "batch_size": 4}, STEP)
    cost = estimate(settings, "paper")
    assert step_seconds(settings) == pytest.approx(0.1, rel=0.01)  # of the nearer of the two batches
    assert cost.gigabytes > before.gigabytes
    assert "corrected by its measured steps" in cost.basis and "corrected" not in before.basis


@pytest.mark.parametrize("other", [{"model": "roberta-large"}, {"method": "full"}, {"gradient_checkpointing": True}])
def test_a_measured_step_of_another_kind_corrects_nothing(measured, other):
    settings = paper(MRPC_LORA, precision="float32")
    before = estimate(settings, "paper")
    measured(STEP | other)
    assert estimate(settings, "paper") == before


def test_of_two_lengths_the_longer_corrects_memory_and_the_shorter_time(measured):
    settings = paper(MRPC_LORA, precision="float32")
    measured(STEP | {"gigabytes": 2.5})
    before = estimate(settings, "paper")
    measured(STEP | {"gigabytes": 2.5}, STEP | {"tokens": 212, "seconds": 9.0, "gigabytes": 100.0})
    cost = estimate(settings, "paper")
    assert cost.minutes == before.minutes and cost.gigabytes == pytest.approx(100, rel=0.1) != before.gigabytes


@pytest.mark.parametrize("device", ["Tesla T4", "NVIDIA RTX A1000", "NVIDIA A10", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"])
def test_steps_of_another_gpu_are_not_an_a100s(measured, device):
    settings = paper(MRPC_LORA, precision="float32")
    before = estimate(settings, "paper")
    measured(STEP, device=device)
    assert estimate(settings, "paper") == before


@pytest.mark.parametrize("device", ["NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe"])
def test_a_gpu_has_its_own_steps_and_not_those_of_one_whose_name_begins_alike(measured, device):
    measured(STEP, device=device)
    assert [len(measured_steps(name)) for name in (None, device, "NVIDIA A10", "NVIDIA A100")] == [1, 1, 0, 0]


DECODING = {"model": "gpt2-medium", "precision": "tf32", "inputs": 64, "beams": 10, "tokens": 64, "seconds": 6400.0}


def test_measured_decoding_stands_for_the_arithmetic_of_a_table_that_decodes(measured):
    settings = paper("table3/gpt2-medium/lora-r4")
    measured()
    before = estimate(settings, "paper")
    files.write_json(path_of("A100"), {"steps": [], "decoding": [DECODING]})
    training = step_seconds(settings) * before.steps
    assert 60 * estimate(settings, "paper").minutes - training == pytest.approx(630 * 30 * 6400 / (64 * 64))
    for other in ({"beams": 1}, {"model": "gpt2-large"}, {"precision": "float32"}):
        files.write_json(path_of("A100"), {"steps": [], "decoding": [DECODING | other]})
        assert estimate(settings, "paper") == before


@pytest.mark.parametrize(
    ("key", "lines"),
    [("steps", {"gpt2": 0.1}), ("steps", ["gpt2"]), ("steps", [{"model": "gpt2", "seconds": 0.1}]),
     ("steps", [STEP | {"seconds": 0}]), ("steps", [STEP | {"more": 1}]), ("steps", [STEP | {"model": 3}]),
     ("steps", [STEP | {"gradient_checkpointing": 1}]), ("steps", None), ("decoding", [STEP]),
     ("decoding", [DECODING | {"tokens": -1}])],
)  # fmt: skip
def test_measurements_of_another_form_are_refused_by_their_file(monkeypatch, tmp_path, key, lines):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    files.write_json(path_of("A100"), {"device": "A100", "steps": []} | {key: lines})
    with pytest.raises(ValueError, match=rf"A100\.json: expected `{key}`, a list of objects with .*found"):
        estimate(paper("table3/gpt2-medium/lora-r4"), "paper")


@pytest.mark.parametrize("has", [False, True])
def test_elsewhere_the_precision_is_what_the_machine_has(monkeypatch, has):
    asked = []
    monkeypatch.setattr("training.precision.has_fast_bfloat16", lambda: has)
    monkeypatch.setattr(estimate_module, "_machine_flops", lambda precision: (asked.append(precision) or 1e12, "here"))
    estimate(find("table2/minilm/mrpc/lora-r8").settings, "cpu")
    assert asked == ["bfloat16" if has else "float32"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_this_machine_has_a_rate_in_each_precision(precision):
    assert estimate_module._machine_flops(precision)[0] > 1e6


def test_every_row_of_tables_2_and_3_fits_a_card_of_40_gb_recomputed_or_not():
    rows = select("table2", "paper", variant=OFFICIAL) + select("table2", "paper", ["full", "lora-r8"])
    rows += select("table3", "paper")
    assert {e.settings.gradient_checkpointing for e in rows} == {None, False}
    by_size = {(s.model, s.method, s.batch_size, s.max_length): s for s in (e.settings for e in rows)}
    for settings in by_size.values():
        assert estimate(settings, "paper").gigabytes * 2**30 < 40e9


def test_every_epoch_of_few_rows_scores_the_held_out_rows_and_all_splits():
    whole, search = (
        estimate(paper("table16/roberta-base/mnli/100/lora-r8", precision="float32", **changes), "paper")
        for changes in ({}, {"evaluate": "selection"})
    )
    assert search.scoring_minutes / whole.scoring_minutes == pytest.approx(39_271 / (39_271 + 9_815 + 9_832), rel=0.01)
    assert whole.scoring_minutes > 5 * (whole.minutes - whole.scoring_minutes)  # training has 100 rows
