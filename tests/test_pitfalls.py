"""The mistakes of earlier reproductions: each is one setting, which does what it says and is off elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import files
from experiments.catalogue import EXPERIMENTS, find, select
from experiments.settings import SCALES, Job, Settings
from families import head_parameters
from lora import lora_layers
from methods.catalogue import apply_method, count_trained, finish
from models import load_tokenizer
from publish.tables import as_text, table
from runs import e2e as e2e_run
from runs import glue as glue_run
from synthetic_records import write_e2e, write_glue
from tasks.e2e import beam_search, evaluation
from tasks.e2e import data as e2e_data
from tasks.e2e.beam_search import DecodingSettings, Generation
from tasks.e2e.loss import completion_loss
from tasks.glue import data as glue_data
from training import trainer
from training.batches import IGNORED, pad_right
from training.trainer import train

PITFALLS = {name: e for name, e in EXPERIMENTS.items() if e.table == "pitfalls"}
BOTH = {
    "correct", "full-correct", "transposed-init", "constant-learning-rate", "query-key", "padded", "alpha-equals-rank",
    "learning-rate-of-full", "full-learning-rate-of-lora",
}  # fmt: skip
E2E_ONLY = {
    "prompt-loss", "packed-c-attn", "frozen-new-tokens", "untrained-end", "single-reference", "capped-decoding",
    "greedy",
}  # fmt: skip
ROWS = {"e2e": BOTH | E2E_ONLY, "mrpc": BOTH | {"frozen-head"}}
PLACES = {  # task -> scale -> base and task in the name
    "e2e": {"quick": "gpt2-mini/e2e-builtin", "cpu": "gpt2-mini", "paper": "gpt2-medium"},
    "mrpc": {"quick": "minilm/paraphrase-builtin", "cpu": "minilm/mrpc", "paper": "roberta-base/mrpc"},
}
THIRDS = ("query", "key", "value")
END = 0  # gpt2-mini's <|endoftext|>


class Stop(Exception):
    """What a spy raises when it has seen enough."""


def settings_of(row: str, part: str, scale: str) -> Settings:
    return find(f"pitfalls/{PLACES[part][scale]}/{row}").settings


def quick(row: str, part: str = "e2e", **changes) -> Settings:
    return replace(settings_of(row, part, "quick"), **changes)


def tiny_gpt2(settings: Settings) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=8192, n_positions=256, n_embd=64, n_layer=1, n_head=2, attn_pdrop=0.0,
                        embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=END, eos_token_id=END)  # fmt: skip
    model = GPT2LMHeadModel(config)
    apply_method(model, settings)
    return model


def tiny_bert(settings: Settings) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(config)
    apply_method(model, settings)
    return model


def tiny(part: str, row: str):
    settings = quick(row, part)
    return (tiny_gpt2 if part == "e2e" else tiny_bert)(settings)


def few_rows(job: Job) -> tuple[e2e_run.Splits, dict[str, str]]:
    return {split: e2e_data.load_builtin(split)[:24] for split in ("train", "dev", "test")}, {}


@pytest.fixture
def e2e_training(monkeypatch, tmp_path):
    """row -> what a run of it gives to the training loop, and the rows by which its dev loss is measured."""
    monkeypatch.setattr(e2e_run, "load_splits", few_rows)
    monkeypatch.setattr(e2e_run, "validation_loss", lambda _, rows, settings: rows)

    def given_by(row: str) -> dict:
        given = {}

        def spy(model, rows, *_, validate, collate, **__):
            given.update(rows=rows, collate=collate, dev=validate(model, 1)["loss"])
            raise Stop

        monkeypatch.setattr(e2e_run, "train", spy)
        job = Job(quick(row), 0, tmp_path)
        with pytest.raises(Stop):
            e2e_run.train_and_score(tiny_gpt2(job.settings), load_tokenizer("gpt2-mini"), job, lambda _: None)
        return given

    return given_by


# declarations


def test_every_mistake_of_the_list_is_declared_for_its_tasks_at_every_scale():
    expected = {(f"pitfalls/{place}/{row}", scale) for part, places in PLACES.items()
                for scale, place in places.items() for row in ROWS[part]}  # fmt: skip
    expected.add(("pitfalls/roberta-base/mrpc/few-epochs", "paper"))  # at the other scales all have few
    expected |= {(f"pitfalls/smollm2-135m/{row}", "cpu") for row in ROWS["e2e"] - {"packed-c-attn"}}  # it has no c_attn
    assert {(name, experiment.scale) for name, experiment in PITFALLS.items()} == expected


def test_a_mistake_differs_from_its_correct_run_in_exactly_one_setting():
    for name, experiment in PITFALLS.items():
        assert (experiment.against is None) == name.endswith("correct"), name
        if experiment.against:
            ours, correct = (vars(e.settings) for e in (experiment, find(experiment.against)))
            assert len([key for key in ours if ours[key] != correct[key]]) == 1, name


def test_no_other_experiment_makes_one_of_the_mistakes():
    right = {
        "train_head": True, "prompt_loss": False, "end_loss": True, "new_tokens": False, "transposed_init": False,
        "packed_pair": False, "learning_rate_schedule": "linear", "single_reference": False, "pad_to_maximum": False,
        "max_new_tokens": 64,
    }  # fmt: skip
    for name, experiment in EXPERIMENTS.items():
        if name not in PITFALLS or experiment.against is None:
            settings = vars(experiment.settings)
            assert {key: settings[key] for key in right} == right, name


def test_the_correct_e2e_run_is_that_of_table_3_and_at_cpu_on_10_000_of_its_rows():
    for row, correct in (("lora-r4", "correct"), ("full", "full-correct")):
        assert settings_of(correct, "e2e", "paper") == find(f"table3/gpt2-medium/{row}").settings
        table3 = find(f"table3/gpt2-mini/{row}").settings
        assert settings_of(correct, "e2e", "cpu") == replace(table3, train_rows=10_000)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("part", ["e2e", "mrpc"])
def test_each_method_gets_the_learning_rate_of_the_other(part, scale):
    def rate(row: str) -> float:
        return settings_of(row, part, scale).learning_rate

    assert rate("learning-rate-of-full") == rate("full-correct")
    assert rate("full-learning-rate-of-lora") == rate("correct")
    assert rate("full-correct") < rate("correct")


# what is trained


def test_a_frozen_head_is_neither_trained_nor_counted():
    correct, frozen = tiny("mrpc", "correct"), tiny("mrpc", "frozen-head")
    assert all(p.requires_grad for p in head_parameters(correct).values())
    assert not any(p.requires_grad for p in head_parameters(frozen).values())
    pairs, head, total = count_trained(correct)
    assert head > 0
    assert count_trained(frozen) == (pairs, 0, total)


def moved_thirds(row: str) -> set[str]:
    """Which thirds of c_attn the first gradient step on B moves."""
    model = tiny_gpt2(quick(row))
    before = [layer.weight.detach().clone() for layer in lora_layers(model).values()]
    ids = torch.randint(1, 8192, (2, 9))
    completion_loss(model, {"input_ids": ids, "labels": ids}).backward()
    for layer in lora_layers(model).values():
        layer.lora_B.data -= layer.lora_B.grad
    finish(model)
    assert lora_layers(model) == {}
    moved = [
        (third, not torch.equal(old, new))
        for weight, block in zip(before, model.transformer.h, strict=True)
        for third, old, new in zip(THIRDS, weight.chunk(3), block.attn.c_attn.weight.T.chunk(3), strict=True)
    ]
    return {third for third, has_moved in moved if has_moved}


def test_query_and_key_move_instead_of_query_and_value():
    assert moved_thirds("correct") == {"query", "value"}
    assert moved_thirds("query-key") == {"query", "key"}
    layers = lora_layers(tiny("mrpc", "query-key"))
    assert {name.split(".")[-1] for name in layers} == {"query", "key"}


def test_one_pair_over_c_attn_moves_the_key_too_with_as_many_parameters():
    assert moved_thirds("packed-c-attn") == set(THIRDS)
    assert count_trained(tiny("e2e", "packed-c-attn")) == count_trained(tiny("e2e", "correct"))
    (layer,) = lora_layers(tiny("e2e", "packed-c-attn")).values()
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((4, 64), (3 * 64, 4))
    assert layer.scaling == 8


@pytest.mark.parametrize(("part", "rank"), [("e2e", 4), ("mrpc", 8)])
def test_a_transposed_a_has_the_rank_as_its_fan_in(part, rank):
    for row, fan_in in (("correct", 64), ("transposed-init", rank)):
        for layer in lora_layers(tiny(part, row)).values():
            assert layer.lora_A.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.1)
            assert layer.lora_A.abs().max().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.05)
            assert not layer.lora_B.any()


@pytest.mark.parametrize(("part", "scale"), [("e2e", 8), ("mrpc", 2)])
def test_alpha_equal_to_the_rank_scales_the_update_by_one(part, scale):
    for row, expected in (("correct", scale), ("alpha-equals-rank", 1)):
        assert {layer.scaling for layer in lora_layers(tiny(part, row)).values()} == {expected}


@pytest.mark.parametrize("part", ["e2e", "mrpc"])
def test_a_constant_learning_rate_neither_warms_up_nor_decays(part, tmp_path, monkeypatch):
    seen = []

    class Spy(trainer.OfficialAdamW):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(trainer, "OfficialAdamW", Spy)
    rows = [{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}] * 16
    rates = {}
    for row in ("correct", "constant-learning-rate"):
        settings = quick(row, part, batch_size=2, epochs=1, warmup_steps=3, keep="last")
        folder, seen[:] = tmp_path / row, []
        train(tiny_gpt2(quick(row)), rows, Job(settings, 0, folder), completion_loss, lambda *_: {"loss": 0.0})
        rates[row] = [rate / settings.learning_rate for rate in seen]
    assert rates["correct"] == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])
    assert rates["constant-learning-rate"] == [1] * 8


# what carries a loss


def test_with_the_prompt_in_the_loss_every_token_is_a_label(e2e_training):
    correct, mistaken = e2e_training("correct")["rows"], e2e_training("prompt-loss")["rows"]
    assert [row["input_ids"] for row in mistaken] == [row["input_ids"] for row in correct]
    assert all(row["labels"] == row["input_ids"] for row in mistaken)
    for row in correct:
        separator = row["input_ids"].index(END)
        assert row["labels"] == [IGNORED] * (separator + 1) + row["input_ids"][separator + 1 :]


def test_an_untrained_end_is_read_but_is_no_label(e2e_training):
    correct, mistaken = e2e_training("correct")["rows"], e2e_training("untrained-end")["rows"]
    assert [row["input_ids"] for row in mistaken] == [row["input_ids"] for row in correct]
    for ours, right in zip(mistaken, correct, strict=True):
        assert right["labels"][-1] == right["input_ids"][-1] == END
        assert ours["labels"] == [*right["labels"][:-1], IGNORED]


@pytest.mark.parametrize("row", ["prompt-loss", "untrained-end"])
def test_the_dev_loss_is_of_the_correct_labels_whatever_is_trained_on(e2e_training, row):
    given = e2e_training(row)
    assert given["dev"] == e2e_training("correct")["dev"]
    assert given["rows"] != e2e_training("correct")["rows"]


# new tokens


@pytest.mark.parametrize(("row", "moves"), [("frozen-new-tokens", False), ("full-correct", True)])
def test_new_tokens_frame_the_context_and_their_rows_are_trained_only_in_full_fine_tuning(
    row, moves, tmp_path, monkeypatch
):
    settings = quick(row, new_tokens=True, warmup_steps=0)
    seen, inner = {}, e2e_run.train

    def train_spy(model, rows, *others, **more):
        embeddings = model.transformer.wte.weight
        seen.update(rows=rows, before=embeddings.detach().clone(), trained=embeddings.requires_grad)
        return inner(model, rows, *others, **more)

    def search_spy(model, prompts, ends, _):
        seen.update(prompts=prompts, ends=ends)
        raise Stop

    monkeypatch.setattr(e2e_run, "load_splits", few_rows)
    monkeypatch.setattr(e2e_run, "train", train_spy)
    monkeypatch.setattr(beam_search, "beam_search", search_spy)
    model, tokenizer = tiny_gpt2(settings), load_tokenizer("gpt2-mini")
    with pytest.raises(Stop):
        e2e_run.train_and_score(model, tokenizer, Job(settings, 0, tmp_path), lambda _: None)
    before, after, new = seen["before"], model.transformer.wte.weight, slice(8192, None)
    assert after.shape == (8192 + 2, 64)
    assert model.lm_head.weight is after
    assert before[new].std().item() == pytest.approx(0.02, rel=0.3)
    assert seen["trained"] == moves
    assert [not torch.equal(a, b) for a, b in zip(after[new], before[new], strict=True)] == [moves, moves]
    mr, text = tokenizer.convert_tokens_to_ids(["<MR>", "<TEXT>"])
    assert {mr, text} == {8192, 8193}
    for row in seen["rows"]:
        ids, labels = row["input_ids"], row["labels"]
        assert (ids[0], ids[-1], labels[-1]) == (mr, END, END)
        assert [ids.count(token) for token in (mr, text, END)] == [1, 1, 1]
        assert labels.index(ids[ids.index(text) + 1]) == ids.index(text) + 1  # the separator's is the first prediction
    assert all((prompt[0], prompt[-1]) == (mr, text) for prompt in seen["prompts"])
    assert END in seen["ends"] and text not in seen["ends"]


def test_the_correct_run_has_no_new_token(e2e_training):
    for row in e2e_training("correct")["rows"]:
        assert row["input_ids"].count(END) == 2
        assert max(row["input_ids"]) < 8192


# scoring


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """row -> the references that an evaluation as the row says has, and the settings of its search."""
    rows = e2e_data.load_builtin("test")[:24]

    def seen_by(row: str) -> tuple[list[list[str]], DecodingSettings]:
        seen = {}

        def generate(model, tokenizer, contexts, decoding):
            seen["decoding"] = decoding
            return [Generation("Blue Spice .", 3, True)] * len(contexts)

        def score(texts, references):
            seen["references"] = references
            return {"BLEU": 0.0, "ROUGE_L": 0.0}

        monkeypatch.setattr(e2e_run, "finish", lambda model: None)
        monkeypatch.setattr(e2e_run, "generate", generate)
        monkeypatch.setattr(evaluation.e2e_metrics, "score", score)
        monkeypatch.setattr(evaluation.e2e_metrics, "course_score", score)
        e2e_run._decode_and_score(tiny_gpt2(quick(row)), None, rows, Job(quick(row), 0, tmp_path))
        return seen["references"], seen["decoding"]

    return e2e_data.group_by_context(rows), seen_by


def test_a_single_reference_is_the_first_of_each_input(scored):
    inputs, seen_by = scored
    assert any(len(item.references) > 1 for item in inputs)
    assert seen_by("correct")[0] == [item.references for item in inputs]
    assert seen_by("single-reference")[0] == [[item.references[0]] for item in inputs]


@pytest.mark.parametrize(("row", "changed"), [("capped-decoding", {"max_new_tokens": 32}), ("greedy", {"beams": 1})])
def test_half_as_many_new_tokens_or_a_single_beam_reaches_the_search(scored, row, changed):
    _, seen_by = scored
    correct = seen_by("correct")[1]
    assert (correct.beams, correct.max_new_tokens) == (10, 64)
    assert seen_by(row)[1] == replace(correct, **changed)


# padding


def test_e2e_is_padded_to_the_models_positions_and_else_to_the_longest_row(e2e_training):
    for row, length in (("correct", None), ("padded", 256)):
        given = e2e_training(row)
        batch = given["collate"](given["rows"][:4])
        assert batch["input_ids"].shape == (4, length or max(len(r["input_ids"]) for r in given["rows"][:4]))
        assert batch["labels"].shape == batch["input_ids"].shape


def test_padding_changes_neither_the_loss_nor_a_gradient(tiny_gpt2):
    rows = [{"input_ids": [5, 6, 0, 7, 0], "labels": [IGNORED] * 3 + [7, 0]},
            {"input_ids": [8, 0, 9, 0], "labels": [IGNORED] * 2 + [9, 0]}]  # fmt: skip
    outcomes = []
    for pad_to in (None, 60):
        batch = pad_right(rows, pad_to)
        assert batch["input_ids"].shape == (2, pad_to or 5)
        tiny_gpt2.zero_grad()
        loss = completion_loss(tiny_gpt2, batch)
        loss.backward()
        outcomes.append((loss.item(), [p.grad.clone() for p in tiny_gpt2.parameters()]))
    (short, gradients), (long, padded) = outcomes
    assert long == pytest.approx(short, abs=1e-6)
    for one, other in zip(gradients, padded, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)


def test_glue_is_padded_to_max_length_and_else_to_the_longest_row(tmp_path, monkeypatch):
    def spy(model, rows, *_, collate, **__):
        raise Stop(collate(rows[:4])["input_ids"].shape, max(len(row["input_ids"]) for row in rows[:4]))

    monkeypatch.setattr(glue_run, "train", spy)
    examples = glue_data.load_glue("paraphrase-builtin", "train").examples[:40]
    split = glue_data.GlueSplit(examples, subset=True)
    monkeypatch.setattr(glue_run.glue_data, "load_glue", lambda *_: split)
    shapes = {}
    for row in ("correct", "padded"):
        with pytest.raises(Stop) as stopped:
            glue_run.train_and_score(None, load_tokenizer("minilm"), Job(quick(row, "mrpc"), 0, tmp_path), None)
        shapes[row], longest = stopped.value.args
    assert longest < 64
    assert shapes == {"correct": (4, longest), "padded": (4, 64)}


# the table


def test_the_table_says_what_each_mistake_costs_in_score_and_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    write_e2e("pitfalls/gpt2-mini/correct", 0, 0.60, training_seconds=120.0)
    write_e2e("pitfalls/gpt2-mini/correct", 1, 0.62)
    write_e2e("pitfalls/gpt2-mini/prompt-loss", 0, 0.55, training_seconds=180.0)
    write_e2e("pitfalls/gpt2-mini/full-learning-rate-of-lora", 0, 0.30)
    write_glue("pitfalls/minilm/mrpc/correct", 0, [0.88], [0.88])
    write_glue("pitfalls/minilm/mrpc/padded", 0, [0.885], [0.885], training_seconds=120.0)
    frame = table(select("pitfalls", "cpu"))
    rows = frame.set_index("experiment").to_dict("index")
    assert list(rows) == [name for name, e in PITFALLS.items() if e.scale == "cpu"]
    prompt, padded = rows["pitfalls/gpt2-mini/prompt-loss"], rows["pitfalls/minilm/mrpc/padded"]
    assert (prompt["changed"], padded["changed"]) == ("prompt_loss=True", "pad_to_maximum=True")
    assert prompt["difference"] == pytest.approx(-5)  # at the same seed
    assert padded["difference"] == pytest.approx(0.5)
    assert (prompt["training minutes"], padded["training minutes"]) == (3, 2)
    assert rows["pitfalls/gpt2-mini/full-learning-rate-of-lora"]["difference"] is None  # its correct run is missing
    text = as_text(frame, "pitfalls", "cpu")
    assert "-5.00" in text and "+0.50" in text
    assert "run pitfalls/gpt2-mini/full-correct --seed 0" in text
    assert "run pitfalls/gpt2-mini/prompt-loss" not in text
