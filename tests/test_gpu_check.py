"""`make gpu-check` without a GPU: the same path on tiny models, and what it says of cards that are only pretended."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

import files
import make
import models
from costs import gpu_check, gpu_losses, gpu_steps
from costs.estimate import estimate
from costs.gpu_check import GpuCheck
from costs.gpu_losses import Comparison, compared, first_losses
from costs.gpu_measurements import PEFT, MeasuredDecoding, MeasuredStep, path_of
from costs.gpu_steps import BASES, decided, few_steps, measured_steps_of, random_rows, rows_with_most_steps
from experiments.catalogue import EXPERIMENTS, find
from methods.catalogue import apply_method
from models import architecture
from tasks.catalogue import TASKS
from tiny_models import SHAPES

# PEFT asks for it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
DEVICE = "NVIDIA A100-TINY"
LORA, FULL = "table2/roberta-base/mnli/lora-r8", "table2/roberta-base/mnli/full"
PASSES, FAILS = "assert True", "assert False"


@pytest.fixture
def tiny(monkeypatch):
    """The paper's bases, each with the width and depth of a tiny model of its family."""
    for name in BASES:
        entry = models.BASES[name]
        shape = entry.shape | SHAPES[entry.family] | {"vocab_size": 8192, "initializer_range": 0.02}
        shape |= {"n_positions": 512} if entry.family == "gpt2" else {"max_position_embeddings": 514}
        monkeypatch.setitem(models.BASES, name, replace(entry, shape=shape))


@pytest.fixture
def check(monkeypatch, tmp_path, tiny):
    """A check of a pretended device on the CPU, with fewer steps, and what it has said."""
    chosen = [e for e in rows_with_most_steps() if e.settings.model in ("gpt2-medium", "roberta-base")]
    chosen = [replace(e, settings=replace(e.settings, batch_size=2)) for e in chosen]
    for name, value in {"STEPS": 4, "LOSS_STEPS": 3, "INPUTS": 2}.items():
        monkeypatch.setattr(gpu_check, name, value)
    monkeypatch.setattr(gpu_check, "rows_with_most_steps", lambda: chosen)
    monkeypatch.setattr(gpu_check, "EXPERIMENTS", {e.name: e for e in chosen} | {FULL: find(FULL, "paper")})
    monkeypatch.setattr(gpu_check, "compared", lambda steps: Comparison(steps, 5.0, 4.0, 1e-6))
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")

    def begin(test: str = PASSES, seconds: float = 600) -> tuple[GpuCheck, list[str]]:
        file = tmp_path / "test_device.py"
        file.write_text(f"import pytest\n@pytest.mark.gpu\ndef test_it():\n    {test}\n", encoding="utf-8")
        monkeypatch.setattr(gpu_check, "TESTS", str(file))
        said: list[str] = []
        return GpuCheck(DEVICE, said.append, seconds), said

    return begin


@pytest.fixture
def at_once(monkeypatch):
    """Steps and decoding are not measured but made up."""

    def measured(settings, number, deadline, by_peft):
        method = PEFT if by_peft else settings.method
        return [MeasuredStep(settings.model, method, 2, n, False, "tf32", 0.1, 1.0) for n in (40, 160)]

    monkeypatch.setattr(gpu_check, "measured_steps_of", measured)
    monkeypatch.setattr(
        gpu_check, "measured_decoding", lambda s, n: MeasuredDecoding(s.model, s.precision, n, s.beams, 64, 1.0)
    )


def written() -> dict:
    return json.loads(path_of(DEVICE).read_text(encoding="utf-8"))


# --- the whole of it --------------------------------------------------------------------------------------------------


def test_a_check_writes_what_it_measured_and_says_which_tables_the_machine_can_run(check):
    one, said = check()
    before = estimate(find(LORA, "paper").settings, "paper")
    one.run({"python": "3"})
    content = written()
    kinds = [(step["model"], step["method"], step["tokens"]) for step in content["steps"]]
    assert kinds == [
        (model, method, tokens)
        for model, lengths in (("gpt2-medium", (58, 232)), ("roberta-base", (40, 160)))
        for method in ("lora", PEFT, "full")
        for tokens in lengths
    ]
    assert [(d["model"], d["inputs"], d["beams"]) for d in content["decoding"]] == [("gpt2-medium", 2, 10)]
    assert content["tests"].startswith("1 passed") and content["left_out"] == content["problems"] == []
    assert content["losses"] == {"steps": 3, "first": 5.0, "last": 4.0, "largest": 1e-6}
    assert content["device"] == DEVICE and content["python"] == "3"
    after = estimate(find(LORA, "paper").settings, "paper")
    assert "measured steps" in after.basis and after.minutes != before.minutes
    text = "\n".join(said)
    assert "table2, roberta-base: this machine can run 2 of 2 rows in" in text
    assert "table3, gpt2-medium: this machine can run 2 of 2 rows in" in text
    assert "4 by measured steps" not in text and "2 by measured steps, 0 by arithmetic" in text


def test_a_second_check_says_that_it_replaces_the_first_even_one_of_another_form(check, at_once):
    files.write_json(path_of(DEVICE), {"steps": {"roberta-base": 3}})
    with pytest.raises(ValueError, match=r"expected `steps`, a list of objects.*make gpu-check"):
        estimate(find(LORA, "paper").settings, "paper")
    one, said = check()
    one.run({})
    assert f"replaced: {path_of(DEVICE)}" in said and len(written()["steps"]) == 12


def test_a_failing_test_is_shown_and_makes_the_check_fail_after_all_is_measured(check, at_once):
    one, said = check(FAILS)
    with pytest.raises(RuntimeError, match=r"not to be trusted with a run: tests that need a GPU failed \(1 failed"):
        one.run({})
    assert any("assert False" in line for line in said) and len(written()["steps"]) == 12


def test_losses_unlike_the_cpus_make_the_check_fail(check, at_once, monkeypatch):
    monkeypatch.setattr(gpu_check, "compared", lambda steps: Comparison(steps, 5.0, 4.0, 2 * gpu_losses.TOLERANCE))
    one, _ = check()
    with pytest.raises(RuntimeError, match=r"losses differ from the CPU's by 1\.0e-03"):
        one.run({})


def test_a_model_whose_memory_was_not_enough_is_a_problem_and_pefts_is_none(check, at_once, monkeypatch):
    measured = gpu_check.measured_steps_of

    def too_much(settings, number, deadline, by_peft):
        if settings.model == "roberta-base" and (by_peft or settings.method == "full"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measured(settings, number, deadline, by_peft)

    monkeypatch.setattr(gpu_check, "measured_steps_of", too_much)
    one, _ = check()
    with pytest.raises(RuntimeError, match=rf"run: {FULL}: OutOfMemoryError, CUDA out of memory$"):
        one.run({})
    [left_out] = written()["left_out"]
    assert left_out.startswith(f"{LORA} by PEFT: OutOfMemoryError") and len(written()["steps"]) == 8


@pytest.mark.parametrize("package", ["peft", "pytest"])
def test_what_a_missing_package_takes_away_is_said_and_the_rest_is_measured(check, at_once, monkeypatch, package):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == package else name)
    one, said = check()
    one.run({})
    methods = {step["method"] for step in written()["steps"]}
    assert methods == ({"lora", "full"} if package == "peft" else {"lora", PEFT, "full"})
    assert any(f"{package} is not installed; pip install -r tests/requirements.txt" in line for line in said)


# --- the time ---------------------------------------------------------------------------------------------------------


def test_nothing_is_begun_after_the_time_is_used_and_what_was_left_out_is_said(check):
    one, said = check(seconds=0)
    one.run({})
    assert written()["steps"] == written()["decoding"] == []
    for name in (LORA, f"{LORA} by PEFT", FULL, "3 losses beside the CPU's"):
        assert f"left out: {name}: the time was used" in said


def test_steps_end_at_the_deadline(tiny):
    settings = replace(find(LORA, "paper").settings, batch_size=2)
    model = architecture(settings.model, 3, "cpu")
    apply_method(model, settings)
    rows = random_rows(settings, 12, 60, 99)
    assert few_steps(model, settings, rows, 20, time.monotonic() - 1).seconds == []
    whole = few_steps(model, settings, rows, 20)
    assert len(whole.seconds) == len(whole.losses) == 20 and min(whole.seconds) > 0
    assert measured_steps_of(settings, 5, time.monotonic() - 1) == []


def test_the_steps_leave_no_model_and_no_file_behind(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    measured_steps_of(replace(find(FULL, "paper").settings, batch_size=2), 3)
    assert not list(tmp_path.iterdir())


# --- what is measured -------------------------------------------------------------------------------------------------


def test_every_base_is_measured_with_both_methods_at_a_batch_of_its_table():
    chosen = rows_with_most_steps()
    assert [(e.settings.model, e.settings.method) for e in chosen] == [(b, m) for b in BASES for m in ("lora", "full")]
    assert all(EXPERIMENTS[e.name] is e and e.scale == "paper" for e in chosen)
    assert [e.settings.batch_size for e in chosen if e.settings.model == "roberta-base"] == [16, 16]


def test_of_a_text_the_second_part_carries_the_loss_and_a_class_is_one_of_the_tasks():
    for experiment in rows_with_most_steps():
        row, *_ = rows = random_rows(experiment.settings, 40, 6, 99)
        assert {len(each["input_ids"]) for each in rows} == {40}
        if TASKS[experiment.settings.task].outputs:
            assert {each["label"] for each in rows} == set(range(TASKS[experiment.settings.task].outputs))
        else:
            assert row["labels"] == [-100] * 20 + row["input_ids"][20:]


@pytest.mark.parametrize("base", ["gpt2-large", "roberta-large", "deberta-v2-xxlarge"])
def test_peft_trains_as_many_numbers_as_we_do(tiny, base):
    [lora] = [e for e in rows_with_most_steps() if (e.settings.model, e.settings.method) == (base, "lora")]
    ours, pefts = (
        {p.numel() for p in gpu_steps._model(lora.settings, by_peft).parameters() if p.requires_grad}
        for by_peft in (False, True)
    )
    assert sum(ours) > 0 and (ours == pefts or base == "gpt2-large")  # GPT-2's packed pair has other shapes


def test_the_first_losses_are_the_same_every_time_and_follow_the_learning_rate():
    losses = first_losses(3)
    assert first_losses(3) == losses
    settings = find(gpu_losses.EXPERIMENT).settings
    assert first_losses(3, learning_rate=2 * settings.learning_rate)[2] != losses[2]


def test_the_comparison_with_a_process_that_sees_no_gpu_agrees_on_a_cpu():
    comparison = compared(2)
    assert comparison.agrees and comparison.largest == 0.0 and comparison.first > comparison.last > 0


@pytest.mark.parametrize(("largest", "agrees"), [(1e-5, True), (2e-3, False)])
def test_rounding_agrees_and_tf32_does_not(largest, agrees):
    assert Comparison(100, 5.0, 3.0, largest).agrees == agrees


# --- machines that cannot ---------------------------------------------------------------------------------------------


def test_without_a_gpu_the_command_says_so_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["make.py", "gpu-check"])
    with pytest.raises(SystemExit, match=r"error: expected a CUDA GPU, found none: .* nothing was written"):
        make.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("cuda", "why"), [(None, "built without CUDA"), ("12.8", "nvidia-smi")])
def test_why_there_is_no_gpu_is_said(monkeypatch, cuda, why):
    monkeypatch.setattr("torch.version.cuda", cuda)
    with pytest.raises(ValueError, match=why):
        gpu_check.require_gpu()


@pytest.mark.parametrize(
    ("gigabytes", "lacking"),
    [(15, ["gpt2-large/full", "deberta-v2-xlarge/sst2/full", "deberta-v2-xxlarge/mnli/full"]),
     (24, ["deberta-v2-xxlarge/mnli/full"]), (40, []), (141, [])],
)  # fmt: skip
def test_what_does_not_fit_the_card_is_said_before_anything_is_run(gpu, gigabytes, lacking):
    gpu(gigabytes)
    said: list[str] = []
    one = GpuCheck(DEVICE, said.append)
    planned = one.planned()
    assert len(planned) + len(lacking) == 12 and one.problems == []
    assert [line.split(",")[0].split("/", 1)[1] for line in said] == lacking
    assert all("takes about" in line and f"found {gigabytes * 1e9 / 2**30:.1f} GiB" in line for line in said)


def test_a_gpu_that_emulates_bfloat16_is_not_asked_for_it(gpu, monkeypatch):
    gpu(80)
    monkeypatch.setattr("training.precision.has_fast_bfloat16", lambda: False)
    one = GpuCheck("Tesla V100", lambda line: None)
    assert {e.settings.model for e, _ in one.planned()} == {*BASES[:4]}
    assert all("expected a GPU with bfloat16" in line for line in one.left_out) and len(one.left_out) == 4


def test_what_the_cards_memory_decides_is_decided_by_the_longest_row(gpu):
    settings = find("table2/deberta-v2-xxlarge/mnli/full", "paper").settings
    gpu(40)
    assert decided(settings).gradient_checkpointing
    gpu(141)
    assert not decided(settings).gradient_checkpointing


def test_a_table_of_which_a_row_cannot_run_says_which_and_why(gpu, monkeypatch):
    gpu(15)
    monkeypatch.setattr("costs.estimate._machine_flops", lambda precision: (1e14, "a GPU of 15 GB"))
    names = [f"table3/gpt2-large/{row}" for row in ("full", "lora-r4")]
    monkeypatch.setattr(gpu_check, "EXPERIMENTS", {name: find(name, "paper") for name in names})
    [line] = gpu_check.table_lines()
    assert "can run 1 of 2 rows in" in line and "1 cannot, such as table3/gpt2-large/full: a step of gpt2-large" in line
    monkeypatch.setattr(gpu_check, "EXPERIMENTS", {names[0]: find(names[0], "paper")})
    assert gpu_check.table_lines()[0].startswith("table3, gpt2-large: this machine can run none of 1 rows; 1 cannot")
