"""The training loop: its loss, its optimizer, its schedule, its order of rows, and what a stop leaves behind."""

import json
import math
import os
import pickle
import random
import shutil
import signal
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2LMHeadModel

from adapter_files import load_lora, save_lora
from experiments.e2e import LORA
from experiments.settings import Job, Settings
from methods.catalogue import apply_method
from tasks.e2e.evaluation import validation_loss
from tasks.e2e.loss import completion_loss
from training import checkpoints, pretrain_corpus, pretrain_gpt2_mini, trainer
from training.batches import IGNORED, RowsByLength, pad_right
from training.checkpoints import SITTINGS_FILE, SIZES_FILE, TrainingInterrupted, newest_checkpoint
from training.optimizer import OfficialAdamW, first_not_finite, trained_state
from training.pretrain_gpt2_mini import BATCH, BLOCK
from training.quick_layers import use_quick_layers
from training.trainer import WEIGHTS_FILE, TrainingDiverged, train

SETTINGS = Settings(
    task="e2e",
    model="gpt2-mini",
    method="full",
    learning_rate=1e-3,
    epochs=2,
    batch_size=4,
    warmup_steps=3,
    keep="last",
)


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64} | changes
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **none))


def some_rows(number=37, seed=0):
    pick = random.Random(seed)
    rows = []
    for _ in range(number):
        context = [pick.randrange(1, 64) for _ in range(pick.randrange(3, 12))] + [0]
        completion = [pick.randrange(1, 64) for _ in range(pick.randrange(2, 9))] + [0]
        rows.append({"input_ids": context + completion, "labels": [IGNORED] * len(context) + completion})
    return rows


def run_training(folder, settings=SETTINGS, model=None, rows=None, loss=None, seed=0, schedule=None):
    model = model or tiny_model()
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        apply_method(model, settings)
    rows = some_rows() if rows is None else rows
    loss = loss or (lambda m, batch: completion_loss(m, batch, settings.label_smoothing))
    validate = lambda m, _: {"loss": completion_loss(m, pad_right(some_rows(8, seed=1))).item()}  # noqa: E731
    return model, train(model, rows, Job(settings, seed, folder), loss, validate, schedule=schedule)


def stop_at_call(number, loss=completion_loss):
    """`loss`, but its call of that number is followed by the signal that ends a sitting after the step."""
    calls = 0

    def stopping(model, batch):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    return stopping


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_the_plain_full_logits_computation(smoothing):
    model, batch = tiny_model(), pad_right(some_rows(8))
    logits = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    total, count = torch.zeros(()), 0
    for row in range(8):
        for t in range(batch["labels"].shape[1] - 1):
            token = batch["labels"][row, t + 1]
            if token != IGNORED:
                log_p = logits[row, t]
                total = total - (1 - smoothing) * log_p[token] - smoothing * log_p.mean()
                count += 1
    assert completion_loss(model, batch, smoothing).item() == pytest.approx((total / count).item(), abs=1e-5)


def test_gradients_equal_those_of_the_full_logits():
    model, batch = tiny_model(), pad_right(some_rows(8))
    completion_loss(model, batch, 0.1).backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1, ignore_index=IGNORED).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4)


def test_loss_covers_the_separators_position_and_the_end_token():
    model = tiny_model()
    row = {"input_ids": [5, 6, 0, 7, 8, 0], "labels": [IGNORED, IGNORED, IGNORED, 7, 8, 0]}
    losses = -model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
    by_hand = (losses[2, 7] + losses[3, 8] + losses[4, 0]) / 3
    assert completion_loss(model, pad_right([row])).item() == pytest.approx(by_hand.item(), abs=1e-5)
    without_end = (losses[2, 7] + losses[3, 8]) / 2
    assert abs(by_hand - without_end) > 1e-3  # the negative control: leaving the end token out is seen


def test_padding_and_row_order_do_not_change_the_loss():
    model, rows = tiny_model(), some_rows(2)
    alone = [completion_loss(model, pad_right([row])).item() for row in rows]
    weights = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    mean = sum(a * w for a, w in zip(alone, weights, strict=True)) / sum(weights)
    assert completion_loss(model, pad_right(rows)).item() == pytest.approx(mean, abs=1e-5)


def test_adamw_follows_the_official_formula():
    torch.manual_seed(0)
    gradients = [torch.randn(3, 5) * 1e-6 for _ in range(12)]  # small, so that epsilon matters
    start = torch.randn(3, 5)
    ours = torch.nn.Parameter(start.clone())
    optimizer = OfficialAdamW([ours], epsilon=1e-6, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
    plain = torch.nn.Parameter(start.clone())
    torchs = torch.optim.AdamW([plain], eps=1e-6, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
    expected, m, v = start.double(), torch.zeros(3, 5).double(), torch.zeros(3, 5).double()
    for t, gradient in enumerate(gradients, start=1):
        for p, o in ((ours, optimizer), (plain, torchs)):
            p.grad = gradient.clone()
            o.step()
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step_size = 1e-2 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        expected = expected - step_size * m / (v.sqrt() + 1e-6)
        expected = expected - 1e-2 * 0.01 * expected
    torch.testing.assert_close(ours.detach().double(), expected, atol=1e-5, rtol=0)
    assert (plain.detach().double() - expected).abs().max() > 1e-3  # torch's own epsilon gives another result


def test_a_pair_that_is_added_later_takes_the_steps_it_would_take_alone():
    torch.manual_seed(0)
    gradients = [torch.randn(2, 3, 5) * 1e-6 for _ in range(12)]  # small, so that epsilon matters
    old, late, alone = (torch.nn.Parameter(torch.randn(3, 5)) for _ in range(3))
    alone.data.copy_(late.data)
    optimizer = OfficialAdamW([old, late], epsilon=1e-6, lr=1e-2, weight_decay=0.01)
    its_own = OfficialAdamW([alone], epsilon=1e-6, lr=1e-2, weight_decay=0.01)
    for step, (first, second) in enumerate(gradients):
        old.grad = first
        if step >= 6:
            late.grad, alone.grad = second.clone(), second.clone()
            its_own.step()
        optimizer.step()
    assert torch.equal(late, alone)
    assert (optimizer.state[old]["step"], optimizer.state[late]["step"]) == (12, 6)


def rates_of(folder, settings, model=None):
    """The learning rate of every parameter by name, at every step; and the model."""
    seen, model = [], model or tiny_model()

    class Spy(OfficialAdamW):
        def step(self, closure=None):
            names = {p: name for name, p in model.named_parameters()}
            seen.append({names[p]: group["lr"] for group in self.param_groups for p in group["params"]})
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "OfficialAdamW", Spy)
        run_training(folder, settings, model)
    return seen, model


def test_with_lora_plus_b_learns_at_its_ratio_to_a_at_every_step(tmp_path):
    settings = replace(SETTINGS, **LORA, rank=2, b_learning_rate_ratio=16.0)
    rates, _ = rates_of(tmp_path / "plus", settings)
    plain, _ = rates_of(tmp_path / "plain", replace(settings, b_learning_rate_ratio=1.0))
    assert len(rates) == len(plain) == 20
    for plus, equal in zip(rates, plain, strict=True):
        assert len(plus) == 4  # A and B of two layers
        for name, rate in plus.items():
            assert rate == pytest.approx(equal[name] * (16 if name.endswith("lora_B") else 1))
    assert rates[3]["transformer.h.0.attn.c_attn.lora_A"] == settings.learning_rate


def test_the_rate_that_is_logged_is_that_of_the_settings_not_bs(tmp_path):
    settings = replace(SETTINGS, **LORA, rank=2, b_learning_rate_ratio=16.0)
    _, result = run_training(tmp_path, settings)
    assert max(entry["learning_rate"] for entry in result.history if "loss" in entry) == settings.learning_rate


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(("stabilised", "scaling"), [(False, 32 / 4), (True, 32 / 4**0.5)])
def test_rank_stabilised_lora_is_scaled_by_alpha_over_the_root_of_the_rank(stabilised, scaling, tmp_path):
    model = tiny_model()
    apply_method(model, replace(SETTINGS, **LORA, rank=4, rank_stabilised=stabilised))
    layer = model.transformer.h[0].attn.c_attn
    assert layer.scaling == scaling
    theirs = LoraConfig(r=4, lora_alpha=32, use_rslora=stabilised, target_modules=["c_attn"], fan_in_fan_out=True)
    assert get_peft_model(tiny_model(), theirs).base_model.transformer.h[0].attn.c_attn.scaling["default"] == scaling
    save_lora(model, tmp_path)
    loaded = tiny_model()
    load_lora(loaded, tmp_path)
    assert loaded.transformer.h[0].attn.c_attn.scaling == scaling


def test_rank_stabilised_stages_and_budgets_have_the_scale_of_their_whole_rank():
    stages, budget = {"rank_stages": (2, 8), "stage_trigger": "fixed"}, {"rank_budget": 17, "schedule_every": 5}
    for method, rank, own in (("sequential-lora", 8, stages), ("adaptive-lora", 4, budget)):
        model = tiny_model()
        apply_method(model, replace(SETTINGS, **LORA | own | {"method": method}, rank_stabilised=True))
        assert model.transformer.h[0].attn.c_attn.scaling == pytest.approx(32 / rank**0.5)


def test_learning_rate_warms_up_and_decays_linearly_to_zero(tmp_path):
    settings = replace(SETTINGS, epochs=6, warmup_steps=6, learning_rate=0.01)
    seen = []

    class Spy(OfficialAdamW):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    original, trainer.OfficialAdamW = trainer.OfficialAdamW, Spy
    try:
        run_training(tmp_path, settings)
    finally:
        trainer.OfficialAdamW = original
    assert len(seen) == 60  # 37 rows in batches of 4, six times
    assert seen[0] == 0.0
    assert seen[6] == pytest.approx(0.01)
    assert seen[33] == pytest.approx(0.01 / 2)
    assert seen[59] == pytest.approx(0.01 / 54)


def test_training_lowers_the_loss_and_reports_every_epoch(tmp_path):
    _, result = run_training(tmp_path, replace(SETTINGS, epochs=5, learning_rate=1e-2))
    losses = [h["eval_loss"] for h in result.history if "eval_loss" in h]
    train_losses = [h["loss"] for h in result.history if "loss" in h]
    assert len(losses) == 5
    assert train_losses[-1] < train_losses[0] - 0.2
    assert result.steps == result.kept_step == 50
    assert result.training_tokens > 0
    assert result.training_seconds > 0


def test_best_epoch_is_kept_when_asked_for(tmp_path):
    model = tiny_model()
    apply_method(model, SETTINGS)
    states, scores = [], iter([0.5, 0.2, 0.9])

    def validate(m, epoch):
        states.append({k: v.clone() for k, v in trained_state(m).items()})
        return {"loss": next(scores)}

    settings = replace(SETTINGS, epochs=3, keep="best-epoch")
    result = train(model, some_rows(), Job(settings, 0, tmp_path), completion_loss, validate)
    assert result.kept_step == 20
    kept = trained_state(model)
    assert all(torch.equal(kept[k], states[1][k]) for k in kept)
    assert any(not torch.equal(states[1][k], states[2][k]) for k in kept)


def test_rows_by_length_is_a_permutation_that_depends_on_seed_and_epoch():
    lengths = [random.Random(i).randrange(5, 60) for i in range(1003)]
    order = RowsByLength(lengths, 8, seed=1)
    first = list(order)
    assert sorted(first) == list(range(1003))
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    assert list(RowsByLength(lengths, 8, seed=2)) != first
    batches = [first[i : i + 8] for i in range(0, 1003, 8)]
    spread = sum(max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches) / len(batches)
    assert spread < 5  # random batches of eight would spread over about 42


@pytest.mark.parametrize(("method", "quick"), [("full", False), ("lora", False), ("lora", True)])
def test_a_stopped_run_continues_to_the_same_weights(tmp_path, method, quick):
    lora = {"rank": 2, **LORA} if method == "lora" else {}  # with its dropout: the random state is restored too
    settings = replace(SETTINGS, method=method, **{k: v for k, v in lora.items() if k != "method"})

    def sitting(folder, loss=None):
        model = tiny_model()
        apply_method(model, settings)
        if quick:
            use_quick_layers(model)
        return run_training(tmp_path / folder, settings, model, loss=loss)

    whole, _ = sitting("whole")
    smoothed = partial(completion_loss, label_smoothing=settings.label_smoothing)
    with pytest.raises(TrainingInterrupted, match="after step 13"):  # in the second epoch
        sitting("cut", stop_at_call(13, smoothed))
    again, result = sitting("cut")
    assert result.steps == 20
    for name, p in whole.named_parameters():
        assert torch.equal(p, dict(again.named_parameters())[name]), name


def test_a_stopped_run_goes_on_where_it_was_and_not_at_its_best_epoch(tmp_path):
    settings = replace(SETTINGS, epochs=3, keep="best-epoch")

    def sitting(folder, loss=completion_loss):
        model = tiny_model()
        apply_method(model, settings)
        return train(model, some_rows(), Job(settings, 0, folder), loss, lambda m, epoch: {"loss": float(epoch)})

    whole = sitting(tmp_path / "whole")
    with pytest.raises(TrainingInterrupted, match="after step 25"):
        sitting(tmp_path / "cut", stop_at_call(25))
    again = sitting(tmp_path / "cut")
    assert (again.steps, again.kept_step, again.training_tokens) == (30, 10, whole.training_tokens)
    assert (
        sitting(tmp_path / "cut").training_tokens == whole.training_tokens
    )  # as where what follows the training was cut


DAMAGES = {  # what is left of a file
    "a part": lambda content: content[:100],
    "a flipped bit": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "zeros": lambda content: bytes(len(content)),
    "something else": lambda content: b"{}",
    "nothing": None,
}


def damage(file, how):
    file.write_bytes(DAMAGES[how](file.read_bytes())) if DAMAGES[how] else file.unlink()


def outcome(model, result):
    """What two runs of the same settings have in common: the weights, and all of the result but time and memory."""
    return asdict(replace(result, training_seconds=0, peak_memory_gib=0)), trained_state(model)


def assert_same(one, other):
    assert one[0] == other[0]
    for name, weights in one[1].items():
        assert torch.equal(weights, other[1][name]), name


@pytest.mark.parametrize("step", [13, 15, 20])
def test_a_stopped_run_has_the_history_and_the_tokens_of_one_in_one_go(tmp_path, step):
    settings = replace(SETTINGS, epochs=15, label_smoothing=0.0)  # 150 steps, a log every three
    whole = outcome(*run_training(tmp_path / "whole", settings))
    with pytest.raises(TrainingInterrupted, match=f"after step {step}"):
        run_training(tmp_path / "cut", settings, loss=stop_at_call(step))
    assert_same(outcome(*run_training(tmp_path / "cut", settings)), whole)
    assert [entry["step"] for entry in whole[0]["history"] if "loss" in entry][3:7] == [10, 12, 15, 18]


SCORES = [0.2, 0.9, 0.8, 0.7]  # of four epochs, the first the best


def best_of(folder, loss=completion_loss):
    """A run that keeps its best epoch; each validation writes a file, as those of GLUE do."""
    model, settings = tiny_model(), replace(SETTINGS, epochs=4, keep="best-epoch")
    apply_method(model, settings)

    def validate(m, epoch):
        (folder / f"epoch-{epoch}.json").write_text(json.dumps(list(range(epoch, 99))))
        return {"loss": SCORES[epoch - 1]}

    return model, train(model, some_rows(), Job(settings, 0, folder), loss, validate)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The folder of a run that was stopped in its fourth epoch, with its first the best."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(TrainingInterrupted, match="after step 33"):
        best_of(folder, stop_at_call(33))
    shutil.copytree(folder / "checkpoint-33", folder / "checkpoint-33 (1)")  # as a drive does
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return outcome(*best_of(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", WEIGHTS_FILE, SITTINGS_FILE, SIZES_FILE])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(cut, tmp_path, name, how, caplog):
    shutil.copytree(cut, tmp_path / "cut")
    assert newest_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-33")
    damage(tmp_path / "cut" / "checkpoint-33" / name, how)
    assert newest_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-10")
    assert "checkpoint-33 is not whole" in caplog.text


class Trap:
    """A pickle that ends the test when it is opened."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def forge(checkpoint, name, content):
    """Another content of a file, as if it were the one that was saved."""
    (checkpoint / name).write_bytes(content)
    sizes = json.loads((checkpoint / SIZES_FILE).read_text())
    (checkpoint / SIZES_FILE).write_text(json.dumps(sizes | {name: checkpoints._content(checkpoint / name)}))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", WEIGHTS_FILE, SITTINGS_FILE])
def test_a_pickle_in_a_checkpoint_is_refused_unopened(cut, tmp_path, name):
    shutil.copytree(cut, tmp_path / "cut")
    torch.save(Trap(), tmp_path / "trap")
    forge(tmp_path / "cut" / "checkpoint-33", name, (tmp_path / "trap").read_bytes())
    with pytest.raises(ValueError, match=r"(numbers alone in|damaged).*checkpoint-33.*and an older checkpoint is"):
        best_of(tmp_path / "cut")


def test_a_checkpoints_list_of_files_leads_nowhere_else(cut, tmp_path):
    shutil.copytree(cut, tmp_path / "cut")
    (tmp_path / "other").write_bytes(b"")
    forge(tmp_path / "cut" / "checkpoint-33", "../../other", b"")
    assert newest_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-10")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", [f"checkpoint-10/{WEIGHTS_FILE}", "epoch-1.json"])
def test_a_checkpoint_whose_best_epoch_or_validation_is_not_whole_is_passed_over(cut, tmp_path, file, how):
    shutil.copytree(cut, tmp_path / "cut")
    damage(tmp_path / "cut" / file, how)
    assert newest_checkpoint(tmp_path / "cut") is None


@pytest.mark.parametrize("damaged", [["checkpoint-33"], ["checkpoint-10"], ["checkpoint-33", "checkpoint-10"]])
def test_a_run_that_continues_from_an_older_checkpoint_ends_as_one_in_one_go(cut, tmp_path, damaged, whole):
    shutil.copytree(cut, tmp_path / "cut")
    for checkpoint in damaged:
        damage(tmp_path / "cut" / checkpoint / WEIGHTS_FILE, "a flipped bit")
    assert_same(outcome(*best_of(tmp_path / "cut")), whole)  # tokens count once


def test_a_stopped_run_whose_folder_was_moved_still_has_its_best_epoch(cut, tmp_path, whole):
    shutil.copytree(cut, tmp_path / "there")
    cut.rename(cut.with_name("gone"))
    try:
        assert_same(outcome(*best_of(tmp_path / "there")), whole)
    finally:
        cut.with_name("gone").rename(cut)


def test_validations_later_than_the_checkpoint_are_forgotten_and_nothing_else(cut, tmp_path):
    shutil.copytree(cut, folder := tmp_path / "cut")
    shutil.rmtree(folder / "checkpoint-33")
    (folder / "notes.json").write_text("mine")
    files = []

    def look(model, batch):
        files.append(sorted(path.name for path in folder.glob("*.json")))
        return completion_loss(model, batch)

    best_of(folder, look)
    assert files[0] == ["epoch-1.json", "notes.json"]


def test_checkpoints_are_saved_by_the_clock_and_less_often_where_that_takes_long(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(checkpoints, "peak_memory_gib", lambda: 1.0)
    quiet = {"tokens": 0, "unlogged": lambda: None, "anywhere": lambda *flags: list(flags)}
    sitting = checkpoints.Sitting(SimpleNamespace(args=SimpleNamespace(output_dir=tmp_path), **quiet), None)
    state = SimpleNamespace(epoch=0.5, log_history=[], is_world_process_zero=True, global_step=7, best_global_step=None)
    (tmp_path / "checkpoint-7").mkdir()

    def asked_at(seconds):
        nonlocal now
        now = seconds
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        sitting.on_step_end(None, state, control)
        return control.should_save

    assert [asked_at(299.0), asked_at(301.0)] == [False, True]
    now += 60  # of saving
    sitting.on_save(None, state, None)
    assert [asked_at(361.0 + 1199), asked_at(361.0 + 1201)] == [False, True]
    now += 1
    sitting.on_save(None, state, None)
    assert [asked_at(1563.0 + 299), asked_at(1563.0 + 301)] == [False, True]


def test_the_peak_of_memory_is_that_of_the_sitting_that_took_most(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "peak_memory_gib", lambda: 3.0)
    with pytest.raises(TrainingInterrupted):
        run_training(tmp_path, loss=stop_at_call(13))
    monkeypatch.setattr(checkpoints, "peak_memory_gib", lambda: 2.0)
    _, result = run_training(tmp_path)
    assert result.peak_memory_gib == 3.0
    _, alone = run_training(tmp_path / "alone")
    assert alone.peak_memory_gib == 2.0


def test_checkpoints_hold_only_what_is_trained(tmp_path):
    from safetensors.torch import load_file

    run_training(tmp_path, replace(SETTINGS, method="lora", rank=2, **{k: v for k, v in LORA.items() if k != "method"}))
    saved = load_file(next(tmp_path.glob(f"checkpoint-*/{WEIGHTS_FILE}")))
    assert saved
    assert all("lora_" in name for name in saved)


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_good_state(tmp_path):
    calls = 0

    def breaking(m, batch):
        nonlocal calls
        calls += 1
        return completion_loss(m, batch) * (float("nan") if calls == 15 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"nan at step 15 of 20.*lower learning rate"):
        run_training(tmp_path, loss=breaking)
    from safetensors.torch import load_file

    kept = load_file(next(tmp_path.glob(f"checkpoint-10/{WEIGHTS_FILE}")))
    assert all(torch.isfinite(t).all() for t in kept.values())


def breaking_backward(at_call):
    """The loss, which stays finite, but the gradient of its call of that number is not a number."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        value = completion_loss(model, batch)
        if calls == at_call:
            value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_named_and_stops_before_its_step(tmp_path, value, max_grad_norm):
    model, steps = tiny_model(), count(1)
    broken = model.transformer.h[1].mlp.c_fc.weight
    broken.register_hook(lambda gradient: gradient * (value if next(steps) == 7 else 1.0))
    named = r"the gradient of transformer\.h\.1\.mlp\.c_fc\.weight is not finite at step 7 of 20; "
    with pytest.raises(TrainingDiverged, match=named):
        run_training(tmp_path, replace(SETTINGS, max_grad_norm=max_grad_norm), model)
    assert all(p.isfinite().all() for p in model.parameters())


def breaking_weights(at_call, unused=False):
    """The loss; at its call of that number a position's weights become infinite, the first or one that no row has."""
    calls = count(1)

    def loss(model, batch):
        if next(calls) == at_call:
            model.transformer.wpe.weight.data[-1 if unused else 0] = math.inf
        return completion_loss(model, batch)

    return loss


@pytest.mark.parametrize(("step", "kept"), [(10, "the one before training"), (20, "checkpoint-10")])
def test_broken_weights_that_no_loss_shows_are_neither_saved_nor_the_end_of_a_run(tmp_path, step, kept):
    named = rf"transformer\.wpe\.weight is not finite after step {step} of 20; .* is (.*/)?{kept}\. Try"
    with pytest.raises(TrainingDiverged, match=named):
        run_training(tmp_path, loss=breaking_weights(step, unused=True))
    assert not (tmp_path / f"checkpoint-{step}").exists()


def test_of_a_loss_that_is_not_finite_the_broken_weights_are_named(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"^transformer\.wpe\.weight is not finite after step 14 of 20; "):
        run_training(tmp_path, loss=breaking_weights(15))


def test_of_a_loss_that_is_not_finite_a_frozen_weight_is_named_too(tmp_path):
    model = tiny_model()
    model.transformer.ln_f.bias.data[3] = math.nan
    with pytest.raises(TrainingDiverged, match=r"^transformer\.ln_f\.bias is not finite after step 0 of 20; "):
        run_training(tmp_path, replace(SETTINGS, method="lora", rank=2, alpha=2.0, targets=("query",)), model)


def no_loss(*_):
    raise FloatingPointError("expected a finite loss on 8 rows, found nan")


@pytest.mark.parametrize(
    ("validate", "found"), [(no_loss, "finite loss on 8 rows, found nan"), (lambda *_: {"loss": math.inf}, "loss inf")]
)
def test_a_validation_that_is_not_finite_ends_a_run_as_diverged_with_its_step(tmp_path, validate, found):
    with pytest.raises(TrainingDiverged, match=f"{found} after step 10 of 20; .* is the one before training"):
        train(tiny_model(), some_rows(), Job(SETTINGS, 0, tmp_path), completion_loss, validate)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_schedules_validation_that_is_not_finite_ends_a_run_as_diverged_with_its_step(tmp_path):
    schedule = SimpleNamespace(rate_factors=lambda model: {}, after_step=no_loss)
    with pytest.raises(TrainingDiverged, match="finite loss on 8 rows, found nan after step 1 of 20; "):
        run_training(tmp_path, schedule=schedule)


def test_a_validation_loss_that_is_not_finite_is_refused():
    model = tiny_model()
    assert math.isfinite(validation_loss(model, some_rows(8), SETTINGS))
    model.transformer.wpe.weight.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="expected a finite loss on 8 rows, found nan"):
        validation_loss(model, some_rows(8), SETTINGS)


def test_pre_training_stops_at_the_step_whose_loss_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_gpt2_mini.shutil, "which", lambda _: None)  # compiling would take longer
    model = tiny_model(n_positions=BLOCK)
    model.transformer.wpe.weight.data[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan .* at step 1 of 3; .*checkpoint\.pt"):
        pretrain_gpt2_mini.train(model, np.ones(BATCH * BLOCK), steps=3, work=tmp_path)


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_pre_training_of_no_step_leaves_the_model_that_is_there(tmp_path, steps):
    with pytest.raises(ValueError, match=f"expected 2 steps or more, .*, found {steps}"):
        pretrain_gpt2_mini.pretrain(tmp_path, steps, tmp_path / "gpt2-mini")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"pickle"])
def test_a_damaged_file_of_pre_training_is_named_and_a_pickle_in_it_not_opened(tmp_path, content):
    if content == b"pickle":
        content = pickle.dumps(Trap(), protocol=2)
    for name in ("train.npy", "held_out.npy", "checkpoint.pt", "model.safetensors", "vocab.json"):
        (tmp_path / name).write_bytes(content)
    model, tokens = pretrain_gpt2_mini.new_model(end=0), np.zeros(BATCH * BLOCK, dtype=np.int64)
    for path, read in {
        "train.npy": lambda: pretrain_corpus.prepare(tmp_path, tmp_path, None),
        "checkpoint.pt": lambda: pretrain_gpt2_mini.train(model, tokens, 2, tmp_path),
        "model.safetensors": lambda: pretrain_gpt2_mini.load_weights(model, tmp_path),
        "": lambda: pretrain_gpt2_mini.generations(model, tmp_path),
    }.items():
        with pytest.raises(ValueError, match=rf"in {tmp_path / path}, found .*; delete it to start anew"):
            read()


def test_large_numbers_whose_norm_overflows_are_finite():
    large, broken = torch.full((3,), 3e38), torch.tensor([0.0, -math.inf])
    assert first_not_finite({}) is first_not_finite({"large": large, "zero": torch.zeros(2)}) is None
    assert first_not_finite({"large": large, "broken": broken, "other": broken}) == "broken"


def test_the_state_that_is_named_is_the_newest_also_where_an_earlier_epoch_was_better(tmp_path):
    model, scores = tiny_model(), iter([0.2, 0.9])
    apply_method(model, SETTINGS)
    settings = replace(SETTINGS, epochs=3, keep="best-epoch")
    with pytest.raises(TrainingDiverged, match=r"is \S*checkpoint-20\. Try"):
        train(model, some_rows(), Job(settings, 0, tmp_path), breaking_backward(25), lambda *_: {"loss": next(scores)})
    assert (tmp_path / "checkpoint-10").exists()  # the better one


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run_training(tmp_path)
    with pytest.raises(ValueError, match="of another run"):
        run_training(
            tmp_path,
            replace(SETTINGS, epochs=3, method="lora", rank=2, **{k: v for k, v in LORA.items() if k != "method"}),
        )


def test_a_disk_that_is_full_while_a_checkpoint_is_written_is_not_said_to_be_a_damaged_file(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("training.trainer.save_file", full)
    with pytest.raises(SafetensorError, match="No space left"):
        run_training(tmp_path)


@pytest.mark.parametrize("keep", ["last", "best-epoch"])
def test_the_newest_checkpoint_is_known_by_its_step_and_the_one_before_goes_only_when_it_is_whole(
    tmp_path, monkeypatch, keep
):
    whole_when, files_of = [], checkpoints._files
    settings = replace(SETTINGS, keep=keep)

    def look(checkpoint):  # when the newest is listed, the ones before are there still
        whole_when.append(len(list(tmp_path.glob("checkpoint-*"))))
        return files_of(checkpoint)

    with pytest.raises(TrainingInterrupted):
        run_training(tmp_path, settings, loss=stop_at_call(13))
    for place in tmp_path.glob("checkpoint-*"):
        os.utime(place, (2e9, 2e9))  # a clock that was set back since
    monkeypatch.setattr(checkpoints, "_files", look)
    with pytest.raises(TrainingInterrupted):
        run_training(tmp_path, settings, loss=stop_at_call(3))
    steps = sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*"))
    assert steps == ([13, 16] if keep == "last" else [10, 16]) and max(whole_when) == 3
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")


def test_a_shell_of_a_checkpoint_is_none(cut, tmp_path):
    shutil.copytree(cut, tmp_path / "cut")
    newest = tmp_path / "cut" / "checkpoint-33"
    for file in newest.iterdir():
        if file.name != SITTINGS_FILE:
            file.unlink()
    (newest / SIZES_FILE).write_text(json.dumps({SITTINGS_FILE: checkpoints._content(newest / SITTINGS_FILE)}))
    assert newest_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-10")


def test_pre_training_is_known_by_its_texts_steps_and_start(tmp_path):
    texts, start = tmp_path / "texts", tmp_path / "start"
    for folder in (texts, start):
        folder.mkdir()
    for name in ("model.safetensors", "vocab.json", "merges.txt"):
        (start / name).write_text("first")
    (texts / "a.txt").write_text("one")
    known = [pretrain_corpus.corpus_identity(texts, 10, None)]
    known += [pretrain_corpus.corpus_identity(texts, 20, None), pretrain_corpus.corpus_identity(texts, 10, start)]
    (start / "model.safetensors").write_text("second")
    known += [pretrain_corpus.corpus_identity(texts, 10, start)]
    (texts / "a.txt").write_text("two")
    known += [pretrain_corpus.corpus_identity(texts, 10, None)]
    assert len(set(known)) == 5 and pretrain_corpus.corpus_identity(texts, 10, None) == known[-1]


def test_a_corpus_without_a_batch_is_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_gpt2_mini, "CHECKPOINTS", tmp_path / "checkpoints")
    (tmp_path / "a.txt").write_text("A few words.\n\nAnd more.\n")
    with pytest.raises(ValueError, match="expected 4,096 training tokens, a batch, and 256 held-out ones, found"):
        pretrain_gpt2_mini.pretrain(tmp_path, 10, tmp_path / "model")
    assert not (tmp_path / "model").exists()
