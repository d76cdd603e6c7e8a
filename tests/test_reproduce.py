"""From the command line to a record, a table and a figure, with the model and data that ship with the repository."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest

import files
import reproduce
from costs.estimate import estimate
from experiments import catalogue
from experiments.catalogue import find, select
from experiments.settings import Job
from files import ROOT
from lora import lora_layers
from methods.saved import load_trained
from models import load_model
from publish import tables
from publish.pages import PAGES
from runs import e2e as e2e_run
from runs import execute, records
from runs.run import Run
from synthetic_records import write
from tasks.catalogue import TASKS
from training.trainer import ShareDone, TrainingDiverged

NOTEBOOKS = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.py"))]
FULL, LORA = (f"table3/gpt2-mini/e2e-builtin/{row}" for row in ("full", "lora-r4"))
SMALL = {"train_rows": 24, "epochs": 1, "warmup_steps": 1, "beams": 2, "max_new_tokens": 12}


@pytest.fixture
def small_runs(tmp_path, monkeypatch):
    """Experiments on the built-in E2E with settings small enough for seconds; records and checkpoints in tmp_path."""
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    for name, experiment in catalogue.EXPERIMENTS.items():
        if experiment.settings.task == "e2e-builtin":
            small = replace(experiment, settings=replace(experiment.settings, **SMALL))
            monkeypatch.setitem(catalogue.EXPERIMENTS, name, small)
    load = TASKS["e2e-builtin"].load

    def load_some(split, *others):
        return load(split, *others)[: None if split == "train" else 16]

    monkeypatch.setitem(TASKS, "e2e-builtin", replace(TASKS["e2e-builtin"], load=load_some))
    return tmp_path


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    reproduce.main()
    return capsys.readouterr().out


def test_a_sweep_records_every_run_once_and_the_table_and_figure_come_from_the_records(small_runs, monkeypatch, capsys):
    sweep = ("sweep", "table3", "--scale", "quick", "--rows", "full", "lora-r4")
    out = command(monkeypatch, capsys, *sweep)
    assert "runs at scale quick: 2, recorded already: 0" in out
    full, lora = records.read_records("quick")
    assert full["name"] == FULL
    assert full["parameters"]["trainable"] == full["parameters"]["total"] == 5_322_240
    assert lora["parameters"]["trainable"] == 2 * 4 * 4 * (256 + 256)  # two pairs in each of four layers
    assert full["base_fingerprint"] == lora["base_fingerprint"]
    for record in (full, lora):
        assert record["status"] == "finished"
        assert record["settings"]["learning_rate"] > 0
        assert record["steps"] == 3
        assert 0 <= record["scores"]["BLEU"] <= 1
        assert record["rows"] == {"train": 24, "dev": 16, "test": 16}
        lines = records.predictions_path(record["name"], "quick", 0).read_text(encoding="utf-8").splitlines()
        assert record["predictions"] == records.predictions_path(record["name"], "quick", 0).name
        assert len(lines) == record["inputs"]
        assert set(json.loads(lines[0])) == {"mr", "context", "prediction", "ended", "slot_errors"}
    assert not list((small_runs / "checkpoints").rglob("checkpoint-*"))

    out = command(monkeypatch, capsys, *sweep)
    assert "recorded already: 2" in out
    assert "[1/" not in out

    out = command(monkeypatch, capsys, "run", LORA)
    assert f"{LORA} seed 0: recorded already\nBLEU {100 * lora['scores']['BLEU']:.2f}  NIST " in out

    out = command(monkeypatch, capsys, "table", "table3", "--scale", "quick")
    assert "one seed only" in out
    assert "missing: table3/gpt2-mini/e2e-builtin/lora-r2" in out
    frame = tables.table(select("table3", "quick")).set_index("experiment")
    assert frame.loc[FULL, "BLEU"] == pytest.approx(100 * full["scores"]["BLEU"])
    figure = command(monkeypatch, capsys, "figure", "table3", "--scale", "quick").strip()
    assert figure.endswith("table3-parameters-quick.png")
    assert (small_runs / "results" / "figures" / "table3-parameters-quick.pdf").stat().st_size > 5000


def test_a_record_of_other_settings_is_not_shown_as_this_experiment(small_runs):
    experiment = find(LORA)
    execute.do(Run(experiment, 0), say=lambda _: None)
    assert len(records.records_of(experiment)) == 1
    assert records.records_of(replace(experiment, settings=replace(experiment.settings, rank=8))) == []


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(small_runs):
    run = Run(find(LORA), 0)
    first = execute.do(run, say=lambda _: None)
    run.record.unlink()
    again = execute.do(run, say=lambda _: None)
    other = execute.do(replace(run, seed=1), say=lambda _: None)
    assert again["dev_loss"] == first["dev_loss"]
    assert again["scores"] == first["scores"]
    assert other["dev_loss"] != first["dev_loss"]


def test_a_learning_rate_run_never_looks_at_the_test_set(small_runs, monkeypatch):
    seen, load = [], TASKS["e2e-builtin"].load
    spy = replace(TASKS["e2e-builtin"], load=lambda split, *others: seen.append(split) or load(split, *others))
    monkeypatch.setitem(TASKS, "e2e-builtin", spy)
    record = execute.do(Run(find("learning-rate/gpt2-mini/e2e-builtin/lora/0.002"), 0), say=lambda _: None)
    assert set(seen) == {"train", "dev"}
    assert record["dev_loss"] > 0
    assert "scores" not in record
    e2e_run.load_splits(Job(find(LORA).settings, 0, small_runs))
    assert "test" in seen


def test_one_pair_over_all_of_c_attn_is_kept_and_comes_back(small_runs):
    run = Run(find("pitfalls/gpt2-mini/e2e-builtin/packed-c-attn"), 0)
    execute.do(run, say=lambda _: None)
    model = load_model("gpt2-mini")
    assert load_trained(model, run.adapter).packed_pair
    for layer in lora_layers(model).values():
        assert layer.lora_A.shape == (4, 256)
        assert all(third.any() for third in layer.lora_B.split(256))


def test_a_run_says_whether_it_used_bfloat16_where_the_machine_decides(small_runs, monkeypatch):
    experiment = find("learning-rate/gpt2-mini/e2e-builtin/lora/0.002")
    experiment = replace(experiment, settings=replace(experiment.settings, precision="auto"))
    for seed, has in enumerate((True, False)):
        monkeypatch.setattr("training.precision.has_fast_bfloat16", lambda has=has: has)
        record = execute.do(Run(experiment, seed), say=lambda _: None)
        assert (record["settings"]["precision"], record["bfloat16"]) == ("auto", has)


def test_a_diverging_run_is_recorded_apart_and_its_error_reaches_the_user(small_runs, monkeypatch):
    def diverge(*_, **__):
        raise TrainingDiverged("the loss is nan at step 2")

    monkeypatch.setattr(e2e_run, "train", diverge)
    with pytest.raises(TrainingDiverged):
        execute.do(Run(find(FULL), 0), say=lambda _: None)
    assert records.unfinished("quick", "diverged") == 1
    assert records.read_records("quick") == []


def test_results_that_cannot_be_written_are_said_before_anything_is_trained(small_runs, monkeypatch, capsys):
    (small_runs / "results").write_text("a file where the folder should be")
    monkeypatch.setattr(execute, "measure", lambda *_, **__: pytest.fail("it was trained"))
    for words in (("run", FULL), ("sweep", "table3", "--scale", "quick", "--rows", "full")):
        with pytest.raises(SystemExit, match=rf"error: nothing can be written into {small_runs}.*make room"):
            command(monkeypatch, capsys, *words)


def test_a_disk_without_room_for_a_checkpoint_is_said_before_anything_is_trained(small_runs, monkeypatch, capsys):
    usage = shutil.disk_usage(small_runs)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=60 * 10**6))
    monkeypatch.setattr(e2e_run, "train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(SystemExit, match=r"error: no space left in .*expected 64.9 MB free, found 60.0"):
        command(monkeypatch, capsys, "run", FULL)  # 5,322,240 weights and two moments, of 4 bytes


def test_a_note_that_cannot_be_written_does_not_hide_why_the_run_ended(small_runs, monkeypatch, capsys):
    def fail(error):
        raise error

    monkeypatch.setattr(execute, "measure", lambda *_, **__: fail(ValueError("the cause")))
    monkeypatch.setattr(records, "write_unfinished", lambda _: fail(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit, match="error: the cause"):
        command(monkeypatch, capsys, "run", FULL)
    assert "failed, not noted: [Errno 28] No space left on device" in capsys.readouterr().out


def test_a_copied_record_answers_for_no_other_seed_and_ends_table_and_sweep_with_an_error(
    small_runs, monkeypatch, capsys
):
    write(LORA, 0, scores={"BLEU": 0.5}, history=[])
    path = records.record_path(LORA, "quick", 0)
    shutil.copy(path, records.record_path(LORA, "quick", 1))
    with pytest.raises(SystemExit, match=f"is a copy of {path.name}, the file of another run: delete it"):
        command(monkeypatch, capsys, "run", LORA, "--seed", "1")
    assert "about" not in capsys.readouterr().out
    for words in (("table",), ("sweep", "--seeds", "0", "1")):
        with pytest.raises(SystemExit, match="1"):
            command(monkeypatch, capsys, words[0], "table3", "--scale", "quick", "--rows", "lora-r4", *words[1:])
    assert command(monkeypatch, capsys, "table", "table3", "--scale", "quick", "--rows", "full")


def test_a_score_that_was_not_measured_stops_no_sweep(small_runs, monkeypatch, capsys):
    write(LORA, 0, scores={"BLEU": None}, history=[])
    out = command(monkeypatch, capsys, "sweep", "table3", "--scale", "quick", "--rows", "lora-r4")
    assert re.search(rf"{LORA} +BLEU +0 +- +- +- +-", out)


def test_a_table_is_printed_where_the_terminal_has_no_unicode(tmp_path):
    words = [sys.executable, str(files.ROOT / "code" / "reproduce.py"), "table", "table3", "--scale", "paper"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LORA_RESULTS_DIR": str(tmp_path)}
    out = subprocess.run(words, capture_output=True, check=True, env=environment).stdout
    assert b"\\xb1" in out and out.isascii()


def test_an_output_that_takes_every_text_is_printed_to(monkeypatch):
    monkeypatch.setattr(sys, "stdout", shown := io.StringIO())  # as a notebook's, it cannot be reconfigured
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "list", "table3"])
    reproduce.main()
    assert "table3/gpt2-medium/lora-r4" in shown.getvalue()


def test_a_rank_that_grows_is_announced_with_the_cost_of_its_last_stage():
    names = ("rank-over-time/gpt2-mini/sequential-fixed-frozen", "table3/gpt2-mini/lora-r8", "table3/gpt2-mini/lora-r2")
    grown, cap, first = (estimate(find(name).settings, "cpu") for name in names)
    assert grown.trainable == cap.trainable > first.trainable


@pytest.mark.parametrize(
    ("name", "scored"),
    [("table2/minilm/mrpc/lora-r8", {}), ("table3/gpt2-mini/lora-r4", {"evaluation_seconds": 90.0})],
)
def test_a_run_of_the_same_kind_says_what_the_next_one_takes(name, scored):
    settings = find(name).settings
    record = {"name": name, "settings": asdict(settings), "peak_memory_gib": 1.25, "training_seconds": 120.0} | scored
    steps = estimate(settings, "cpu").steps
    took = estimate(settings, "cpu", [record | {"steps": steps // 2}])
    assert took.basis == f"as {name} took"
    assert took.minutes == pytest.approx((240 + scored.get("evaluation_seconds", 0)) / 60, rel=0.01)
    assert took.gigabytes == 1.25
    other = record | {"steps": steps, "settings": asdict(replace(settings, batch_size=3))}
    assert estimate(settings, "cpu", [other]).basis.startswith("arithmetic")


def test_the_most_similar_run_says_what_the_next_one_takes():
    settings = find("table3/smollm2-135m/lora-r4").settings
    record = {"peak_memory_gib": 1.0, "training_seconds": 60.0, "evaluation_seconds": 6.0, "steps": 10}
    own, wider = settings, replace(settings, targets=("query", "key", "value", "output"), rank=1)
    known = [record | {"name": name, "settings": asdict(s)} for name, s in (("a wider one", wider), ("its own", own))]
    assert estimate(settings, "cpu", known).basis == "as its own took"
    for change in ({"beams": 1}, {"pad_to_maximum": True}, {"precision": "float32"}):
        assert estimate(replace(settings, **change), "cpu", known).basis.startswith("arithmetic")
    elsewhere = [run | {"device": "NVIDIA T4"} for run in known]
    assert estimate(settings, "cpu", elsewhere).basis.startswith("arithmetic")


def test_a_run_that_is_padded_takes_the_time_of_its_padded_rows():
    settings = find("pitfalls/gpt2-medium/padded", "paper").settings
    padded, usual = estimate(settings, "paper"), estimate(replace(settings, pad_to_maximum=False), "paper")
    assert padded.minutes > 3 * usual.minutes and padded.gigabytes > usual.gigabytes


def test_the_scoring_of_a_subset_is_that_of_its_rows():
    settings = find("table16/minilm/mnli/100/lora-r8").settings
    rows = {"train": 8099, "validation_matched": 1000, "held_out": 900}
    known = [{"name": "a", "settings": {"task": "mnli"}, "rows": rows}]
    assert estimate(settings, "cpu", known).minutes < estimate(settings, "cpu").minutes / 10


def test_an_e2e_run_that_was_not_decoded_does_not_say_what_one_takes_that_is():
    settings = find("table3/gpt2-mini/lora-r4").settings
    record = {"name": "a", "settings": asdict(settings), "peak_memory_gib": 1.0, "training_seconds": 1.0, "steps": 9}
    assert estimate(settings, "cpu", [record]).basis.startswith("arithmetic")
    assert estimate(replace(settings, evaluate="selection"), "cpu", [record]).basis == "as a took"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_released_adapter_is_measured_by_the_first_process_alone(small_runs, monkeypatch, rank):
    released = next(e for e in catalogue.EXPERIMENTS.values() if e.table == "released")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(execute, "measure", lambda *_, **__: ({}, []))
    with pytest.raises(ShareDone) if rank == "1" else nullcontext():
        execute.do(Run(released, 0), say=lambda _: None)
    assert len(records.read_records("paper")) == (rank == "0")


def test_dry_run_prints_settings_counts_and_cost_and_starts_nothing(small_runs, monkeypatch, capsys):
    out = command(monkeypatch, capsys, "run", "table3/gpt2-medium/lora-r4", "--dry-run")
    assert "learning_rate      0.0002" in out
    assert "393,216 trainable" in out
    assert "26,290" in out
    assert "nothing was started" in out
    assert not list(small_runs.rglob("*.json"))


def test_errors_reach_the_user_as_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "run", "table3/gpt2/lora-r5"])
    with pytest.raises(SystemExit, match="error: no experiment is called"):
        reproduce.main()


def test_help_and_list_need_no_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(files.ROOT / 'code')!r}); import reproduce; reproduce._parser();"
        "sys.argv = ['reproduce.py', 'list']; reproduce.main(); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "table3/gpt2-medium/lora-r4" in done.stdout


def test_a_reader_that_has_enough_ends_the_list_without_a_traceback():
    words = [sys.executable, str(files.ROOT / "code" / "reproduce.py"), "list"]
    listing = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listing.stdout.close()  # as `| head` does
    assert listing.stderr.read() == b""
    listing.stderr.close()
    assert listing.wait() == 0


def commands_in(file):
    """The words after `reproduce.py` of every command in a text that names rows, an experiment or a table."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = re.findall(r"(?:reproduce\.py|\$\(REPRODUCE\)) ((?:run|sweep|table|figure|list) [^`\n]+)", text)
    return [re.sub(r"  +.*| #.*", "", line).split() for line in lines if "NAME" not in line and "..." not in line]


@pytest.mark.parametrize("file", ["Makefile", *PAGES, "code/reproduce.py", *NOTEBOOKS])
def test_the_commands_that_are_written_down_name_what_is_declared(file):
    for words in commands_in(file):
        arguments = reproduce._parser().parse_args(words)
        if words[0] == "run":
            assert find(arguments.name, arguments.scale)
        elif words[0] in ("sweep", "table"):
            assert select(arguments.table, arguments.scale, arguments.rows, arguments.variant)


def test_a_command_with_a_row_that_is_not_declared_would_be_found():
    assert len(commands_in("Makefile")) == 5 and len(commands_in("results/README.md")) > 20
    arguments = reproduce._parser().parse_args(["sweep", "table2", "--scale", "quick", "--rows", "sst2/full"])
    with pytest.raises(ValueError, match="table2 has no row sst2/full"):
        select(arguments.table, arguments.scale, arguments.rows)
