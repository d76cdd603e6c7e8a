"""The demonstration as a person meets it: `python code/demo.py`, and a headless Chromium that types, clicks and reads.

python -m pytest -m slow tests/test_demo.py --basetemp seen      # where the pictures of what was read are kept
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import pytest

import demo
from files import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REMEDY = "pip install -r tests/requirements-demo.txt -c constraints.txt"
# Whatever asks for an address beyond this machine is written down.
WATCH = """
import os, sys
def watch(event, args):
    place = args[1] if event == "socket.connect" else args[0] if event == "socket.getaddrinfo" else None
    host = place[0] if isinstance(place, tuple) else place if event == "socket.getaddrinfo" else None
    if host not in (None, "127.0.0.1", "::1", "localhost", "0.0.0.0", b"localhost", b"127.0.0.1"):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, host, file=file)
sys.addaudithook(watch)
"""


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="needs Gradio, which is not installed: `make demo` installs it"):
        demo.main()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def address(watched):
    """Of the page, once it is there; its adapters are trained first, unless LORA_CHECKPOINT_DIR has them."""
    pytest.importorskip("gradio", reason=f"Gradio is not installed: {REMEDY}")
    (watched / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    folders = {"LORA_RESULTS_DIR": str(watched / "results"), "LORA_CHECKPOINT_DIR": str(watched / "checkpoints")}
    environment = folders | os.environ | {"PYTHONPATH": str(watched), "WATCHED": str(watched / "seen.txt")}
    command = [sys.executable, "-u", str(ROOT / "code" / "demo.py")]
    with (
        (watched / "log.txt").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            found = next(
                (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout if "http://" in line), None
            )
            assert found, (watched / "log.txt").read_text()
            yield found[0]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason=f"playwright is not installed: {REMEDY}")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """The page in a browser's tab; the addresses that it has asked for."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(60_000)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    tab.get_by_role("button", name="Write", exact=True).wait_for()
    yield tab, asked
    tab.close()


def answers(tab) -> list[list[str]]:
    """The lines of each card that is seen."""
    return [card.inner_text().split("\n\n") for card in tab.locator(".answer:visible").all()]


def changed(tab, click: str) -> list[list[str]]:
    """The cards after a click, when they are others."""
    before = tab.locator(".batch:visible").inner_text()
    tab.get_by_role("button", name=click, exact=True).click()
    tab.wait_for_function(
        "before => [...document.querySelectorAll('.batch')].some(e => e.offsetParent && e.innerText !== before)",
        arg=before,
    )
    return answers(tab)


@pytest.mark.slow
def test_slot_values_are_typed_and_the_adapters_texts_are_read_side_by_side(opened, watched):
    tab, _ = opened
    assert len(answers(tab)) == 4  # of the example
    for slot in demo.SLOTS:
        tab.get_by_label(slot, exact=True).fill("")
    for slot, value in {"name": "The Paper Fox", "eatType": "pub", "food": "Zambian", "area": "riverside"}.items():
        tab.get_by_label(slot, exact=True).fill(value)
    cards = changed(tab, "Write")
    assert [name for name, *_ in cards] == [
        "no adapter", "E2E, r=1, 400 rows", "E2E, r=8, 400 rows", "E2E, r=4, 3,200 rows"
    ]  # fmt: skip
    texts = [text for _, text, _ in cards]
    assert len(set(texts)) == 4 and "Paper Fox" in texts[-1] and "riverside" in texts[-1]
    assert all(re.fullmatch(r"[\d,]+ ms alone", time) for *_, time in cards)
    said = tab.locator(".batch:visible").inner_text()
    assert re.fullmatch(r"4 rows in one batch: [\d,]+ ms. One after the other: [\d,]+ ms, the same answers.", said)
    tab.screenshot(path=watched / "write.png", full_page=True)


@pytest.mark.slow
def test_sentences_are_typed_and_each_task_has_its_own_classes(opened, watched):
    tab, asked = opened
    tab.get_by_role("tab", name="Classify sentences").click()
    tab.get_by_label("a sentence", exact=True).fill("The bread was superb and the service was friendly.")
    tab.get_by_label("another one, which is compared with it").fill("The room was damp and the breakfast was stale.")
    cards = changed(tab, "Classify")
    tab.screenshot(path=watched / "classify.png", full_page=True)
    said = [(name.split(",")[0], text.split(" (")[0]) for name, *_, text, _ in cards]
    assert said[2:] == [("sentiment", "positive"), ("sentiment", "negative"), ("paraphrase", "not_equivalent")]
    tab.get_by_label("another one, which is compared with it").fill("")
    tab.get_by_label(re.compile("paraphrase")).uncheck()
    assert len(changed(tab, "Classify")) == 2
    assert asked and all(re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url) for url in asked), asked


@pytest.mark.slow
def test_what_cannot_be_answered_is_said_in_a_sentence_and_the_answers_stay(opened):
    tab, _ = opened
    before = answers(tab)
    for slot in demo.SLOTS:
        tab.get_by_label(slot, exact=True).fill("")
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.get_by_text("Fill in a slot first, such as the name.").wait_for()
    name = tab.get_by_label("name", exact=True)
    name.press_sequentially("x" * (demo.VALUE_LENGTH + 1))
    assert name.input_value() == "x" * demo.VALUE_LENGTH
    name.fill("[x]")
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.get_by_text("no square brackets: change 'name'").wait_for()
    assert answers(tab) == before


@pytest.mark.slow
def test_a_request_that_finds_the_queue_full_is_refused_and_the_page_answers_afterwards(address, opened):
    tab, _ = opened
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    write = config["dependencies"][0]["id"]
    data = [["no adapter"], "Quillon", *[""] * 7]

    def ask(number: int) -> int:
        body = json.dumps({"data": data, "fn_index": write, "session_hash": f"s{number}"}).encode()
        request = urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(request).status
        except HTTPError as error:
            return error.code

    with ThreadPoolExecutor(30) as crowd:
        codes = [*crowd.map(ask, range(30))]
    assert 200 in codes and 503 in codes
    assert changed(tab, "Write")


@pytest.mark.slow
def test_the_server_has_asked_for_no_address_beyond_this_machine(address, watched):
    urllib.request.urlopen(address).read()
    seen = watched / "seen.txt"
    assert not seen.exists(), seen.read_text()
    control = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('nowhere.invalid', 80)"
    watching = os.environ | {"PYTHONPATH": str(watched), "WATCHED": str(watched / "control.txt")}
    subprocess.run([sys.executable, "-c", control], env=watching, check=True)
    assert "nowhere.invalid" in (watched / "control.txt").read_text()
