"""A batch over many adapters answers each row as that row's adapter alone would, whatever is beside it."""

from __future__ import annotations

import copy
import gc
import json
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapter_files import load_lora, save_lora
from families import FAMILIES, head_parameters
from lora import LoRAConfig, add_lora, count_parameters, lora_layers, require_plain
from serving.adapters import AdapterBank
from serving.engines import export_for_engines
from tasks.e2e.beam_search import DecodingSettings, beam_search, generate
from test_beam_search import Letters
from tiny_models import LANGUAGE_MODELS, TOKENS, WORDS, tiny

ENCODERS = [family for family in FAMILIES if family not in LANGUAGE_MODELS]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
KINDS = {  # adapters that have nothing in common but their base
    "first": LoRAConfig(2, 4.0),
    "wide": LoRAConfig(5, 32.0, 0.1, ("query", "key", "value", "output")),
    "mlp": LoRAConfig(1, 3.0, 0.0, ("mlp_in", "mlp_out")),
    "all of it": LoRAConfig(3, 6.0, 0.0, ("value", "key", "mlp_out")),
}
NAMES = ["first", None, "wide", "mlp", "wide", "all of it", None]


def save(folder: Path, model: nn.Module, config: LoRAConfig, classes: int | None = None) -> Path:
    """The folder of an adapter of this model with random pairs and, of an encoder, a random head for the classes."""
    model = copy.deepcopy(model)
    torch.manual_seed(60 + len(folder.name) + config.rank)  # the same wherever the folder is; tame in bfloat16
    if classes and (last := [m for m in model.modules() if isinstance(m, nn.Linear)][-1]):
        last.weight = nn.Parameter(torch.empty(classes, last.in_features))
        last.bias = nn.Parameter(torch.empty(classes))
    add_lora(model, config)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3)
    for parameter in head_parameters(model).values() if classes else ():
        nn.init.normal_(parameter.requires_grad_(True), std=0.5)
    save_lora(model, folder)
    return folder


def with_bank(tmp_path: Path, family: str, **changes) -> tuple[nn.Module, AdapterBank, nn.Module]:
    """The base, its bank with an adapter of every kind, and a copy of the base that has none."""
    model = tiny(family, **changes)
    plain, bank = copy.deepcopy(model), AdapterBank(model)
    for classes, (name, config) in enumerate(KINDS.items(), 1):
        bank.add(name, save(tmp_path / name, plain, config, classes if family in ENCODERS else None))
    return model, bank, plain


def alone(tmp_path: Path, plain: nn.Module, name: str | None, classes: int | None = None) -> nn.Module:
    """The base with one adapter as `load_lora` puts it on; its head has so many classes."""
    model = copy.deepcopy(plain)
    if name is None:
        return model
    if classes:
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        last.weight, last.bias = (
            nn.Parameter(torch.empty(classes, last.in_features)),
            nn.Parameter(torch.empty(classes)),
        )
        model.config.num_labels = model.num_labels = classes
    load_lora(model, tmp_path / name)
    return model.eval()


def padded(rows: int, side: str) -> dict[str, Tensor]:
    """Rows of random words, of lengths from 3 to 8, padded on one side."""
    torch.manual_seed(7)
    lengths = torch.arange(rows) % 6 + 3
    mask = torch.arange(8) < lengths[:, None]
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": torch.randint(3, WORDS, (rows, 8)) * mask, "attention_mask": mask.long()}


def row(batch: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    return {key: value[place : place + 1] for key, value in batch.items()}


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=1e-5)


# Each row as its adapter alone ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_each_row_of_a_mixed_batch_has_the_logits_of_its_adapter_alone(tmp_path, family, side):
    model, bank, plain = with_bank(tmp_path, family)
    batch = padded(len(NAMES), side)
    with bank.rows(NAMES):
        mixed = model(**batch).logits
    for place, name in enumerate(NAMES):
        mask = batch["attention_mask"][place].bool()
        want = alone(tmp_path, plain, name)(**row(batch, place)).logits[0]
        assert close(mixed[place][mask], want[mask])
        assert name is None or not torch.allclose(want[mask], plain(**row(batch, place)).logits[0][mask], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_each_row_is_classified_by_the_head_of_its_own_task(tmp_path, family):
    _, bank, plain = with_bank(tmp_path, family)
    batch = padded(len(NAMES), "right")
    logits = bank.classify(NAMES, batch)
    classes = {name: number for number, name in enumerate(KINDS, 1)}
    for place, name in enumerate(NAMES):
        want = alone(tmp_path, plain, name, classes.get(name))(**row(batch, place)).logits[0]
        assert len(want) == classes.get(name, 2) and close(logits[place], want)


@torch.no_grad()
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_precision_is_that_of_the_base_as_with_one_adapter(tmp_path, family):
    model, bank, plain = with_bank(tmp_path, family)
    model.bfloat16()
    plain.bfloat16()
    with bank.rows(["first", "wide"]):
        mixed = model(TOKENS).logits
    for place, names in enumerate((("first", "wide"), ("wide", "first"))):
        own, other = (alone(tmp_path, plain, name)(TOKENS[place : place + 1]).logits[0] for name in names)
        assert mixed.dtype == torch.bfloat16 and torch.allclose(mixed[place], own, atol=0.25)  # processors round apart
        assert not torch.allclose(mixed[place], other, atol=0.5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_heads_follow_a_model_that_is_cast_when_its_adapters_are_there(tmp_path, kind):
    model, bank, _ = with_bank(tmp_path, "roberta")
    before = bank.classify(NAMES, padded(len(NAMES), "right"))
    model.to(kind)
    after = bank.classify(NAMES, padded(len(NAMES), "right"))
    assert {row.dtype for row in after} == {kind}
    assert all(torch.allclose(new.float(), old, atol=0.2) for new, old in zip(after, before, strict=True))


@torch.no_grad()
def test_heads_of_one_size_need_no_classify_and_others_do(tmp_path):
    model, bank, plain = with_bank(tmp_path, "roberta")
    bank.add("also two", save(tmp_path / "also two", plain, LoRAConfig(2), classes=2))
    batch = padded(3, "right")
    with bank.rows(["also two", None, "wide"]):
        logits = model(**batch).logits
    assert all(map(close, logits, bank.classify(["also two", None, "wide"], batch)))
    with bank.rows(["first", None, "wide"]), pytest.raises(ValueError, match=r"found \[1, 2\] classes; bank.classify"):
        model(**batch)


def test_classify_leaves_dropout_as_it_was_and_does_without(tmp_path):
    model, bank, _ = with_bank(tmp_path, "bert")
    want = bank.classify(NAMES, padded(len(NAMES), "right"))
    model.train()
    again = bank.classify(NAMES, padded(len(NAMES), "right"))
    assert model.training and all(map(torch.equal, want, again))


# PEFT's folders ---------------------------------------------------------------------------------------------------


def save_peft(folder: Path, plain: nn.Module, **config) -> Path:
    """A folder that PEFT trained: random pairs on whatever the settings say."""
    torch.manual_seed(3)
    model = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


PEFTS = {  # what load_lora does not take, for one pair has one rank there
    "all of c_attn": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "several ranks": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True,
                               "rank_pattern": {"c_attn": 6, r"h\.1\.mlp\.c_proj": 1},
                               "alpha_pattern": {"c_attn": 5}}),
    "some layers": ("llama", {"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]}),
    "an expression": ("llama", {"r": 2, "target_modules": r".*\.1\..*(v_proj|down_proj)"}),
    "a head": ("bert", {"r": 2, "target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", PEFTS)
def test_what_peft_trained_answers_in_a_mixed_batch_as_it_does_with_peft(tmp_path, kind):
    family, config = PEFTS[kind]
    model, bank, plain = with_bank(tmp_path, family)
    bank.add(kind, save_peft(tmp_path / kind, plain, lora_alpha=8, **config))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / kind).eval()
    batch = padded(3, "right")
    with bank.rows([kind, None, kind]):
        mixed = model(**batch).logits
    want = theirs(**batch).logits
    shown = batch["attention_mask"].bool() if mixed.dim() == 3 else torch.ones(3, dtype=torch.bool)
    shown[1] = False
    assert close(mixed[shown], want[shown])
    assert not torch.allclose(want[shown], plain(**batch).logits[shown], atol=1e-3)


# Generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_generate_follows_which_row_each_of_its_beams_is_of(tmp_path, family, search):
    model, bank, plain = with_bank(tmp_path, family)
    batch = padded(len(NAMES), "left")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **search}
    with bank.rows(NAMES):
        answers = model.generate(**batch, **options)
    each = search.get("num_return_sequences", 1)
    for place, name in enumerate(NAMES):
        want = alone(tmp_path, plain, name).generate(**row(batch, place), **options)
        ours = answers[place * each : (place + 1) * each]
        assert torch.equal(ours[:, : want.shape[1]], want) and (ours[:, want.shape[1] :] == 0).all()


def test_generate_makes_beams_of_the_rows_and_a_forward_pass_does_not(tmp_path):
    model, bank, _ = with_bank(tmp_path, "gpt2")
    with bank.rows(["first", "wide"]):
        for call in (model, lambda ids: model.generate(ids, num_beams=2, max_new_tokens=2)):
            with pytest.raises(ValueError, match="expected a batch of 2 rows, one for each name, found 4"):
                call(TOKENS.repeat(2, 1))


def test_generate_starts_a_row_by_itself_where_it_is_given_none(tmp_path):
    model, bank, plain = with_bank(tmp_path, "gpt2")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with bank.rows(["wide"]):
        assert torch.equal(model.generate(**options), alone(tmp_path, plain, "wide").generate(**options))
    with bank.rows(["wide", None]), pytest.raises(ValueError, match="expected a batch of 2 rows"):
        model.generate(**options)


SEARCH = DecodingSettings(beams=4, max_new_tokens=12, no_repeat_ngram=2, batch_size=3)
LETTERS = {"vocab_size": WORDS, "n_positions": 64}


def test_our_search_follows_its_rows_while_it_drops_those_that_have_ended(tmp_path):
    model, bank, plain = with_bank(tmp_path, "gpt2", **LETTERS)
    prompts = [[*TOKENS[0, : 1 + place % 4].tolist(), 0] for place in range(len(NAMES))]
    with bank.rows(NAMES):
        answers = beam_search(model, prompts, [0, 1], SEARCH)
    assert len({len(answer) for answer in answers}) > 1  # they end at different tokens
    for place, name in enumerate(NAMES):
        assert answers[place] == beam_search(alone(tmp_path, plain, name), [prompts[place]], [0, 1], SEARCH)[0]


def test_one_context_has_an_answer_for_each_adapter_though_equal_rows_are_decoded_once(tmp_path):
    model, bank, plain = with_bank(tmp_path, "gpt2", **LETTERS)
    contexts = ["abc", "abc", "q", "abc", "fghijkl", "q", "abc"]
    with bank.rows(NAMES):
        answers = generate(model, Letters(), contexts, SEARCH, progress=False)
    for answer, context, name in zip(answers, contexts, NAMES, strict=True):
        assert answer == generate(alone(tmp_path, plain, name), Letters(), [context], SEARCH, progress=False)[0]
    assert len({answer.text for answer, context in zip(answers, contexts, strict=True) if context == "abc"}) > 1
    with bank.rows(NAMES), pytest.raises(ValueError, match="expected a batch of 7 rows, one for each name, found 2"):
        generate(model, Letters(), ["abc", "q"], SEARCH, progress=False)


# At run time ------------------------------------------------------------------------------------------------------


def of_one(model: nn.Module, bank: AdapterBank, name: str | None) -> Tensor:
    with bank.rows([name] * len(TOKENS)), torch.no_grad():
        return model(TOKENS).logits


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_the_same_to_the_last_bit_with_the_bank_and_without_it(tmp_path, family):
    model, bank, plain = with_bank(tmp_path, family)
    of_one(model, bank, "first")
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(TOKENS).logits, plain(TOKENS).logits)  # outside of rows
    assert torch.equal(of_one(model, bank, None), plain(TOKENS).logits)
    bank.detach()
    require_plain(model)
    assert torch.equal(model(TOKENS).logits, plain(TOKENS).logits)
    for ours, theirs in zip(model.modules(), plain.modules(), strict=True):
        assert not ours._forward_hooks and not ours._forward_pre_hooks and vars(ours).keys() == vars(theirs).keys()
    with (
        pytest.raises(ValueError, match="expected a bank on its model, found one that was detached"),
        bank.rows([None]),
    ):
        pass
    AdapterBank(model).add("first", tmp_path / "first")


def test_adapters_come_and_go_by_name_and_a_name_can_be_given_another_folder(tmp_path):
    model, bank, _ = with_bank(tmp_path, "llama")
    assert bank.names == list(KINDS)
    first, wide = of_one(model, bank, "first"), of_one(model, bank, "wide")
    bank.replace("first", tmp_path / "wide")
    assert torch.equal(of_one(model, bank, "first"), wide) and bank.names == list(KINDS)
    bank.remove("first")
    assert bank.names == list(KINDS)[1:]
    bank.add("first", tmp_path / "first")
    assert torch.equal(of_one(model, bank, "first"), first) and torch.equal(of_one(model, bank, "wide"), wide)


def test_a_model_has_one_bank_and_a_bank_a_plain_model(tmp_path):
    model, _, plain = with_bank(tmp_path, "gpt2")
    with pytest.raises(ValueError, match="expected a model without a bank"):
        AdapterBank(model)
    add_lora(plain, LoRAConfig(2))
    with pytest.raises(ValueError, match="expected a plain model"):
        AdapterBank(plain)


def test_a_bank_within_anothers_rows_answers_and_the_other_is_refused_until_it_has_ended(tmp_path):
    (outer, outer_bank, _), (inner, inner_bank, _) = (with_bank(tmp_path / f, f) for f in LANGUAGE_MODELS)
    want, alone_inner = of_one(outer, outer_bank, "first"), of_one(inner, inner_bank, "wide")
    with torch.no_grad(), outer_bank.rows(["first", "first"]):
        assert torch.equal(of_one(inner, inner_bank, "wide"), alone_inner)
        with inner_bank.rows(["wide", "wide"]), pytest.raises(ValueError, match="expected no other rows inside"):
            outer(TOKENS)  # by its base, in silence
        assert torch.equal(outer(TOKENS).logits, want)


def test_a_copy_of_the_model_generates_by_its_own_weights(tmp_path):
    model, _, _ = with_bank(tmp_path, "gpt2")
    other = copy.deepcopy(model)
    nn.init.normal_(other.transformer.wte.weight)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert not torch.equal(other.generate(TOKENS, **options), model.generate(TOKENS, **options))


# Bad input --------------------------------------------------------------------------------------------------------


def rows_of_names(names) -> Callable:
    def act(model: nn.Module, bank: AdapterBank, tmp_path: Path) -> None:
        with bank.rows(names):
            model(TOKENS)

    return act


def removed_in_its_batch(model: nn.Module, bank: AdapterBank, tmp_path: Path) -> None:
    with bank.rows(["first", None]):
        bank.remove("first")


def replaced_in_its_batch(model: nn.Module, bank: AdapterBank, tmp_path: Path) -> None:
    with bank.rows(["first", None]):
        bank.replace("first", tmp_path / "wide")


def detached_in_a_batch(model: nn.Module, bank: AdapterBank, tmp_path: Path) -> None:
    with bank.rows([None, None]):
        bank.detach()


def adding(make: Callable[[Path], Path], name: str = "new") -> Callable:
    return lambda model, bank, tmp_path: bank.add(name, make(tmp_path / "bad"))


def trained_bias(folder: Path) -> Path:
    model = tiny("bert")
    add_lora(model, LoRAConfig(2))
    model.bert.encoder.layer[0].output.LayerNorm.bias.requires_grad_(True)
    save_lora(model, folder)
    return folder


def head_with_one_odd_shape(folder: Path) -> Path:
    save_peft(folder, tiny("bert"), r=2, target_modules=["query"], modules_to_save=["classifier"])
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("classifier.bias"))
    save_file(tensors | {name: torch.zeros(5)}, folder / "adapter_model.safetensors")
    return folder


def edited_rank(folder: Path) -> Path:
    save_peft(folder, tiny("bert"), r=2, target_modules=["query"])
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 3}))
    return folder


TWO = tiny("bert", num_hidden_layers=2)
BAD = {
    "an unknown name": (rows_of_names(["first", "frist"]), "no adapter is called 'frist'; the adapters are first"),
    "a name that is none": (rows_of_names(["first", 3]), "no adapter is called 3"),
    "a row without a name": (rows_of_names(["first"]), "expected a batch of 1 rows, one for each name, found 2"),
    "a name without a row": (rows_of_names([None] * 3), "expected a batch of 3 rows, one for each name, found 2"),
    "an empty batch": (rows_of_names([]), "expected a list with the name of each row's adapter or None, found"),
    "one name and no list": (rows_of_names("first"), "expected a list with the name of each row's adapter or None"),
    "no rows": (lambda model, bank, _: bank.classify([], {"input_ids": TOKENS[:0]}), "expected a list with the name"),
    "a name twice": (adding(lambda folder: folder.with_name("wide"), "first"), "expected a new name"),
    "no name": (adding(lambda folder: folder.with_name("wide"), ""), "expected a new name"),
    "no folder": (adding(lambda folder: folder), "expected a whole adapter_config.json"),
    "another base": (adding(lambda folder: save(folder, tiny("bert", seed=1), KINDS["first"])), "is not for this Bert"),
    "another width": (
        adding(lambda folder: save(folder, tiny("bert", hidden_size=32), KINDS["first"])), "is not for this Bert"),
    "another family": (adding(lambda folder: save(folder, tiny("gpt2"), KINDS["first"])), "is not for this Bert"),
    "fewer layers, by PEFT": (
        adding(lambda folder: save_peft(folder, TWO, r=2, target_modules=["query"])), "is not for this Bert"),
    "rank above the matrix": (
        adding(lambda folder: save_peft(folder, tiny("bert"), r=17, target_modules=["query"])),
        r"rank 17 is larger than the matrix to adapt, \(16, 16\)"),
    "another rank than it says": (adding(edited_rank), "rank 3 beside a pair of rank 2"),
    "a head of another size": (
        adding(lambda folder: save(folder, tiny("bert", hidden_size=32), KINDS["first"], 3)), "is not for this Bert"),
    "a head that does not fit itself": (adding(head_with_one_odd_shape), "is not for this Bert"),
    "more than pairs and a head": (adding(trained_bias), "LayerNorm.bias trained too; merge that adapter"),
    "removed while a batch uses it": (removed_in_its_batch, "expected 'first' to be in no batch"),
    "replaced while a batch uses it": (replaced_in_its_batch, "expected 'first' to be in no batch"),
    "detached while a batch uses it": (detached_in_a_batch, "expected no batch to use the bank"),
    "removed before it is there": (lambda model, bank, _: bank.remove("new"), "no adapter is called 'new'"),
    "replaced by a bad one": (lambda model, bank, folder: bank.replace("first", folder / "bad"), "expected a whole"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_the_adapters_that_were_there_answer_as_before(tmp_path, case):
    model, bank, _ = with_bank(tmp_path, "bert")
    names = ["first", "wide", None]
    before = bank.classify(names, padded(3, "right"))
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act(model, bank, tmp_path)
    assert bank.names == list(KINDS) and all(map(torch.equal, bank.classify(names, padded(3, "right")), before))
    bank.remove("first")  # which no batch uses any more


def test_a_language_model_is_not_asked_to_classify(tmp_path):
    _, bank, _ = with_bank(tmp_path, "gpt2")
    with pytest.raises(ValueError, match="expected an encoder with a head, found GPT2LMHeadModel"):
        bank.classify(["first", None], {"input_ids": TOKENS})


# Many ------------------------------------------------------------------------------------------------------------


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_a_thousand_mixed_requests_give_no_wrong_row_and_leave_nothing_behind(tmp_path):
    model, bank, _ = with_bank(tmp_path, "gpt2", n_layer=1)
    want = {name: of_one(model, bank, name)[0] for name in (*KINDS, None)}
    pick, before = random.Random(0), tensors_alive()
    for _ in range(1000):
        names = pick.choices([*want], k=pick.randint(1, 6))
        with bank.rows(names), torch.no_grad():
            answers = model(TOKENS[:1].expand(len(names), -1)).logits
        assert all(close(answer, want[name]) for answer, name in zip(answers, names, strict=True))
    assert tensors_alive() <= before + 1  # `answers`


def test_an_adapter_takes_the_memory_of_its_trained_parameters(tmp_path):
    plain = tiny("gpt2")
    save(tmp_path / "first", plain, KINDS["wide"])
    bank = AdapterBank(copy.deepcopy(plain))
    before = tensors_alive()
    bank.add("first", tmp_path / "first")
    pairs = bank._adapters["first"].pairs.values()
    kept = [tensor for pair in pairs for tensor in (pair.A, *(block for _, _, block in pair.blocks))]
    assert tensors_alive() - before == len(kept)
    model = alone(tmp_path, plain, "first")
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == 4 * count_parameters(model)[0]


def test_threads_have_rows_of_their_own_and_no_thread_removes_what_another_uses(tmp_path):
    model, bank, _ = with_bank(tmp_path, "gpt2")
    want, wrong = {name: of_one(model, bank, name) for name in (*KINDS, None)}, []

    def serve(name: str | None) -> None:
        for _ in range(10):
            if not torch.allclose(of_one(model, bank, name), want[name], atol=1e-5):
                wrong.append(name)

    threads = [threading.Thread(target=serve, args=(name,)) for name in want]
    with bank.rows(["first", None]):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = threading.Thread(target=lambda: wrong.append(removed(bank)))
        refused.start()
        refused.join()
    assert wrong == ["refused"]


def removed(bank: AdapterBank) -> str:
    try:
        bank.remove("first")
    except ValueError:
        return "refused"
    return "removed"


# For other engines --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", [*KINDS, "some layers"])
def test_the_engines_folder_has_one_rank_and_whole_stacks_and_answers_the_same_through_peft(tmp_path, kind):
    plain, folder, target = tiny("llama"), tmp_path / "ours", tmp_path / "engines"
    if kind in KINDS:
        save(folder, plain, KINDS[kind])
    else:
        save_peft(folder, plain, lora_alpha=8, **PEFTS[kind][1] | {"rank_pattern": {"q_proj": 3}})
    export_for_engines(plain, folder, target)
    settings, tensors = (
        json.loads((target / "adapter_config.json").read_text()),
        load_file(target / "adapter_model.safetensors"),
    )
    assert not settings.get("modules_to_save") and not {"rank_pattern", "alpha_pattern"} & settings.keys()
    for name, tensor in tensors.items():  # as vLLM takes names apart, and with the rows and columns that SGLang wants
        module, pair, weight = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert weight == "weight" and plain.get_submodule(module).weight.shape[pair == "lora_A"] in tensor.shape
        assert (
            tensor.shape[pair == "lora_B"] == settings["r"] and module.rpartition(".")[2] in settings["target_modules"]
        )
    leaves = {name.split(".")[-3] for name in tensors}
    for stack in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}):
        assert stack <= leaves or not stack & leaves
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), target)
    want = peft.PeftModel.from_pretrained(copy.deepcopy(plain), folder)
    assert close(theirs(TOKENS).logits, want(TOKENS).logits)
    bank = AdapterBank(plain)
    bank.add("engines", target)
    assert close(of_one(plain, bank, "engines"), want(TOKENS).logits)


@pytest.mark.parametrize(("family", "found"), [("gpt2", "pairs for c_attn"), ("bert", "a head")])
def test_what_the_engines_cannot_serve_is_not_written(tmp_path, family, found):
    save(tmp_path / "ours", tiny(family), KINDS["first"], classes=2 if family == "bert" else None)
    with pytest.raises(
        ValueError, match=f"expected pairs for Llama's matrices alone in .*, found {found}.*; merge_lora"
    ):
        export_for_engines(tiny(family), tmp_path / "ours", tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["parallel", "compiled"]
)
def test_a_bank_is_not_put_on_a_wrapper(wrap):
    with pytest.raises(ValueError, match=r"expected the model itself, found it in a (DataParallel|OptimizedModule)"):
        AdapterBank(wrap(tiny("bert")))


def test_an_expression_that_could_take_for_ever_is_refused(tmp_path):
    folder = save_peft(tmp_path / "hostile", tiny("bert"), r=2, target_modules=["query"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {r"([\\w.]+)+!": 2}}))
    with pytest.raises(ValueError, match="names with two repetitions at most"):
        AdapterBank(tiny("bert")).add("hostile", folder)
