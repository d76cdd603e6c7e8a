"""The free-form run: what its flags mean, what its folder holds, and that it is one run's folder only."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib.util import find_spec

import pytest

import files
import train
from adapter_files import load_lora
from experiments import e2e as e2e_experiments
from experiments import glue as glue_experiments
from experiments.catalogue import find
from experiments.settings import Job, Settings
from files import read_json, write_json
from methods.catalogue import METHODS
from models import MINILM_PACKAGE, load_model, load_tokenizer
from runs import e2e as e2e_run
from runs import execute
from runs import glue as glue_run
from runs.identity import MACHINES_FILE
from runs.run import lock
from tasks.catalogue import TASKS
from tasks.e2e.data import load_builtin
from tasks.glue import data as glue_data
from training.checkpoints import TrainingInterrupted

SMALL = ("--r", "2", "--train_rows", "32", "--epochs", "2", "--batch_size", "16", "--max_seq_length", "24")
PARAPHRASES = ("--task", "paraphrase-builtin", *SMALL)


def settings_of(*flags):
    return train.free_settings(train._parser().parse_args([*flags, "--output_dir", "out"]))[1]


def job_of(settings, folder, seed=0):
    return Job(settings, seed, folder / "checkpoints")


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    train.main()
    return capsys.readouterr().out


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# flags


def test_without_flags_a_glue_run_is_table_9_of_the_paper_without_the_mnli_start():
    s = settings_of("--task", "mrpc")
    assert (s.model, s.method, s.rank, s.alpha, s.targets) == ("roberta-base", "lora", 8, 8, ("query", "value"))
    assert (s.batch_size, s.epochs, s.learning_rate, s.warmup_ratio, s.max_length) == (16, 30, 4e-4, 0.06, 512)
    assert s.weight_decay == 0.1
    assert s.start_from is None
    assert settings_of("--task", "rte").epochs == 80


def test_the_defaults_are_those_of_the_task_the_method_and_the_model():
    assert settings_of("--task", "mrpc", "--method", "full").learning_rate == 2e-5
    assert settings_of("--task", "mrpc", "--model", "roberta-large").learning_rate == 3e-4
    minilm = settings_of("--task", "mrpc", "--model", "minilm")
    assert minilm.learning_rate == glue_experiments.CPU_LEARNING_RATES["lora"]["mrpc"]
    e2e = settings_of("--task", "e2e")
    assert (e2e.model, e2e.rank, e2e.alpha, e2e.warmup_steps) == ("gpt2", 4, 32, 500)
    mini = settings_of("--task", "e2e", "--model", "gpt2-mini")
    assert mini.learning_rate == e2e_experiments.CPU_LEARNING_RATES["lora"] != e2e.learning_rate
    assert settings_of("--task", "sentiment-builtin").model == "minilm"


def test_every_other_method_has_the_settings_of_its_row():
    bitfit = settings_of("--task", "cola", "--method", "bitfit")
    assert (bitfit.model, bitfit.learning_rate, bitfit.rank) == ("roberta-base", 1e-3, None)
    wide = settings_of("--task", "rte", "--method", "adapter-h", "--model", "roberta-large")
    assert (wide.bottleneck, wide.batch_size) == (64, 32)
    whole = settings_of("--task", "mrpc", "--method", "adapter-p")  # not the row of AdapterDrop
    assert (whole.bottleneck, whole.dropped_layers) == (48, 0)
    assert settings_of("--task", "mrpc", "--method", "adapter-p", "--dropped_layers", "3").dropped_layers == 3
    assert settings_of("--task", "e2e", "--method", "top-layers", "--top_layers", "5").top_layers == 5


def test_a_method_without_a_row_has_lora_s_and_wants_its_rate_and_size(monkeypatch, capsys, tmp_path):
    with pytest.raises(ValueError, match="have no preembed on e2e, so no learning rate for it: give --lr"):
        settings_of("--task", "e2e", "--method", "preembed")
    flags = ("--task", "e2e-builtin", "--method", "preembed", "--lr", "1e-2", "--output_dir", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"error: .*prefix_tokens"):
        command(monkeypatch, capsys, *flags)
    assert not (tmp_path / "out").exists()
    s = settings_of("--task", "e2e", "--method", "preembed", "--lr", "1e-2", "--prefix_tokens", "5")
    lora = settings_of("--task", "e2e")
    without = {"method": "preembed", "rank": None, "alpha": None, "lora_dropout": 0.0, "targets": ()}
    assert s == replace(lora, **without, learning_rate=1e-2, prefix_tokens=5)


def test_a_model_without_a_row_takes_the_settings_of_the_tasks_first_one():
    s = settings_of("--task", "mrpc", "--model", "deberta-v2-xlarge")
    assert s == replace(settings_of("--task", "mrpc"), model="deberta-v2-xlarge")


def test_every_flag_reaches_its_setting():
    flags = "--task mnli --r 4 --alpha 16 --dropout 0.2 --lora_target_weights key mlp_in --epochs 3 --batch_size 7 "
    flags += "--lr 1e-3 --max_seq_length 99 --warmup_ratio 0.2 --weight_decay 0 --train_rows 500 --model roberta-large"
    flags += " --rank_stabilised --b_lr_ratio 16"
    changed = {
        "rank": 4, "alpha": 16.0, "lora_dropout": 0.2, "targets": ("key", "mlp_in"), "epochs": 3, "batch_size": 7,
        "learning_rate": 1e-3, "max_length": 99, "warmup_ratio": 0.2, "weight_decay": 0.0, "train_rows": 500,
        "rank_stabilised": True, "b_learning_rate_ratio": 16.0,
    }  # fmt: skip
    assert settings_of(*flags.split()) == replace(settings_of("--task", "mnli", "--model", "roberta-large"), **changed)


def test_a_command_line_as_the_official_scripts_have_it_gives_those_settings():
    flags = "--task mnli --r 8 --alpha 16 --lora_target_weights query value --epochs 3 --batch_size 16 --lr 5e-4 "
    flags += "--max_seq_length 128 --warmup_ratio 0.06 --seed 42 --output_dir runs/mnli"
    arguments = train._parser().parse_args(flags.split())
    _, s = train.free_settings(arguments)
    assert (s.task, s.model, s.method, s.rank, s.alpha) == ("mnli", "roberta-base", "lora", 8, 16.0)
    assert (s.targets, s.epochs, s.batch_size, s.learning_rate) == (("query", "value"), 3, 16, 5e-4)
    assert (s.max_length, s.warmup_ratio, s.warmup_steps) == (128, 0.06, 0)
    assert (arguments.seed, str(arguments.output_dir)) == (42, "runs/mnli")


SAMPLES = {  # type of a setting -> words of the command line, and the value that they are
    "int": (["3"], 3), "float": (["0.5"], 0.5), "str": (["fixed"], "fixed"), "bool": ([], True),
    "tuple[str, ...]": (["query", "key"], ("query", "key")), "tuple[int, ...]": (["1", "2"], (1, 2)),
    "tuple[float, float]": (["0.5", "0.75"], (0.5, 0.75)),
}  # fmt: skip


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_every_setting_has_a_flag_of_its_type_but_those_of_declared_experiments(field, capsys):
    words, value = SAMPLES[field.type.removesuffix(" | None")]
    line = ["--task", "mrpc", "--output_dir", "out", train.flag(field.name), *words]
    if field.name in ("start_from", "evaluate"):
        with pytest.raises(SystemExit):
            train._parser().parse_args(line)
        assert "unrecognized arguments" in capsys.readouterr().err
    elif field.name != "task":
        parsed = getattr(train._parser().parse_args(line), field.name)
        assert (parsed, type(parsed)) == (value, type(value))


def test_a_switch_can_be_turned_off():
    assert settings_of("--task", "e2e", "--no-end_loss") == replace(settings_of("--task", "e2e"), end_loss=False)


def test_a_warm_up_ratio_replaces_the_warm_up_steps_of_e2e():
    s = settings_of("--task", "e2e", "--warmup_ratio", "0.1")
    assert (s.warmup_steps, s.warmup_ratio) == (0, 0.1)


def test_flags_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="--r, --alpha: --method full has no such setting"):
        settings_of("--task", "mrpc", "--method", "full", "--r", "8", "--alpha", "16")
    with pytest.raises(ValueError, match="--bottleneck: --method lora has no such setting"):
        settings_of("--task", "mrpc", "--bottleneck", "8")
    with pytest.raises(ValueError, match="--max_seq_length: --task e2e has no such setting"):
        settings_of("--task", "e2e", "--max_seq_length", "128")
    with pytest.raises(ValueError, match="--label_smoothing, --blank_line_ends: --task mrpc has no such setting"):
        settings_of("--task", "mrpc", "--label_smoothing", "0.2", "--no-blank_line_ends")


def test_the_setting_of_one_method_is_refused_with_every_other():
    own = {setting for method in METHODS.values() for setting in method.settings}
    types = {field.name: field.type.removesuffix(" | None") for field in fields(Settings)}
    assert {"rank", "bottleneck", "prefix_tokens", "rank_stages"} <= own
    for name, method in METHODS.items():
        for setting in own - {*method.settings}:
            words, _ = SAMPLES[types[setting]]
            with pytest.raises(ValueError, match=f"^{train.flag(setting)}: --method {name} has no such setting"):
                settings_of("--task", "mrpc", "--method", name, train.flag(setting), *words)


def test_a_count_below_one_and_an_unknown_task_are_refused(capsys):
    with pytest.raises(ValueError, match=r"epochs must be above 0 .*, found 0"):
        settings_of("--task", "mrpc", "--epochs", "0")
    with pytest.raises(SystemExit):
        settings_of("--task", "wnli")
    assert "invalid choice: 'wnli'" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", ["1", "6", "-0.1", "nan"])
def test_a_warm_up_that_is_no_share_of_the_steps_is_refused(ratio):
    with pytest.raises(ValueError, match=f"warmup_ratio must be from 0 to below 1, found {float(ratio)}"):
        settings_of("--task", "mrpc", "--warmup_ratio", ratio)
    assert settings_of("--task", "mrpc", "--warmup_ratio", "0").warmup_ratio == 0


def test_a_negative_number_of_layers_without_adapter_is_refused():
    adapters = ("--task", "mrpc", "--method", "adapter-p", "--dropped_layers")
    with pytest.raises(ValueError, match="dropped_layers must be 0 or above and below 1e9, found -1"):
        settings_of(*adapters, "-1")
    assert settings_of(*adapters, "0").dropped_layers == 0


BAD_NUMBERS = {
    "learning_rate": ("-1e-3", "0", "nan", "inf"), "weight_decay": ("-1", "nan", "1e9"), "lora_dropout": ("nan", "1"),
    "label_smoothing": ("nan", "-0.1"), "max_grad_norm": ("-1", "inf"), "adam_epsilon": ("0", "nan"),
    "alpha": ("0", "nan"), "rank": ("0", "-4"), "batch_size": ("0", "9" * 400), "train_rows": ("0", "-5"),
}  # fmt: skip


@pytest.mark.parametrize(("setting", "value"), [(name, value) for name, each in BAD_NUMBERS.items() for value in each])
def test_a_number_that_no_training_can_have_is_refused_before_anything_is_written(
    monkeypatch, capsys, tmp_path, setting, value
):
    task = "e2e" if setting in TASKS["e2e"].settings else "mrpc"
    words = ("--task", task, f"{train.flag(setting)}={value}", "--output_dir", tmp_path / "out")
    with pytest.raises(SystemExit, match=f"error: {setting} must be "):
        command(monkeypatch, capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_file_in_the_place_of_the_folder_is_refused_by_its_name(monkeypatch, capsys, tmp_path, below):
    (file := tmp_path / "notes").write_text("mine")
    with pytest.raises(SystemExit):
        command(monkeypatch, capsys, "--task", "mrpc", "--output_dir", file / below)
    assert f"--output_dir: expected a folder, found the file {file}" in capsys.readouterr().err
    command(monkeypatch, capsys, "--task", "mrpc", "--output_dir", tmp_path / "new" / below, "--dry-run")


def test_a_folder_in_which_another_process_trains_is_left_to_it(monkeypatch, capsys, tmp_path):
    words = ("--task", "e2e-builtin", "--output_dir", tmp_path)
    trained = []
    monkeypatch.setattr(train, "train", lambda *_: trained.append(1) or {"scores": {}})
    with lock(tmp_path / ".lock", "it"), pytest.raises(SystemExit, match=r"a run in .* is being done by process .* on"):
        command(monkeypatch, capsys, *words)
    assert not trained
    command(monkeypatch, capsys, *words)
    assert trained


@pytest.mark.parametrize(
    ("model", "message"), [("gpt3", "no model is called 'gpt3'"), ("gpt2-mini", "gpt2-mini does not fit a task with 2")]
)
def test_a_model_that_is_unknown_or_does_not_fit_leaves_no_folder(monkeypatch, capsys, tmp_path, model, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        command(monkeypatch, capsys, "--task", "mrpc", "--model", model, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


TOO_MUCH = {
    "--max_new_tokens=256": "max_new_tokens must be below the 256 positions",
    "--beams=8193": "beams must be at most the 8192 tokens of the model, found 8193",
    "--length_penalty=1000": "length_penalty must be from 0 to 10",
}


@pytest.mark.parametrize(("flag", "message"), TOO_MUCH.items())
def test_what_cannot_be_decoded_is_refused_before_the_training(monkeypatch, capsys, tmp_path, flag, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        command(monkeypatch, capsys, "--task", "e2e-builtin", flag, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_that_all_leave_no_room_for_an_answer_are_refused_and_some_are_counted():
    model, tokenizer, rows = load_model("gpt2-mini"), load_tokenizer("gpt2-mini"), load_builtin("test")
    settings = settings_of("--task", "e2e-builtin", "--model", "gpt2-mini", "--max_new_tokens", "250")
    with pytest.raises(ValueError, match=r"250 new tokens leave room for 6 tokens of an input, found all \d+ inputs"):
        e2e_run._cut_prompts(model, tokenizer, rows, settings)
    assert e2e_run._cut_prompts(model, tokenizer, rows, replace(settings, max_new_tokens=64)) == 0
    longest = max(len(tokenizer.encode(row.context)) + 1 for row in rows)
    cut = e2e_run._cut_prompts(model, tokenizer, rows, replace(settings, max_new_tokens=256 - longest + 1))
    assert 0 < cut < len({row.context for row in rows})


def test_a_warm_up_that_is_longer_than_the_run_is_said_with_the_rate_at_its_end(monkeypatch, capsys, tmp_path):
    words = ("--task", "e2e-builtin", "--train_rows", "80", "--lr", "1e-3", "--output_dir", tmp_path, "--dry-run")
    out = command(monkeypatch, capsys, *words, "--warmup_steps", "40")
    assert re.search(r"optimizer steps +10, all of the warm-up: the learning rate ends at 0\.00025\n", out)
    for enough in (("--warmup_steps", "10"), ("--warmup_steps", "40", "--learning_rate_schedule", "constant")):
        assert re.search(r"optimizer steps +10\n", command(monkeypatch, capsys, *words, *enough))


def test_dry_run_prints_settings_counts_and_cost_and_starts_nothing(monkeypatch, capsys, tmp_path):
    out = command(monkeypatch, capsys, "--task", "mrpc", "--output_dir", tmp_path / "out", "--dry-run")
    assert "as table2/roberta-base/mrpc/lora-r8 at scale paper" in out
    assert "887,042 trainable" in out  # 294,912 of the pairs and 592,130 of the head
    assert "nothing was started" in out
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(files.ROOT / 'code')!r}); import train\n"
        "try: train._parser().parse_args(['--help'])\n"
        "finally: assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--lora_target_weights" in done.stdout


# the folder


def load_first(rows, flip=False):
    """`load_glue`, but the first rows only, their labels exchanged on demand."""
    load = glue_data.load_glue

    def load_some(name, split, data_dir=None):
        examples = (whole := load(name, split, data_dir)).examples[:rows]
        return replace(whole, examples=[replace(e, label=1 - e.label) if flip else e for e in examples])

    return load_some


@pytest.fixture(scope="module")
def minilm_folder(tmp_path_factory):
    """The folder of a finished LoRA run of MiniLM on 32 rows, which was stopped once; and both outputs."""
    if find_spec(MINILM_PACKAGE) is None:
        pytest.skip(f"needs MiniLM's weights: the package {MINILM_PACKAGE} of requirements.txt is not installed")
    folder, validated = tmp_path_factory.mktemp("train") / "out", []
    load_some, measure_rows = load_first(60), glue_run.classify

    def stop_in_second_epoch(*arguments):
        validated.append(1)
        if len(validated) == 3:  # two splits an epoch
            raise TrainingInterrupted("stopped")
        return measure_rows(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glue_data, "load_glue", load_some)
        patch.setattr(glue_run, "classify", stop_in_second_epoch)
        settings = replace(settings_of(*PARAPHRASES), precision="float32")
        with pytest.raises(TrainingInterrupted):
            train.train(job_of(settings, folder), folder)
        stopped = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        checkpoints = [path.name for path in (folder / "checkpoints").rglob("checkpoint-*")]
        record = train.train(job_of(settings, folder), folder)
        yield {
            "folder": folder, "settings": settings, "stopped": stopped, "checkpoints": checkpoints, "record": record,
            "validated": len(validated),
        }  # fmt: skip


def test_a_stopped_run_is_marked_and_continued_from_its_checkpoint(minilm_folder):
    assert minilm_folder["stopped"]["status"] == "interrupted"
    assert minilm_folder["stopped"]["error"] == "TrainingInterrupted: stopped"
    assert minilm_folder["checkpoints"] == ["checkpoint-2"]
    assert minilm_folder["validated"] == 3 + 2  # the first epoch was not measured again
    assert [row["epoch"] for row in minilm_folder["record"]["epochs"]] == [1, 2]
    assert not (minilm_folder["folder"] / "checkpoints").exists()


def test_checkpoints_of_others_beside_a_runs_own_stay(tmp_path, monkeypatch):
    others = tmp_path / "checkpoints" / "adapters"
    others.mkdir(parents=True)
    monkeypatch.setattr(execute, "measure", lambda job, adapter: (job.folder.mkdir(parents=True) or {}, []))
    monkeypatch.setattr(glue_data, "load_glue", load_first(60))
    settings = settings_of("--task", "paraphrase-builtin", "--model", "minilm", "--method", "bitfit", "--lr", "0.001")
    train.train(job_of(settings, tmp_path), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["adapters"]


def test_the_folder_holds_record_predictions_and_adapter(minilm_folder):
    folder, record = minilm_folder["folder"], minilm_folder["record"]
    held = read_json(folder / "record.json")
    assert {key: value for key, value in held.items() if key != "digest"} == json.loads(json.dumps(record))
    assert record["name"] == "train/minilm/paraphrase-builtin/lora-r2"
    assert (record["scale"], record["status"], record["seed"]) == ("free", "finished", 0)
    assert record["parameters"]["trainable"] == 6 * 2 * 2 * (384 + 384)
    assert len((folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 60
    assert len(load_lora(load_model("minilm", 2), folder / "adapter")) == 12


def test_metrics_csv_has_a_row_an_epoch_on_the_reported_split(minilm_folder):
    rows = rows_of(minilm_folder["folder"] / "metrics.csv")
    assert list(rows[0]) == ["epoch", "training_loss", "validation_loss", "accuracy", "f1", "precision", "recall"]
    for row, epoch in zip(rows, minilm_folder["record"]["epochs"], strict=True):
        assert int(row["epoch"]) == epoch["epoch"]
        assert float(row["training_loss"]) == epoch["training_loss"] > 0
        assert float(row["validation_loss"]) == epoch["validation"]["loss"] != epoch["held_out"]["loss"]
        assert float(row["f1"]) == epoch["validation"]["f1"]


def test_a_finished_run_is_not_done_again(minilm_folder, monkeypatch, capsys):
    monkeypatch.setattr(execute, "measure", None)  # to call it would fail
    folder = minilm_folder["folder"]
    again = train.train(job_of(minilm_folder["settings"], folder), folder)
    assert again == read_json(folder / "record.json")
    assert "finished; nothing to do" in capsys.readouterr().out


def test_a_run_that_is_older_than_a_setting_has_its_default(minilm_folder):
    record = read_json(minilm_folder["folder"] / "record.json")
    older = {key: value for key, value in record["settings"].items() if key != "official_text"}
    train._refuse_another(record | {"settings": older}, record, minilm_folder["folder"])
    with pytest.raises(ValueError, match="official_text False, not True"):
        train._refuse_another(
            record | {"settings": older},
            record | {"settings": older | {"official_text": True}},
            minilm_folder["folder"],
        )


def test_a_folder_of_another_run_is_refused_and_stays_as_it_is(minilm_folder):
    folder, settings = minilm_folder["folder"], minilm_folder["settings"]
    before = (folder / "record.json").read_bytes()
    for changed, seed, differs in ((replace(settings, rank=4), 0, "rank 2, not 4"), (settings, 7, "seed 0, not 7")):
        with pytest.raises(
            ValueError, match=rf"holds a run \(finished\) of other settings: {differs}\. Choose another"
        ):
            train.train(job_of(changed, folder, seed), folder)
    assert (folder / "record.json").read_bytes() == before


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_folder_of_a_run_on_other_data_is_refused_and_stays_as_it_is(minilm_folder, tmp_path, monkeypatch, status):
    folder = tmp_path / "out"
    write_json(folder / "record.json", minilm_folder["record"] | {"status": status})
    before = (folder / "record.json").read_bytes()
    monkeypatch.setattr(execute, "measure", None)  # to call it would fail
    monkeypatch.setattr(glue_data, "load_glue", load_first(60, flip=True))
    message = rf"holds a run \({status}\) of other data: train \w{{16}}, not \w{{16}}, validation .*Name its data"
    with pytest.raises(ValueError, match=message):
        train.train(job_of(minilm_folder["settings"], folder), folder)
    assert (folder / "record.json").read_bytes() == before


@pytest.mark.parametrize("content", [{}, {"status": "finished", "scores": {}}])
def test_a_file_of_something_else_in_the_place_of_the_record_is_refused_and_stays_as_it_is(tmp_path, content):
    (file := tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"record\.json the record of a run, found no .*seed, .*choose another"):
        train.train(job_of(settings_of(*PARAPHRASES), tmp_path), tmp_path)
    assert json.loads(file.read_text()) == content


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        execute, "measure", lambda *_: ({"history": [{"step": 1, "epoch": 1.0, "eval_loss": 1.5}], "scores": {}}, [])
    )
    names = {"record.json", "metrics.csv", "predictions.jsonl"}
    for name in names:
        (tmp_path / f"{name}.4711.tmp").write_text("half")
    train.train(job_of(settings_of("--task", "e2e-builtin"), tmp_path), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_run_that_was_stopped_says_which_data_it_is_of(minilm_folder):
    assert minilm_folder["stopped"]["data_fingerprint"] == minilm_folder["record"]["data_fingerprint"]


def test_a_finished_run_answers_where_its_data_are_gone_and_nothing_is_fetched(minilm_folder, tmp_path, monkeypatch):
    def load(*_):
        files.find_file("glue/none.parquet", tmp_path, lambda: pytest.fail("fetched"), "nowhere")

    monkeypatch.setattr(glue_data, "load_glue", load)
    folder = minilm_folder["folder"]
    assert train.train(job_of(minilm_folder["settings"], folder), folder)["status"] == "finished"


def test_a_finished_run_does_not_answer_for_a_data_folder_that_is_not_there(minilm_folder, tmp_path, monkeypatch):
    def load(*_):
        files.find_file("glue/none.parquet", tmp_path / "mistyped", None, "nowhere")

    monkeypatch.setattr(glue_data, "load_glue", load)
    folder = minilm_folder["folder"]
    with pytest.raises(FileNotFoundError, match=r"data_dir is .*mistyped, which is not a folder"):
        train.train(job_of(minilm_folder["settings"], folder), folder)


def a_start(folder, settings, seed=0):
    """Begin a run, as a process that is killed in its first step leaves it; gives the folder of its checkpoints."""
    places = []

    def stopped(model, rows, job, *_, **__):
        places.append(job.folder)
        raise TrainingInterrupted("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glue_run, "train", stopped)
        with pytest.raises(TrainingInterrupted):
            train.train(job_of(settings, folder, seed), folder)
    return places[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_fingerprint": "another"}, "expected the base model of the checkpoints in .*, another, found"),
        ({"bfloat16": True}, r"expected the precision \(bfloat16 or not\) of the checkpoints in .*, True, found False"),
        (None, r"machines.json is damaged .*: restore or delete it"),
    ],
    ids=["another base", "another precision", "damaged"],
)
def test_checkpoints_of_another_base_model_or_precision_are_not_continued(minilm_folder, tmp_path, change, message):
    path = a_start(tmp_path / "out", minilm_folder["settings"]) / MACHINES_FILE
    [machine] = read_json(path)["machines"]
    if change is None:
        path.write_bytes(b"\xff")
    else:
        files.write_json(path, {"machines": [machine | change]})
    with pytest.raises(ValueError, match=message):
        train.train(job_of(minilm_folder["settings"], tmp_path / "out"), tmp_path / "out")


def test_a_run_that_was_continued_elsewhere_names_every_machine_and_program(minilm_folder, tmp_path):
    settings, folder = replace(minilm_folder["settings"], epochs=1), tmp_path / "out"
    path = a_start(folder, settings) / MACHINES_FILE
    [machine] = read_json(path)["machines"]
    files.write_json(path, {"machines": [machine | {"git_commit": "older", "git_dirty": True}]})
    record = train.train(job_of(settings, folder), folder)
    assert [each["git_commit"] for each in record["machines"]] == ["older", record["git_commit"]]
    assert "machines" not in minilm_folder["record"]


def test_without_its_record_a_run_is_not_continued_with_other_settings_or_another_seed(minilm_folder, tmp_path):
    settings, folder = minilm_folder["settings"], tmp_path / "out"
    places = [a_start(folder, settings)]
    for other, seed in ((replace(settings, learning_rate=1e-4), 0), (settings, 7), (settings, 0)):
        (folder / "record.json").unlink()
        places.append(a_start(folder, other, seed))
    assert len(set(places)) == 3 and places[3] == places[0]


def test_a_run_that_fails_says_so_in_its_folder(tmp_path, monkeypatch):
    def fail(*_):
        raise FileNotFoundError("glue/mrpc is nowhere")

    monkeypatch.setattr(execute, "measure", fail)
    with pytest.raises(FileNotFoundError):
        train.train(job_of(settings_of(*PARAPHRASES), tmp_path), tmp_path)
    held = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert (held["status"], held["error"]) == ("failed", "FileNotFoundError: glue/mrpc is nowhere")


def test_a_score_that_is_no_number_is_never_recorded_as_finished(tmp_path, monkeypatch):
    measured = {"history": [], "scores": {"loss": float("nan")}}
    monkeypatch.setattr(execute, "measure", lambda *_: (measured, []))
    with pytest.raises(ValueError, match="Out of range float"):
        train.train(job_of(settings_of(*PARAPHRASES), tmp_path), tmp_path)
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["status"] == "interrupted"


def test_sts_b_has_its_own_metrics_in_the_csv():
    scores = {"loss": 1.5, "pearson": 0.8, "spearman": 0.7, "alarm": None}
    record = {
        "settings": {"task": "stsb"}, "history": [], "rows": {"train": 2, "validation": 2, "held_out": 1},
        "epochs": [{"epoch": 1, "training_loss": 2.0, "held_out": {}, "validation": scores}],
    }  # fmt: skip
    expected = {"epoch": 1, "training_loss": 2.0, "validation_loss": 1.5, "pearson": 0.8, "spearman": 0.7}
    assert train.metrics(record) == [expected]


def test_an_e2e_run_has_its_losses_in_the_csv_and_its_scores_in_the_record(tmp_path, monkeypatch, capsys):
    task, scores, predictions = TASKS["e2e-builtin"], {"BLEU": 0.25, "METEOR": None}, [{"prediction": "Blue Spice ."}]
    results = {"scores": scores, "meteor_unavailable": "no Java"}
    few = replace(task, load=lambda *split: task.load(*split)[:16])
    monkeypatch.setitem(TASKS, "e2e-builtin", few)
    monkeypatch.setattr(e2e_run, "_decode_and_score", lambda *_: (results, predictions))  # takes long
    flags = ("--task", "e2e-builtin", "--epochs", "2", "--lr", "1e-3")
    out = command(monkeypatch, capsys, *flags, "--output_dir", tmp_path)
    assert "as table3/gpt2-mini/e2e-builtin/lora-r4 at scale quick" in out
    assert out.endswith("BLEU 25.00\nMETEOR was not measured: no Java\n")
    rows = rows_of(tmp_path / "metrics.csv")
    assert list(rows[0]) == ["epoch", "training_loss", "validation_loss"]
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    validated = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    assert [float(row["validation_loss"]) for row in rows] == validated
    assert len(rows) == 2 and float(rows[0]["training_loss"]) > 0
    assert record["scores"] == scores
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert json.loads((tmp_path / "predictions.jsonl").read_text(encoding="utf-8")) == predictions[0]


def test_a_warm_up_in_steps_and_as_a_share_contradict_each_other():
    with pytest.raises(
        ValueError, match=r"--warmup_steps and --warmup_ratio each say how long .*: leave one of them out"
    ):
        settings_of("--task", "mrpc", "--warmup_steps", "300", "--warmup_ratio", "0.1")
    assert settings_of("--task", "e2e", "--warmup_ratio", "0.1").warmup_steps == 0


@pytest.mark.parametrize(("task", "model", "alpha"), [("mnli", "roberta-base", 16), ("e2e", "gpt2-medium", 32)])
def test_a_released_adapter_is_scored_with_its_own_scale(task, model, alpha):
    chosen = settings_of("--task", task, "--model", model, "--method", "released")
    assert chosen == replace(find(f"released/{model}/{task}").settings, start_from=None) and chosen.alpha == alpha


def test_a_run_that_trains_nothing_ends_without_epochs(tmp_path, monkeypatch):
    measured = {"data_fingerprint": {}, "scores": {"BLEU": 0.5}}
    monkeypatch.setattr(execute, "measure", lambda *_: (measured, []))
    settings = settings_of("--task", "e2e-builtin", "--model", "gpt2-medium", "--method", "released")
    assert train.train(job_of(settings, tmp_path), tmp_path)["status"] == "finished"
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "e2e-builtin", "--int8_base"), "int8_base needs frozen matrices of class nn.Linear"),
        (("--task", "mrpc", "--method", "full", "--lr", "1e-4", "--int8_base"), "int8_base needs frozen matrices"),
        (("--task", "mrpc", "--int8_base"), "int8_base needs torchao, which is not installed"),
    ],
    ids=["GPT-2", "full", "no torchao"],
)
def test_an_int8_base_that_cannot_be_is_refused_before_anything_is_written(tmp_path, monkeypatch, flags, message):
    there = "not installed" not in message
    monkeypatch.setattr("training.int8.find_spec", lambda name: there or None)
    with pytest.raises(SystemExit, match=f"error: {message}"):
        command(monkeypatch, None, *flags, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ranks_that_never_change_are_said(monkeypatch, capsys, tmp_path):
    flags = ("--task", "mrpc", "--method", "adaptive-lora", "--lr", "1e-3", "--rank_budget", "96", "--train_rows", "32")
    for every, said in (("1", False), ("100000", True)):
        out = command(monkeypatch, capsys, *flags, "--schedule_every", every, "--output_dir", tmp_path, "--dry-run")
        assert ("fewer than the 100000 after which ranks change first: they never do" in out) is said
