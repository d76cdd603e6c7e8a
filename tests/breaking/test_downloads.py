"""Downloads that break off, are refused, go in a circle or hang: a clear error, nothing half-written, a clean retry."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading

import pytest

from files import ROOT
from stand_in_hub import Answer, StandInHub
from tasks.glue.data import REPOSITORY
from test_hub import GLUE_FILE, SENTENCES, fill

FAULTS = {"500": 500, "404": 404, "401": 401, "503": 503, "circle": 302, "hangs": 0, "breaks off": 0}
CSV = (
    'mr,ref\n"name[Aromi], food[English]","Aromi serves English food."\n'
    + '"name[Aromi], food[Thai]",Aromi is Thai.\n' * 99
)
FETCH = """
import json, sys, urllib.request
from pathlib import Path
import files
from models import load_model, load_tokenizer
from tasks.e2e import data as e2e_data
from tasks.glue import data as glue_data

hub, cache, what, e2e_sum, glue_sum, *faults = sys.argv[1:]
files.CACHE, files.SHARED, files.DOWNLOAD_SECONDS = Path(cache), Path(cache, "none"), 1
e2e_data.RELEASE_URL, e2e_data.FILES = f"{hub}/e2e", {"dev": ("devset.csv", e2e_sum)}
glue_data.CHECKSUMS["cola/validation"] = glue_sum
FETCH = {
    "a file of E2E": lambda: e2e_data.load_e2e("dev", "challenge")[0].reference,
    "a file of GLUE": lambda: glue_data.load_glue("cola", "validation").examples[0].texts[0],
    "a model": lambda: load_model("gpt2").transformer.wte.weight.shape[0],
    "a tokenizer": lambda: load_tokenizer("gpt2")("tea").input_ids,
}
for fault in faults:
    urllib.request.urlopen(f"{hub}/fault/{fault.replace(' ', '%20')}").read()
    try:
        came = "found", FETCH[what]()
    except (OSError, ValueError) as error:
        came = type(error).__name__, str(error)
    except BaseException as error:
        came = "undeclared " + type(error).__name__, str(error)
    print(json.dumps([fault, *came, [str(p) for p in Path(cache).rglob("*") if p.is_file()]]), flush=True)
"""
FOUND = {
    "a file of E2E": "Aromi serves English food.", "a file of GLUE": SENTENCES[0]["sentence"], "a model": 300,
    "a tokenizer": [87, 72, 68],
}  # fmt: skip


class HurtHub(StandInHub):
    """A hub that answers `/fault/500` and has that fault from then on; `/fault/none` ends it."""

    fault = "none"

    def __enter__(self) -> HurtHub:
        self.leaving = threading.Event()  # what hangs waits for it
        return super().__enter__()

    def answer(self, path: str) -> Answer:
        if path.startswith("/fault/"):
            self.fault, self.cut = path.removeprefix("/fault/"), False
            return 200, {}, b""
        if self.fault == "hangs":
            self.leaving.wait()
        if status := FAULTS.get(self.fault, 0):
            return status, {"Location": path} if status == 302 else {}, b""
        self.cut = self.fault == "breaks off"
        if path.startswith("/e2e/"):
            return 200, {}, CSV.encode()
        return super().answer(path)

    def __exit__(self, *error: object) -> None:
        self.leaving.set()
        super().__exit__(*error)


@pytest.mark.parametrize("what", FOUND)
def test_a_download_that_fails_leaves_nothing_and_the_next_one_succeeds(what, tmp_path, tally):
    fill(tmp_path / "hub")
    glue = tmp_path / "hub" / "datasets" / REPOSITORY / GLUE_FILE
    sums = [hashlib.sha256(content).hexdigest() for content in (CSV.encode(), glue.read_bytes())]
    with HurtHub(tmp_path / "hub") as hub:
        own = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(ROOT / "code"),
        }  # fmt: skip
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LORA_"))}
        command = [sys.executable, "-c", FETCH, hub.url, str(tmp_path / "cache"), what, *sums, *FAULTS, "none"]
        done = subprocess.run(command, env=kept | own, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    *faults, healthy = map(json.loads, done.stdout.splitlines())
    for fault, kind, message, files in faults:
        assert kind in ("FileNotFoundError", "ValueError", "OSError"), (fault, kind, message)
        said = re.search("connection|run the same command again", message)
        assert said and not files, (fault, message, files)
        tally("downloads", f"{what}, the hub's answer: {fault}", "clear error, nothing written; fetched the next time")
    assert healthy[:3] == ["none", "found", FOUND[what]]
