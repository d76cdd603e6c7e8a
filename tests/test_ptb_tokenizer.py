"""The treebank tokens: by example, and against Stanford's own program on the real E2E texts."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks.e2e.ptb_tokenizer import ptb_tokenize

# What pycocoevalcap.tokenizer drops after Stanford's program.
DROPPED = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


EXAMPLES = [
    ("The Mill is a cheap, family-friendly pub.", "the mill is a cheap family-friendly pub"),
    ("It's £20-25; they're kids' food", "it 's # 20-25 they 're kids food"),
    ("Isn't it child friendly? You can't, cannot!", "is n't it child friendly you ca n't can not"),
    ("it 's £ 20 - 25 , is n't it", "it 's # 20 25 is n't it"),
    ("isn 't family - friendly", "isn t family friendly"),
    ("It’s “cheap” – don’t go…", "it 's cheap do n't go"),
    ("5 out of 5, 4.5, 3/5, 5-star, 20.00.", "5 out of 5 4.5 3/5 5-star 20.00"),
    ("Café Rouge (near St. John's Rd.)", "café rouge -lrb- near st. john 's rd. -rrb-"),
    ("in the city centre., near", "in the city centre. near"),
    ("good food.It is French,family-friendly", "good food.it is french,family-friendly"),
    ("Hors d'oeuvres at O'Connor's", "hors d'oeuvres at o'connor 's"),
    ("really?! $20 or 20€", "really ?! $ 20 or 20 $"),
    ("", ""),
    (" ... -- ' \n", ""),
]


@pytest.mark.parametrize(("text", "tokens"), EXAMPLES)
def test_a_text_becomes_lower_cased_treebank_tokens_without_punctuation(text, tokens):
    assert ptb_tokenize(text) == tokens.split()


def e2e_texts(folder: Path) -> list[str]:
    """All references of the three sets, raw and as the LoRA authors pre-tokenised them, and six systems' outputs."""
    texts = []
    for name in ("trainset", "devset", "testset_w_refs"):
        with open(folder / "e2e" / f"{name}.csv", encoding="utf-8", newline="") as file:
            texts += [row["ref"] for row in csv.DictReader(file)]
    for path in sorted((folder / "e2e_lora_format").glob("*.txt")):
        texts += [line.split("||")[1] for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted((folder / "e2e_metrics_golden").glob("*.tsv")):
        texts += [line.split("\t")[1].strip('"') for line in path.read_text(encoding="utf-8").splitlines() if line]
    return sorted(set(texts))


def java_tokenize(texts: list[str]) -> list[list[str]]:
    package = find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        pytest.skip("Stanford's tokenizer needs Java and the package pycocoevalcap")
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    # A line between any two texts, because Java looks into the next line to judge the full stop of an initial.
    result = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input="".join(f"{' '.join(text.split())}\nx\n" for text in texts).encode(),
        capture_output=True,
        timeout=600,
        check=True,
    )
    lines = result.stdout.decode().splitlines()[::2]
    return [[token for token in line.split(" ") if token and token not in DROPPED] for line in lines]


def disagreements(texts: list[str], tokenize) -> list[str]:
    return [text for text, java in zip(texts, java_tokenize(texts), strict=True) if tokenize(text) != java]


def test_the_examples_have_the_tokens_of_stanfords_program():
    assert disagreements([text for text, _ in EXAMPLES], ptb_tokenize) == []


def test_a_sample_of_the_e2e_texts_has_the_tokens_of_stanfords_program(shared_data):
    # Where the two could differ: everything with more than letters, blanks and a full stop.
    texts = [text for text in e2e_texts(shared_data) if re.search(r"[^\w\s.,£-]|\w[.,]\w|\d-", text)][::10]
    assert len(texts) > 500
    assert disagreements(texts, ptb_tokenize) == []
    assert len(disagreements(texts, lambda text: re.findall(r"[\w£'-]+", text.lower()))) > len(texts) / 2


@pytest.mark.slow
def test_all_e2e_texts_have_the_tokens_of_stanfords_program(shared_data):
    texts = e2e_texts(shared_data)
    assert len(texts) > 60_000
    assert disagreements(texts, ptb_tokenize) == []
