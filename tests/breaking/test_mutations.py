"""Files that were damaged or edited: each seeded mutation is refused with a reason, or gives what was saved.

A mutation cuts a file, flips bits, writes zeros or another file's bytes over it, or edits an entry of its JSON: the
header of weights, the settings beside them, a record. What no checksum covers is said with each kind.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import loralib
import pytest
import torch
from torch import nn

import files
import models
from adapter_files import CONFIG_FILE, WEIGHTS_FILE, load_lora, save_lora
from lora import LoRAConfig, add_lora, lora_layers
from methods.released_adapters import load_released_adapter
from methods.saved import TRAINED_FILE, load_adapter, save_trained
from models import load_model, load_tokenizer
from runs import records
from synthetic_records import write_e2e
from tasks.e2e.data import load_e2e
from tasks.glue.data import load_glue
from test_released_adapters import gpt2, loralib_gpt2
from test_training import assert_same, best_of, cut, outcome, whole  # noqa: F401, two fixtures
from tiny_models import adapted, logits, settings, step, tiny

NAME, LINES = "table3/gpt2-mini/full", [{"mr": "name[Zizzi]", "prediction": f"Zizzi {i} ."} for i in range(3)]
Report = Callable[[str, str, str], None]


# Mutations --------------------------------------------------------------------------------------------------------


def cut_short(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def lengthened(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randint(1, 64))


def flipped_bits(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 5, 50])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def other_bytes(content: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(content)), chance.randint(1, 512)
    piece = chance.choice([bytes(length), chance.randbytes(length), content[-length:]])
    return content[:start] + piece + content[start + length :]


def moved_bytes(content: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(content)), chance.randint(1, 64)
    rest = content[:start] + content[start + length :]
    return rest[: start // 2] + content[start : start + length] + rest[start // 2 :]


VALUES = (
    None,
    True,
    -1,
    0,
    1,
    3.5,
    1e308,
    "",
    "query",
    "../elsewhere",
    [],
    [None],
    ["key"],
    {},
    {"r": 2},
    [[[]]],
    2**70,
)


def edited(value: object, chance: random.Random) -> object:
    """The value with one entry, at any depth, that is another, gone, or new."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice([*value])
        act = chance.random()
        if act < 0.2:
            return {k: v for k, v in value.items() if k != key}
        if act < 0.3:
            return {f"{k}_" if k == key else k: v for k, v in value.items()}
        if act < 0.4:
            return value | {"further": chance.choice(VALUES)}
        return value | {key: edited(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.6:
        i = chance.randrange(len(value))
        return [*value[:i], edited(value[i], chance), *value[i + 1 :]]
    if (
        isinstance(value, str) and value.startswith(("{", "[")) and chance.random() < 0.9
    ):  # our header within that of the format
        return json.dumps(edited(json.loads(value), chance))
    return chance.choice([other for other in VALUES if other != value or type(other) is not type(value)])


def edited_json(content: bytes, chance: random.Random) -> bytes:
    return json.dumps(edited(json.loads(content), chance)).encode()


def edited_header(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file, its header edited and its length in front of it right."""
    length = int.from_bytes(content[:8], "little")
    header = edited_json(content[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


DAMAGES = (cut_short, lengthened, flipped_bits, flipped_bits, other_bytes, moved_bytes)


def mutations(file: Path, number: int, edits: tuple[Callable, ...] = ()) -> list[tuple[str, bytes]]:
    """So many seeded mutations of the file that are not the file: the name of each, and the content."""
    content, found = file.read_bytes(), []
    for seed in range(10 * number):
        chance = random.Random(f"{file.name} {seed}")
        mutate = chance.choice([*DAMAGES, *edits * 3])
        mutated = mutate(content, chance)
        if mutated != content:
            found.append((mutate.__name__.replace("_", " "), mutated))
        if len(found) == number:
            return found
    raise AssertionError(f"{file} has too few mutations")


def judge(read: Callable[[], object], kind: str, fault: str, tally: Report) -> None:
    """Count what comes of a mutated file: only a declared error with what was expected, or what was saved, may."""
    try:
        same = read()
    except (ValueError, OSError) as error:
        assert len(str(error)) > 20, error
        tally(kind, fault, "refused with a reason")
    else:
        assert same, f"{kind}, {fault}: read without a word, and other than it was saved"
        tally(kind, fault, "as it was saved")


# Adapters ---------------------------------------------------------------------------------------------------------


def lora_folder(folder: Path, family: str) -> nn.Module:
    torch.manual_seed(0)
    model = tiny(family)
    add_lora(model, LoRAConfig(2, 4.0, targets=("query", "value", "mlp_in")))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.3)
    if family == "bert":
        model.classifier.requires_grad_(True)
    save_lora(model, folder)
    return model


@pytest.mark.parametrize(("family", "number"), [("bert", 100), ("gpt2", 100)])
@pytest.mark.parametrize("file", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_mutated_folder_of_lora_is_refused_or_what_was_saved(tmp_path, family, number, file, tally):
    expected = logits(lora_folder(tmp_path, family))
    whole_file = (tmp_path / file).read_bytes()
    edit = edited_header if file == WEIGHTS_FILE else edited_json
    for fault, content in mutations(tmp_path / file, number // 2, (edit,)):
        (tmp_path / file).write_bytes(content)
        model = tiny(family)

        def same(model: nn.Module = model) -> bool:
            load_lora(model, tmp_path)
            return torch.equal(logits(model), expected)

        judge(same, "a folder of LoRA", f"{file}: {fault}", tally)
        if not lora_layers(model):
            assert torch.equal(logits(model), logits(tiny(family)))  # it stays as it is
    (tmp_path / file).write_bytes(whole_file)
    load_lora(tiny(family), tmp_path)


@pytest.mark.parametrize(
    ("method", "family"), [("bitfit", "gpt2"), ("adapter-h", "roberta"), ("prelayer", "gpt2"), ("top-layers", "bert")]
)
def test_a_mutated_folder_of_another_method_is_refused_or_what_was_saved(tmp_path, method, family, tally):
    trained = step(adapted(method, family), 2)
    save_trained(trained, settings(method, family), tmp_path)
    expected = logits(trained)
    for fault, content in mutations(tmp_path / TRAINED_FILE, 50, (edited_header,)):
        (tmp_path / TRAINED_FILE).write_bytes(content)
        model = tiny(family)

        def same(model: nn.Module = model) -> bool:
            load_adapter(model, tmp_path)
            return torch.equal(logits(model), expected)

        judge(same, "a folder of another method", fault, tally)


def test_a_mutated_file_of_the_authors_is_refused_or_what_was_saved(tmp_path, tally):
    file = tmp_path / "lora.pt"
    torch.save(loralib.lora_state_dict(loralib_gpt2()), file)
    whole_model = gpt2()
    load_released_adapter(whole_model, file, 32)
    for fault, content in mutations(file, 200):
        file.write_bytes(content)

        def same() -> bool:
            model = gpt2()
            load_released_adapter(model, file, 32)
            return torch.equal(
                logits(model, torch.arange(12).reshape(2, 6)), logits(whole_model, torch.arange(12).reshape(2, 6))
            )

        judge(same, "a released adapter", fault, tally)


# Bases and tokenizers ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of tokenizers
@pytest.mark.parametrize("file", ["model.safetensors", *models.GPT2_MINI_FILES])
def test_a_mutated_file_of_a_base_is_refused(tmp_path, file, tally, monkeypatch):
    shutil.copytree(models.MODELS / "gpt2-mini", tmp_path / "gpt2-mini")
    monkeypatch.setattr(models, "MODELS", tmp_path)
    for fault, content in mutations(tmp_path / "gpt2-mini" / file, 20, (edited_json,) if file.endswith("json") else ()):
        (tmp_path / "gpt2-mini" / file).write_bytes(content)
        for load in (load_model, load_tokenizer):
            with pytest.raises(ValueError, match="is not the released file: expected SHA-256"):
                load("gpt2-mini")
        tally("a base and its tokenizer", fault, "refused with a reason")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"])
def test_a_mutated_tokenizer_without_checksums_is_read_or_refused_by_a_declared_error(
    tmp_path, file, tally, monkeypatch
):
    """As those of the hub: its client checks what it fetches, and nobody later. What is still a tokenizer is read."""
    shutil.copytree(models.MODELS / "gpt2-mini", tmp_path / "gpt2-mini")
    if file == "tokenizer.json":
        load_tokenizer("gpt2-mini").save_pretrained(tmp_path / "gpt2-mini")
    entry = models.BASES["gpt2-mini"]
    monkeypatch.setitem(models.BASES, "gpt2-mini", models.Base("gpt2", entry.source, entry.shape, entry.place))
    monkeypatch.setattr(models, "MODELS", tmp_path)
    path = tmp_path / "gpt2-mini" / file
    for fault, content in mutations(path, 25, (edited_json,) if file.endswith("json") else ()):
        path.write_bytes(content)
        judge(lambda: load_tokenizer("gpt2-mini") is not None, "a tokenizer of unknown checksum", fault, tally)


# Records, predictions, checkpoints, data --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["record", "note", "predictions", "newer scores"])
def test_a_mutated_result_is_passed_over_or_what_was_written(tmp_path, kind, tally, monkeypatch, capsys):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    record = write_e2e(NAME, 0, 0.6, predictions_digest=files.digest(LINES))
    write_e2e(NAME, 1, 0.7)
    records.write_predictions(NAME, "cpu", 0, LINES)
    note = records.write_unfinished(record | {"status": "failed"})
    newer = records.rescored_path(records.record_path(NAME, "cpu", 0))
    files.write_json(newer, {"name": NAME, "scale": "cpu", "seed": 0, "scores": {"brevity_penalty": 0.98}})

    def read() -> tuple:
        found = records.read_records("cpu")
        return found, [records.read_predictions(each) for each in found], records.unfinished("cpu", "failed")

    path = {"record": records.record_path(NAME, "cpu", 0), "note": note, "newer scores": newer,
            "predictions": records.predictions_path(NAME, "cpu", 0)}[kind]  # fmt: skip
    expected = read()
    for fault, content in mutations(path, 50, () if kind == "predictions" else (edited_json,)):
        path.write_bytes(content)
        found = read()
        assert found[0][-1]["seed"] == 1, "a damaged file takes another run with it"
        if found == expected:
            tally("results", f"{kind}: {fault}", "as it was written")
        else:
            assert path in records.damaged("cpu")
            tally("results", f"{kind}: {fault}", "named, passed over and counted")


FILES_OF_A_CHECKPOINT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trained_parameters.safetensors",
                         "trainer_state.json", "sittings.json", "sizes.json")  # fmt: skip


@pytest.mark.parametrize("file", FILES_OF_A_CHECKPOINT)
def test_a_mutated_checkpoint_is_passed_over_and_the_run_ends_as_one_in_one_go(tmp_path, cut, whole, file, tally):  # noqa: F811
    edits = (edited_json,) if file.endswith("json") else ()
    for number, (fault, content) in enumerate(mutations(cut / "checkpoint-33" / file, 4, edits)):
        folder = tmp_path / str(number)
        shutil.copytree(cut, folder)
        (folder / "checkpoint-33" / file).write_bytes(content)
        assert_same(outcome(*best_of(folder)), whole)
        tally("a checkpoint", fault, "the same weights and history as in one go")


def test_a_mutated_file_of_the_cache_is_refused(tmp_path, tally, monkeypatch, shared_data):
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(files, "SHARED", tmp_path / "none")
    glue = "glue/mrpc/validation-00000-of-00001.parquet"
    reads = {"e2e/devset.csv": lambda: load_e2e("dev"), glue: lambda: load_glue("mrpc", "validation")}
    for file, read in reads.items():
        path = files.find_file(file, None, (shared_data / file).read_bytes, "a stand-in")
        assert read()
        for fault, content in mutations(path, 50):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="expected SHA-256"):
                read()
            tally("a file of the cache", fault, "refused with a reason")
