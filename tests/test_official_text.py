"""The official code's own text of E2E at `paper` scale: from where it comes, and what stands in where it is not had."""

from __future__ import annotations

import hashlib
import http.server
import threading
from dataclasses import replace

import pytest

import files
from analysis import comparisons
from experiments.catalogue import EXPERIMENTS, find
from experiments.settings import Job
from runs import e2e as e2e_run
from runs.identity import other_data
from synthetic_summary import line
from tasks.catalogue import TASKS
from tasks.e2e import official_text
from tasks.e2e.data import Example, load_e2e
from tasks.e2e.official_text import load_official, to_mr
from test_claims import verdict

CONTEXT = "name : Blue Spice | Type : pub | price : £ 20 - 25 | family friendly : yes"
ROW = Example(
    "name[Blue Spice], eatType[pub], priceRange[£20-25], familyFriendly[yes]", CONTEXT, "Blue Spice is n't a pub ."
)
TEXTS = {
    split: f"{ROW.context}||{ROW.reference}\nname : {split}||{split} is here .\n" for split in ("train", "dev", "test")
}


def blob(text: str) -> str:
    """What `git hash-object` gives for a file of this text."""
    content = text.encode()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as LORA_DATA_DIR with the three files; no other place has any, and no server is reached."""
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(files, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(official_text, "OFFICIAL_URL", "http://127.0.0.1:9")
    (tmp_path / "named/e2e_lora_format").mkdir(parents=True)
    for split, text in TEXTS.items():
        name = official_text.FILES[split][0]
        monkeypatch.setitem(official_text.FILES, split, (name, blob(text)))
        (tmp_path / "named/e2e_lora_format" / name).write_bytes(text.encode())
    return tmp_path / "named"


@pytest.fixture
def server(folder, monkeypatch):
    """The official repository on localhost: `answers` is file -> (what it sends, the bytes that it announces)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, announced = server.answers.get(self.path.rpartition("/")[2], (b"", 0))
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    sent = {official_text.FILES[split][0]: text.encode() for split, text in TEXTS.items()}
    server.answers = {name: (content, len(content)) for name, content in sent.items()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(official_text, "OFFICIAL_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_official_files_are_read_from_the_named_folder_row_by_row(folder):
    rows = load_official(folder)
    assert rows["train"] == [ROW, Example("name[train]", "name : train", "train is here .")]
    assert {split: len(examples) for split, examples in rows.items()} == dict.fromkeys(TEXTS, 2)


def test_they_are_downloaded_once_and_found_in_the_cache(server):
    fetched = load_official()
    server.answers.clear()
    assert load_official() == fetched
    assert {path.name for path in (files.CACHE / "e2e_lora_format").iterdir()} == {"train.txt", "valid.txt", "test.txt"}


@pytest.mark.parametrize("split", TEXTS)
def test_where_one_file_is_out_of_reach_none_is_used_and_that_is_said(folder, split, caplog):
    (folder / "e2e_lora_format" / official_text.FILES[split][0]).unlink()
    assert load_official(folder) is None
    assert "rebuilt from the released data" in caplog.text and official_text.FILES[split][0] in caplog.text


def test_a_file_with_another_blob_id_is_refused_and_not_replaced_by_a_rebuilt_text(folder):
    changed = TEXTS["train"].replace("pub", "bar")
    (folder / "e2e_lora_format/train.txt").write_bytes(changed.encode())
    with pytest.raises(
        ValueError, match=f"expected git blob {blob(TEXTS['train'])}, found {blob(changed)}; replace it"
    ):
        load_official(folder)


@pytest.mark.parametrize(
    ("announces", "error"),
    [("all", r"train\.txt was cut off: expected \d+ bytes, found 40; run"), ("part", "expected git blob .* found")],
)
def test_a_download_that_is_cut_is_refused_and_leaves_no_file(server, announces, error):
    whole, size = server.answers["train.txt"]
    server.answers["train.txt"] = whole[:40], size if announces == "all" else 40
    with pytest.raises(ValueError, match=error):
        load_official()
    assert not files.CACHE.exists()


@pytest.mark.parametrize(("split", "file"), [("dev", "valid.txt"), ("test", "test.txt")])
def test_the_real_files_have_these_blob_ids_and_their_contexts_the_released_meanings(shared_data, split, file):
    content = (shared_data / "e2e_lora_format" / file).read_bytes()
    assert (file, blob(content.decode())) == official_text.FILES[split]
    rows = official_text._read(shared_data / "e2e_lora_format" / file, official_text.FILES[split][1])
    released = load_e2e(split, "lora", shared_data)
    assert [(row.mr, row.context) for row in rows] == [(row.mr, row.context) for row in released]
    same = sum(row.reference == ours.reference for row, ours in zip(rows, released, strict=True))
    assert 0.98 < same / len(rows) < 1


def test_a_context_gives_back_its_meaning_representation():
    assert to_mr(CONTEXT) == ROW.mr
    assert to_mr("price : more than £ 30 | near : Café Rouge") == "priceRange[more than £30], near[Café Rouge]"


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_the_official_text_is_asked_for_at_paper_scale_and_nowhere_else():
    e2e = [e for e in EXPERIMENTS.values() if e.settings.task == "e2e" and e.table != "bleu-gap"]  # which compares both
    assert {e.scale for e in e2e if e.settings.official_text} == {"paper"}
    assert all(e.settings.official_text == (e.scale == "paper") for e in e2e)
    assert not any(e.settings.official_text for e in EXPERIMENTS.values() if e.settings.task != "e2e")


def test_official_text_of_another_protocol_is_refused():
    with pytest.raises(ValueError, match="official_text is text of the protocol lora, found the protocol challenge"):
        replace(find("table3/gpt2/full").settings, protocol="challenge")


@pytest.fixture
def job(folder, tmp_path, monkeypatch):
    """A run of `paper` scale; its released E2E is one row, and its official text that of `folder`."""
    released = replace(TASKS["e2e"], load=lambda split, *_: [replace(ROW, reference="Blue Spice isn 't a pub .")])
    monkeypatch.setitem(TASKS, "e2e", released)
    return Job(find("table3/gpt2-medium/lora-r4").settings, 0, tmp_path, folder)


def test_a_run_is_trained_and_scored_on_one_text_and_its_record_says_which(job, folder):
    splits, facts = e2e_run.load_splits(job)
    assert facts == {"text": "official"} and splits == load_official(folder)
    (folder / "e2e_lora_format/train.txt").unlink()
    splits, facts = e2e_run.load_splits(job)
    assert facts == {"text": "rebuilt"}
    assert {row.reference for rows in splits.values() for row in rows} == {"Blue Spice isn 't a pub ."}
    splits, facts = e2e_run.load_splits(replace(job, settings=replace(job.settings, official_text=False)))
    assert facts == {}


def test_a_record_of_the_one_text_does_not_answer_for_the_other(job, folder):
    record = {"data_fingerprint": e2e_run.data_fingerprint(job)}
    assert other_data(record, job) is None
    (folder / "e2e_lora_format/train.txt").unlink()
    assert other_data(record, job) is None  # its file is not here, and is not fetched to compare
    rebuilt = {"data_fingerprint": e2e_run.data_fingerprint(job)}
    assert record != rebuilt
    (folder / "e2e_lora_format/train.txt").write_bytes(TEXTS["train"].encode())
    assert other_data(rebuilt, job).startswith("train ")


def test_no_claim_rests_on_a_difference_between_the_two_texts():
    lora, full = (line(f"table3/gpt2-medium/{row}", "68.0 68.1", scale="paper") for row in ("lora-r4", "full"))
    alike = [side | {"model": "gpt2-medium", "data": "official text"} for side in (lora, full)]
    assert verdict("e2e-matches", *alike, scale="paper") != comparisons.MISSING
    unlike = [alike[0], alike[1] | {"data": "rebuilt text"}]
    assert verdict("e2e-matches", *unlike, scale="paper") == comparisons.MISSING
    assert verdict("e2e-matches", *(side | {"data": "mixed"} for side in alike), scale="paper") == comparisons.MISSING
