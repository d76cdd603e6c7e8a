"""A GLUE run: what is trained, kept and recorded, which epoch is reported, what another task's adapter gives."""

import json
import shutil
import zlib
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import transformers

import files
from adapter_files import base_parameters, load_lora, save_lora
from analysis.quantities import quantities
from experiments.catalogue import find
from experiments.glue import GLUE, LORA
from experiments.settings import Job
from families import FAMILIES, head_parameters
from lora import lora_layers
from methods import saved
from methods.catalogue import apply_method
from methods.saved import save_trained
from models import BASES, MINILM_PACKAGE, load_model, load_tokenizer
from runs import execute, identity, records
from runs import glue as glue_run
from runs.glue import HELD_OUT, mean_training_loss
from runs.run import ORIGIN_FILE, Run, run_identity
from tasks.catalogue import TASKS
from tasks.glue import data as glue_data
from tasks.glue import metrics as glue_metrics
from tasks.glue.evaluation import classify
from training import batches, trainer
from training.trainer import TrainingResult, train

NAME = "table2/minilm/paraphrase-builtin/lora-r8"
SMALL = {"train_rows": 48, "epochs": 2, "max_length": 24, "precision": "float32"}
SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50,
    "max_position_embeddings": 40,
}  # fmt: skip
MORE = {  # of each architecture's shape
    "minilm": {}, "roberta-base": {"type_vocab_size": 1},
    "deberta-v2-xxlarge": {"relative_attention": True, "pos_att_type": "p2c|c2p"},
}  # fmt: skip
ENCODERS = pytest.mark.parametrize("name", MORE)
FULL = replace(GLUE, task="mrpc", learning_rate=1e-2, warmup_ratio=0.0, epochs=1, batch_size=8, keep="last")
PAIRS = replace(FULL, **LORA, rank=2, alpha=4.0)


def tiny(name, outputs=2, head_dropout=None):
    """The architecture of `name`, one layer of width 16; every weight is drawn from a seed of its own name's."""
    family = FAMILIES[BASES[name].family]
    config = getattr(transformers, family.config)(**SHAPE, **MORE[name], num_labels=outputs)
    model = getattr(transformers, family.model)(config)
    for parameter_name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(parameter_name.encode()))
        parameter.data.normal_(float("LayerNorm.weight" in parameter_name), 0.3, generator=generator)
    return model


def prepared(settings, outputs=2):
    model = tiny(settings.model, outputs)
    apply_method(model, settings)
    return model


def some_rows(number=8, labels=(0, 1)):
    lengths = torch.randint(3, 12, (number,), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        {"input_ids": [(7 * i + j) % 40 + 5 for j in range(length)], "label": labels[i % len(labels)]}
        for i, length in enumerate(lengths)
    ]


def collate(rows):
    return glue_data.collate(rows, 1)


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model, settings, folder):
    """Names of the parameters that training changes in any bit."""
    before = values(model)
    train(model, some_rows(), Job(settings, 0, folder), glue_run._loss, lambda *_: {"loss": 0.0}, collate=collate)
    return {name for name, value in values(model).items() if not torch.equal(value, before[name])}


# what is trained


@ENCODERS
def test_with_lora_the_pairs_and_the_whole_head_move_and_no_bit_of_the_backbone(name, tmp_path):
    model = prepared(replace(PAIRS, model=name))
    pairs = {n for n, _ in model.named_parameters() if "lora_" in n}
    assert len(pairs) == 2 * 2  # A and B, query and value
    assert moved(model, PAIRS, tmp_path) == pairs | set(head_parameters(model))


@ENCODERS
def test_a_head_that_is_frozen_does_not_move(name, tmp_path):
    model = prepared(replace(PAIRS, model=name))
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(False)
    assert all("lora_" in n for n in moved(model, PAIRS, tmp_path))


@ENCODERS
def test_full_fine_tuning_trains_everything(name, tmp_path):
    model = prepared(replace(FULL, model=name))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert moved(model, FULL, tmp_path) == set(values(model))


def decayed_names(model, settings, folder, monkeypatch):
    groups = []

    class Watched(trainer.OfficialAdamW):
        def __init__(self, parameters, **others):
            groups.extend(parameters)
            super().__init__(parameters, **others)

    monkeypatch.setattr(trainer, "OfficialAdamW", Watched)
    moved(model, settings, folder)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {decay: set() for decay in (0.0, settings.weight_decay)}
    for group in groups:
        by_decay[group["weight_decay"]] |= {names[id(parameter)] for parameter in group["params"]}
    return by_decay[settings.weight_decay], by_decay[0.0]


@ENCODERS
@pytest.mark.parametrize("settings", [FULL, PAIRS], ids=["full", "lora"])
def test_weight_decay_falls_on_matrices_only(name, settings, tmp_path, monkeypatch):
    model = prepared(replace(settings, model=name))
    decayed, spared = decayed_names(model, settings, tmp_path, monkeypatch)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert decayed == {n for n, p in trained.items() if p.dim() > 1}
    assert spared == {n for n, p in trained.items() if p.dim() == 1}  # biases and LayerNorms
    assert any(n.endswith("classifier.bias") or n.endswith("out_proj.bias") for n in spared)


def test_weight_decay_on_everything_is_another_setting(tmp_path, monkeypatch):
    settings = replace(PAIRS, decay="all")
    decayed, spared = decayed_names(prepared(settings), settings, tmp_path, monkeypatch)
    assert not spared
    assert any(n.endswith("bias") for n in decayed)


@pytest.mark.parametrize(
    ("model", "task", "kind"),
    [("gpt2-mini", "mrpc", "a task with 2 outputs"), ("minilm", "e2e-builtin", "a task whose answers are written")],
)
def test_a_model_that_does_not_fit_the_task_is_refused(model, task, kind, tmp_path):
    job = Job(replace(FULL, model=model, task=task), 0, tmp_path)
    with pytest.raises(ValueError, match=rf"{model} does not fit {kind}: .* an encoder .* a language model"):
        execute.measure(job, tmp_path / "adapter")


# what is measured


@ENCODERS
@pytest.mark.parametrize("labels", [(0, 1, 2), (0.5, 4.0)], ids=["classes", "numbers"])
def test_predictions_stand_in_the_order_of_the_rows_and_the_loss_is_their_mean(name, labels, monkeypatch):
    rows, outputs = some_rows(13, labels), 3 if labels == (0, 1, 2) else 1
    model = tiny(name, outputs).eval()
    mean = torch.stack([model(**collate([row])).logits.view(-1) for row in rows]).mean(0).detach()
    list(head_parameters(model).values())[-1].data -= mean  # so that not every row is of one class
    model.train()
    monkeypatch.setattr(batches, "SCORED_ROWS", 4)
    predictions, loss = classify(model, rows, collate, FULL)
    assert model.training
    model.eval()
    alone = [model(**collate([row])) for row in rows]
    expected = [(o.logits.argmax() if outputs > 1 else o.logits.squeeze()).item() for o in alone]
    assert len(set(expected)) > 1  # else the order would not show
    assert predictions == pytest.approx(expected, abs=1e-5)
    assert loss == pytest.approx(sum(o.loss.item() for o in alone) / 13, abs=1e-5)


@pytest.mark.parametrize("labels", [(0, 1), (0.5, 4.0)], ids=["classes", "numbers"])
def test_outputs_that_are_not_finite_are_no_predictions(labels):
    model = tiny("minilm", outputs=2 if labels == (0, 1) else 1)
    model.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="expected a finite loss on 13 rows, found nan"):
        classify(model, some_rows(13, labels), collate, FULL)


def test_training_loss_of_an_epoch_is_the_mean_of_its_logs_by_their_share():
    history = [{"epoch": 0.5, "loss": 4.0}, {"epoch": 1.0, "loss": 2.0}, {"epoch": 1.0, "eval_loss": 9.0}]
    assert mean_training_loss(history, 1) == 3.0
    assert mean_training_loss(history, 2) is None
    assert mean_training_loss([*history, {"epoch": 4.0, "loss": 1.0}], 3) == 1.0  # more than one epoch a log
    assert mean_training_loss([{"epoch": 0.75, "loss": 4.0}, {"epoch": 1.5, "loss": 1.0}], 1) == pytest.approx(3.25)


# which epoch is reported


def reported(monkeypatch, folder, held_out, validation, **changes):
    """The record of a run whose accuracies are made up: one number an epoch for each of the two splits."""
    made_up = {HELD_OUT: held_out, "validation": validation}
    examples = [glue_data.Example((str(i),), i % 2) for i in range(100)]
    asked = []

    def load(task, split, data_dir):
        asked.append(split)
        return glue_data.GlueSplit(list(examples), split == "train")

    def fake_encode(examples, tokenizer, max_length):
        return glue_data.Encoded([{"label": example.label} for example in examples], 0)

    def fake_classify(model, rows, collate, settings):
        share = made_up[HELD_OUT if len(rows) == 10 else "validation"][model.epoch - 1]
        right = round(share * len(rows))
        return [row["label"] if i < right else 1 - row["label"] for i, row in enumerate(rows)], 1.0

    def fake_train(model, rows, job, loss, validate, best, collate, schedule):
        trained_on.append(len(rows))
        for model.epoch in range(1, len(held_out) + 1):
            chosen_by.append(validate(model, model.epoch)[best[0]])
        return TrainingResult(0, 0.0, 0, 0.0, 0, [])

    chosen_by, trained_on = [], []
    monkeypatch.setattr(glue_data, "load_glue", load)
    monkeypatch.setattr(glue_data, "encode", fake_encode)
    monkeypatch.setattr(glue_run, "classify", fake_classify)
    monkeypatch.setattr(glue_run, "train", fake_train)
    settings = replace(FULL, task="sst2", epochs=len(held_out), **changes)
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0})()
    model = torch.nn.Linear(1, 1)
    record, _ = glue_run.train_and_score(model, tokenizer, Job(settings, 0, folder), lambda _: None)
    assert trained_on == [record["rows"]["train"]]
    return record, chosen_by, set(asked)


def test_the_papers_figure_is_the_best_epoch_of_the_reported_split_and_the_held_out_one_is_not(tmp_path, monkeypatch):
    record, chosen_by, _ = reported(monkeypatch, tmp_path, held_out=(0.7, 0.9, 0.8), validation=(0.6, 0.65, 0.95))
    assert record["selected_epoch"] == {"held_out": 2, "reported": 3}
    assert record["scores"]["accuracy"] == 0.95
    assert record["honest_scores"]["accuracy"] == 0.65
    assert chosen_by == [0.6, 0.65, 0.95]  # the epoch whose weights are kept is the paper's
    assert [row[HELD_OUT]["accuracy"] for row in record["epochs"]] == [0.7, 0.9, 0.8]


def test_the_reported_split_never_chooses_the_held_out_epoch(tmp_path, monkeypatch):
    for number, validation in enumerate([(0.1, 0.5, 0.99), (0.99, 0.5, 0.1), (0.5, 0.99, 0.5)]):
        record, _, _ = reported(monkeypatch, tmp_path / str(number), (0.7, 0.8, 0.9), validation)
        assert record["selected_epoch"]["held_out"] == 3
        assert record["honest_scores"]["accuracy"] == validation[2]
        assert record["scores"]["accuracy"] == 0.99


def test_of_equal_epochs_the_first_is_reported(tmp_path, monkeypatch):
    record, _, _ = reported(monkeypatch, tmp_path, (0.8, 0.9, 0.9), (0.5, 0.5, 0.4))
    assert record["selected_epoch"] == {"held_out": 2, "reported": 1}


def test_a_drives_copy_of_an_epochs_validation_is_no_epoch(tmp_path):
    examples = [glue_data.Example(("a",), 0), glue_data.Example(("b",), 1)]
    for name, predictions in (("epoch-1", [0, 1]), ("epoch-2", [0, 0]), ("epoch-1 (1)", [1, 0])):
        output = json.dumps({"validation": {"predictions": predictions, "loss": 0.5}})
        (tmp_path / f"{name}.json").write_text(output)
    rows = glue_run._epochs(TASKS["sst2"], {"validation": examples}, tmp_path, [])
    assert [(row["epoch"], row["validation"]["accuracy"]) for row in rows] == [(1, 1.0), (2, 0.5)]


def test_a_run_that_chooses_settings_never_opens_the_reported_split(tmp_path, monkeypatch):
    record, chosen_by, asked = reported(monkeypatch, tmp_path, (0.7, 0.9), (0.1, 0.1), evaluate="selection")
    assert asked == {"train"}
    assert chosen_by == [0.7, 0.9]
    assert record["selection_score"] == 0.9
    assert "scores" not in record and "honest_scores" not in record
    assert set(record["epochs"][0]) == {"epoch", "training_loss", HELD_OUT}


@pytest.mark.parametrize(("hold_out", "rows"), [(True, {"train": 90, HELD_OUT: 10}), (False, {"train": 100})])
def test_the_official_code_trains_on_all_rows_and_has_the_papers_figure_alone(hold_out, rows, tmp_path, monkeypatch):
    record, chosen_by, _ = reported(monkeypatch, tmp_path, (0.9, 0.7), (0.6, 0.95), hold_out=hold_out)
    assert record["rows"] == rows | {"validation": 100}
    assert record["selected_epoch"]["reported"] == 2 and chosen_by == [0.6, 0.95]
    assert record["scores"]["accuracy"] == 0.95
    assert ("honest_scores" in record) == (HELD_OUT in record["epochs"][0]) == hold_out
    assert set(record["data_fingerprint"]) == set(record["rows"])
    rules = {q.rule for q in quantities(replace(FULL, hold_out=hold_out))}
    assert rules == {"paper", "cost"} | ({"held-out"} if hold_out else set())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"evaluate": "selection"}, 'evaluate="selection" scores the rows that are held out'),
        ({"method": "adaptive-lora", "rank_budget": 4, "schedule_every": 5, "alpha": 4.0, "targets": ("query",)},
         "adaptive-lora changes its ranks by rows that are held out"),
    ],
)  # fmt: skip
def test_what_needs_held_out_rows_is_refused_without_them(changes, match):
    apply_method(tiny("minilm"), replace(FULL, **changes))
    with pytest.raises(ValueError, match=match):
        apply_method(tiny("minilm"), replace(FULL, **changes, hold_out=False))


# what another task's adapter gives


@pytest.fixture
def mnli_adapter(tmp_path, monkeypatch):
    """An adapter of three outputs for a tiny model, every number of it moved; and the model that starts from it."""
    monkeypatch.setattr(execute, "load_model", None)  # to call it would fail: there is no second copy of the base

    def build(name):
        settings = replace(PAIRS, model=name, start_from="table2/minilm/mnli/lora-r8")
        trained = prepared(settings, outputs=3)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape)
        save_lora(trained, tmp_path / "mnli")
        model = prepared(settings)
        return settings, trained, model, tmp_path / "mnli"

    return build


@pytest.mark.parametrize(
    ("name", "carried_head"),
    [
        ("roberta-base", set()),
        ("deberta-v2-xxlarge", {"pooler.dense.weight", "pooler.dense.bias"}),
        ("minilm", {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
    ],
)
def test_the_mnli_start_carries_the_pairs_and_a_pooler_and_leaves_the_rest_fresh(name, carried_head, mnli_adapter):
    settings, trained, model, folder = mnli_adapter(name)
    before, source = values(model), values(trained)
    execute._carry_over(model, settings, folder)
    carried = {n for n, value in values(model).items() if not torch.equal(value, before[n])}
    assert carried == {n for n in before if "lora_" in n} | carried_head
    assert all(torch.equal(values(model)[n], source[n]) for n in carried)
    assert all(p.requires_grad == (n in head_parameters(model) or "lora_" in n) for n, p in model.named_parameters())


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@ENCODERS
@pytest.mark.parametrize("method", ["full", "bitfit", "adapter-h", "adapter-p"])
def test_another_method_that_starts_from_mnli_carries_all_that_it_trained_but_the_fresh_head_over(
    method, name, tmp_path, monkeypatch
):
    monkeypatch.setattr(execute, "load_model", None)
    own = {"bottleneck": 4} if method.startswith("adapter") else {}
    settings = replace(FULL, model=name, method=method, **own, start_from=f"table2/minilm/mnli/{method}")
    trained = prepared(settings, outputs=3)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape)
    save_trained(trained, settings, tmp_path)
    model, source = prepared(settings), values(trained)
    before, as_without_a_start = values(model), trainable(model)
    carried = {n for n in as_without_a_start if not n.startswith("classifier.")}
    assert any("pooler" in n for n in carried) == (name != "roberta-base")
    execute._carry_over(model, settings, tmp_path)
    for n, value in values(model).items():
        assert torch.equal(value, source[n] if n in carried else before[n]), n
    assert trainable(model) == as_without_a_start


def test_a_start_with_frozen_positions_carries_its_pairs_too(tmp_path):
    start = "table2/deberta-v2-xxlarge/mnli/lora-r16/official-code"
    settings = replace(PAIRS, model="deberta-v2-xxlarge", frozen_positions=True, start_from=start)
    trained, model = prepared(settings, outputs=3), prepared(settings)
    pairs = {name: p for name, p in trained.named_parameters() if ".lora_" in name}
    for parameter in pairs.values():
        parameter.data += torch.randn(parameter.shape)
    saved.save_adapter(trained, settings, tmp_path)
    execute._carry_over(model, settings, tmp_path)
    now = values(model)
    assert all(torch.equal(now[name], parameter) for name, parameter in pairs.items())


@ENCODERS
def test_a_start_is_read_into_the_memory_of_the_model_that_is_there(name, mnli_adapter, monkeypatch):
    settings, _, model, folder = mnli_adapter(name)
    places, read = {n: p.data_ptr() for n, p in base_parameters(model).items()}, []
    monkeypatch.setattr(execute, "_load_start", lambda start, folder: read.append(start) or load_lora(start, folder))
    execute._carry_over(model, settings, folder)
    [start] = read
    for n, p in base_parameters(start).items():
        assert (p.data_ptr() == places[n]) == (n not in head_parameters(start)), n
    assert {n: p.data_ptr() for n, p in base_parameters(model).items()} == places


def test_a_start_whose_adapter_is_gone_says_what_to_do(mnli_adapter, tmp_path):
    settings, *_ = mnli_adapter("roberta-base")
    with pytest.raises(
        FileNotFoundError, match=r"expected the adapter of table2/minilm/mnli/lora-r8 in .*gone, found no such folder"
    ):
        execute.measure(Job(settings, 0, tmp_path), tmp_path / "new", tmp_path / "gone")


def test_a_method_without_plain_pairs_cannot_start_from_those_of_another_task(mnli_adapter):
    settings, _, _, folder = mnli_adapter("roberta-base")
    settings = replace(FULL, model="roberta-base", method="bitfit", start_from=settings.start_from)
    with pytest.raises(ValueError, match=r"lora-r8 trained .*lora_A.*method 'bitfit'. Start from a run of that"):
        execute._carry_over(prepared(settings), settings, folder)


@pytest.mark.parametrize("row", ["lora-r8", "full-from-mnli"])
def test_the_experiment_that_a_run_starts_from_is_run_first_once_for_all_seeds(row, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    asked = []

    def measure(job, adapter, start, keep_whole):
        asked.append((job.settings.task, job.seed, start, keep_whole))
        adapter.mkdir(parents=True)
        return {}, []

    monkeypatch.setattr(execute, "measure", measure)
    monkeypatch.setattr(identity, "data_fingerprint", lambda job: {})
    name, first = f"table2/roberta-base/mrpc/{row}", f"table2/roberta-base/mnli/{row.removesuffix('-from-mnli')}"
    start, said = Run(find(first), 0), []
    for seed in (3, 4):
        execute.do(Run(find(name), seed), said.append)
    assert asked == [("mnli", 0, None, True), *(("mrpc", seed, start.adapter, False) for seed in (3, 4))]
    assert [r["name"] for r in records.read_records("paper")] == sorted([first, name, name])

    shutil.rmtree(start.adapter)  # as in a fresh clone: records are in git, what was learnt is not
    asked.clear()
    before = start.record.read_bytes()
    execute.do(Run(find(name), 3), said.append)
    assert asked == []  # a recorded run needs no start
    execute.do(Run(find(name), 5), said.append)
    assert asked == [("mnli", 0, None, True), ("mrpc", 5, start.adapter, False)]
    assert f"{start}: recorded, but {start.adapter} is missing: it is trained again" in said
    assert start.record.read_bytes() == before


@pytest.fixture
def data(tmp_path, monkeypatch):
    """What stands for the data of every task, to be changed; and the folders of the trainings on them."""
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    now, trained = {"train": "first", "validation": "same"}, []

    def measure(job, adapter, start, keep_whole):
        trained.append(job.folder)
        if len(trained) == 1:
            raise KeyboardInterrupt
        adapter.mkdir(parents=True, exist_ok=True)
        return {"data_fingerprint": dict(now)}, []

    monkeypatch.setattr(execute, "measure", measure)
    monkeypatch.setattr(identity, "data_fingerprint", lambda job: dict(now))
    return now, trained


def test_a_stopped_run_continues_on_its_own_data_only(data):
    now, trained = data
    run = Run(find("table2/roberta-base/mnli/lora-r8"), 0)
    with pytest.raises(KeyboardInterrupt):
        execute.do(run)
    now["train"] = "second"
    execute.do(run)
    run.record.unlink()
    now["train"] = "first"
    execute.do(run)
    assert trained[0] == trained[2] != trained[1]


def test_a_record_does_not_answer_for_other_data_and_no_run_starts_from_it(data, monkeypatch):
    now, trained = data
    trained.append("none is interrupted")
    start, run = Run(find("table2/roberta-base/mnli/lora-r8"), 0), Run(find("table2/roberta-base/mrpc/lora-r8"), 3)
    execute.do(start)
    before, number = start.record.read_bytes(), len(trained)
    now["train"] = "second"
    for asked, for_adapter in ((start, False), (start, True), (run, False)):
        with pytest.raises(ValueError, match=rf"{start}.* recorded with other data \(train first, not second\)"):
            execute.do(asked, for_adapter=for_adapter)
    assert (start.record.read_bytes(), len(trained)) == (before, number)
    now["train"] = "first"
    said = []
    execute.do(start, said.append)
    assert said == [f"{start}: recorded already"]
    execute.do(run)
    others = {"mnli": {"train": "second", "validation": "same"}}  # of a recorded run, its start's data count too
    monkeypatch.setattr(identity, "data_fingerprint", lambda job: others.get(job.settings.task, now))
    with pytest.raises(ValueError, match=rf"it starts from {start}, which is recorded with other data"):
        execute.do(run)


def test_no_run_starts_from_an_adapter_of_another_seed_or_other_data(data):
    now, trained = data
    trained.append("none is interrupted")
    start, run = Run(find("table2/roberta-base/mnli/lora-r8"), 0), Run(find("table2/roberta-base/mrpc/lora-r8"), 3)
    execute.do(start)
    origin = start.adapter / ORIGIN_FILE
    for other in (Run(start.experiment, 1), replace(start)):
        identity_of_other = run_identity(start.experiment.settings, other.seed, {"train": "other"})
        origin.write_text(f"{other.record.stem}--{identity_of_other}")
        with pytest.raises(ValueError, match=rf"expected in {start.adapter} what {start} learnt, .*delete that folder"):
            execute.do(run)
    origin.write_text(f"{start.record.stem}--{run_identity(start.experiment.settings, 0, now)}")
    execute.do(run)


def test_a_record_does_not_answer_where_its_start_has_learnt_from_other_data_since(data, monkeypatch):
    now, trained = data
    trained.append("none is interrupted")
    start, run = Run(find("table2/roberta-base/mnli/lora-r8"), 0), Run(find("table2/roberta-base/mrpc/lora-r8"), 3)
    execute.do(run)
    assert records.read_record(run.record)["started_from"] == start.origin
    start.record.unlink()
    shutil.rmtree(start.adapter)
    others = {"mnli": {"train": "second", "validation": "same"}}
    monkeypatch.setattr(identity, "data_fingerprint", lambda job: others.get(job.settings.task, now))
    now["train"] = others["mnli"]["train"]  # what is measured
    execute.do(start)
    now["train"] = "first"
    number = len(trained)
    with pytest.raises(ValueError, match=rf"recorded as started from \S+, found {start.origin}; delete"):
        execute.do(run)
    run.record.unlink()
    execute.do(run)  # and it does not continue what began from the other
    assert trained[number] != trained[2] and len(trained) == number + 1


def test_a_start_that_is_damaged_says_what_to_delete(mnli_adapter):
    settings, _, model, folder = mnli_adapter("roberta-base")
    (folder / "adapter_config.json").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"or delete {folder}, and `reproduce.py run` makes it anew"):
        execute._carry_over(model, settings, folder)


# a real run


@pytest.fixture(scope="module")
def minilm_run(tmp_path_factory):
    """LoRA r=8 of MiniLM on 48 built-in paraphrases, two epochs: its record, its model, its folders."""
    if find_spec(MINILM_PACKAGE) is None:
        pytest.skip(f"needs MiniLM's weights: the package {MINILM_PACKAGE} of requirements.txt is not installed")
    folder, kept, load = tmp_path_factory.mktemp("minilm"), [], glue_data.load_glue

    def load_some(name, split, data_dir=None):
        return replace(whole := load(name, split, data_dir), examples=whole.examples[:60])

    def save_and_keep(model, adapter):
        kept.append(model)
        save_lora(model, adapter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RESULTS", folder / "results")
        patch.setattr(files, "CHECKPOINTS", folder / "checkpoints")
        patch.setattr(saved, "save_lora", save_and_keep)
        patch.setattr(glue_data, "load_glue", load_some)
        experiment = find(NAME)
        run = Run(replace(experiment, settings=replace(experiment.settings, **SMALL)), 0)
        record = execute.do(run, say=lambda _: None)
        again = execute.do(run, say=lambda _: None)
        lines = records.predictions_path(NAME, "quick", 0).read_text(encoding="utf-8").splitlines()
        splits = {split: load_some(record["settings"]["task"], split).examples for split in ("train", "validation")}
        adapter = run.adapter
    assert json.dumps(again) == json.dumps(record)
    assert len(kept) == 1
    return {
        "record": record, "model": kept[0], "adapter": adapter, "predictions": [json.loads(line) for line in lines],
        "splits": splits, "folder": folder,
    }  # fmt: skip


def test_a_real_run_counts_the_head_apart(minilm_run):
    parameters = minilm_run["record"]["parameters"]
    assert parameters["trainable"] == 6 * 2 * 8 * (384 + 384) == 73_728
    assert parameters["head"] == (384 * 384 + 384) + (2 * 384 + 2) == 148_610


def test_a_real_run_records_every_epoch_on_the_held_out_and_the_reported_split(minilm_run):
    record = minilm_run["record"]
    assert record["status"] == "finished"
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    for row in record["epochs"]:
        assert row["training_loss"] > 0
        for split, rows in ((HELD_OUT, 6), ("validation", 60)):
            assert row[split]["loss"] > 0
            assert sum(row[split]["predictions_per_class"].values()) == rows
            assert {"accuracy", "f1", "precision", "recall", "alarm"} <= set(row[split])
    reported, chosen = (record["selected_epoch"][rule] - 1 for rule in ("reported", "held_out"))
    assert record["scores"] == record["epochs"][reported]["validation"]
    assert record["honest_scores"]["accuracy"] == record["epochs"][chosen]["validation"]["accuracy"]
    assert record["scores"]["accuracy"] >= record["honest_scores"]["accuracy"]


def test_a_real_run_says_how_many_rows_it_had_and_how_many_were_cut(minilm_run):
    record, tokenizer = minilm_run["record"], load_tokenizer("minilm")
    assert record["rows"] == {"train": 48, "validation": 60, HELD_OUT: 6}
    assert record["subset"] == {"train": False, "validation": False}  # what the file is; `rows` says what was taken
    lengths = [len(tokenizer(*example.texts).input_ids) for example in minilm_run["splits"]["validation"]]
    assert record["truncated"]["validation"] == sum(length > SMALL["max_length"] for length in lengths) > 0
    assert set(record["data_fingerprint"]) == {"train", "validation", HELD_OUT}


def test_the_scores_of_a_real_run_follow_from_its_predictions(minilm_run):
    record, predictions = minilm_run["record"], minilm_run["predictions"]
    task = TASKS["paraphrase-builtin"]
    scores = glue_metrics.score(task, [p["prediction"] for p in predictions], [p["label"] for p in predictions])
    assert scores | {"loss": record["scores"]["loss"]} == record["scores"]
    assert [tuple(p["texts"]) for p in predictions] == [e.texts for e in minilm_run["splits"]["validation"]]


def test_in_a_real_run_the_backbone_keeps_every_bit_while_pooler_and_classifier_move(minilm_run):
    torch.manual_seed(0)
    fresh, trained = load_model("minilm", 2), minilm_run["model"]
    layers = {f"{name}.base_layer": name for name in lora_layers(trained)}
    now = {}
    for name, parameter in trained.named_parameters():
        module, _, last = name.rpartition(".")
        now[f"{layers.get(module, module)}.{last}"] = parameter
    changed = {n for n, p in fresh.named_parameters() if not torch.equal(p, now[n].cpu())}
    assert changed == set(head_parameters(fresh))


def test_the_adapter_of_a_real_run_is_saved_with_its_head_and_answers_as_the_run_did(minilm_run):
    fresh = load_model("minilm", 2)
    assert len(load_lora(fresh, minilm_run["adapter"])) == 12
    tokenizer, settings = load_tokenizer("minilm"), replace(GLUE, **SMALL)
    rows = glue_data.encode(minilm_run["splits"]["validation"], tokenizer, SMALL["max_length"]).rows
    answers, _ = classify(fresh, rows, lambda r: glue_data.collate(r, tokenizer.pad_token_id), settings)
    assert answers == [p["prediction"] for p in minilm_run["predictions"]]


def test_a_finished_run_leaves_no_checkpoint(minilm_run):
    assert not list((minilm_run["folder"] / "checkpoints").rglob("checkpoint-*"))
    assert not list((minilm_run["folder"] / "checkpoints").rglob("epoch-*.json"))
