from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

import files
from tasks.e2e import generator as e2e_generator
from tasks.e2e.data import PROTOCOLS, Example, data_fingerprint, group_by_context, load_builtin
from tasks.e2e.generator import generate
from tasks.e2e.metrics import slot_errors
from tasks.e2e.slot_errors import SLOTS, parse_mr

SPLITS = ("train", "dev", "test")
ROWS = {split: generate(split) for split in SPLITS}
EVERYTHING = [row for rows in ROWS.values() for row in rows]

# What a reader takes each value for, written without a look at the grammar: a slot said as any other value, or said
# without being there, is a fault of the generator.
STATED = {
    "eatType": {"coffee shop": r"coffee shop", "pub": r"\bpub\b", "restaurant": r"restaurant"},
    "food": {kind: rf"\b{kind}\b" for kind in ("Chinese", "English", "French", "Indian", "Italian", "Japanese")}
    | {"Fast food": r"\bfast food\b"},
    "priceRange": {
        "cheap": r"\bcheap\b|inexpensive|low-priced|low prices|prices are low",
        "moderate": r"\bmoderate(ly)?\b",
        "high": r"\bexpensive|high-priced|high prices?|price range is high|prices are high",
        "less than £20": r"less than £20\b",
        "£20-25": r"£20-25\b",
        "more than £30": r"more than £30\b",
    },
    "customer rating": {
        "low": r"\blow-rated|low customer rating|poor|\brated? (it as )?low|rating is low",
        "average": r"average",
        "high": r"high customer rating|highly rated|excellent|rating is high|ratings are high|rate it as high",
        "1 out of 5": r"1 out of 5|\bone[- ]star",
        "3 out of 5": r"3 out of 5|\bthree[- ]star",
        "5 out of 5": r"5 out of 5|\bfive[- ]star",
    },
    "area": {"city centre": r"city centre|centre of the city", "riverside": r"riverside|by the river"},
    "familyFriendly": {
        "no": r"adults-only|not (family|child)-friendly|isn't kid-friendly|not welcome|not allowed|does not welcome",
        "yes": r"(?<!not )(?<!isn't )(family|child|kid)-friendly|\bwelcomes|are welcome",
    },
}  # fmt: skip


def test_splits_have_their_sizes_and_share_no_meaning_representation():
    contexts = {split: {mr for mr, _ in rows} for split, rows in ROWS.items()}
    assert {split: (len(contexts[split]), len(rows)) for split, rows in ROWS.items()} == {
        "train": (400, 3200),
        "dev": (40, 320),
        "test": (60, 480),
    }
    assert len(contexts["train"] | contexts["dev"] | contexts["test"]) == 500


def test_references_of_a_meaning_representation_lie_together_and_differ():
    for rows in ROWS.values():
        groups = group_by_context([Example(mr, mr, text) for mr, text in rows])
        assert all(len(set(group.references)) == len(group.references) == 8 for group in groups)
        assert [group.mr for group in groups for _ in group.references] == [mr for mr, _ in rows]


def test_meaning_representations_have_three_to_eight_slots_in_e2es_order():
    sizes = Counter()
    for mr in dict(EVERYTHING):
        slots = list(parse_mr(mr))
        assert slots == [slot for slot in SLOTS if slot in slots] and slots[0] == "name"
        sizes[len(slots)] += 1
    assert sorted(sizes) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("slot", STATED)
def test_every_reference_states_a_slot_with_its_value_once_and_no_other(slot):
    seen = Counter()
    for mr, reference in EVERYTHING:
        slots = parse_mr(mr)
        text = reference.replace(slots["name"], "NAME").replace(slots.get("near", "\0"), "NEAR")
        stated = [value for value, pattern in STATED[slot].items() for _ in re.finditer(pattern, text, re.IGNORECASE)]
        assert stated == ([slots[slot]] if slot in slots else []), (mr, reference)
        seen.update(stated)
    assert set(seen) == set(STATED[slot]) == set(e2e_generator.VALUES[slot])


def test_name_and_neighbour_are_stated_verbatim_once_and_no_other_is():
    for mr, reference in EVERYTHING:
        slots = parse_mr(mr)
        for slot in ("name", "near"):
            stated = [value for value in e2e_generator.VALUES[slot] if value.lower() in reference.lower()]
            assert stated == ([slots[slot]] if slot in slots else []), (mr, reference)
            assert slot not in slots or reference.count(slots[slot]) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_slot_error_rate_finds_next_to_no_fault_until_references_are_swapped(protocol):
    examples = load_builtin("dev", protocol)
    mrs, references = ([getattr(example, field) for example in examples] for field in ("mr", "reference"))
    assert slot_errors(mrs, references)["rate"] < 0.01
    assert slot_errors(mrs, references[8:] + references[:8])["rate"] > 0.5


def test_references_are_tidy_english():
    for _, text in EVERYTHING:
        assert re.fullmatch(r"([A-Z][^.{}&]+\.)( [A-Z][^.{}&]+\.)*", text), text
        assert not re.search(r"  | [.,]|\b(\w+) \1\b|\ban? an?\b", text), text
        for head in ("with", "(that|where)"):
            assert not re.search(rf"\b{head} [^.,]*(?<!and )\b{head}\b", text), text
        assert not re.search(r"\ba (?!one)[aeiou]|\ban (?![aeiou])|\ban one", text, re.IGNORECASE), text


def test_but_joins_only_what_speaks_for_with_what_speaks_against():
    contrasts = [sentence for _, text in EVERYTHING for sentence in text.split(". ") if " but " in sentence]
    assert len(contrasts) > 20
    for sentence in contrasts:
        assert len(re.findall(STATED["familyFriendly"]["yes"] + "|" + STATED["familyFriendly"]["no"], sentence)) == 1


def test_sentences_vary():
    plain = []
    for mr, text in EVERYTHING:
        slots = parse_mr(mr)
        plain.append(text.replace(slots["name"], "NAME").replace(slots.get("near", "\0"), "NEAR"))
    openings = Counter(" ".join(text.split()[:2]) for text in plain)
    assert len(set(plain)) > 0.98 * len(plain)
    assert len(openings) > 60 and openings.most_common(1)[0][1] < len(plain) / 4
    lengths = Counter(text.count(". ") + 1 for text in plain)
    assert all(lengths[sentences] > 100 for sentences in (1, 2, 3, 4))


def test_rows_are_the_same_in_a_process_with_other_hashes():
    code = "from tasks.e2e import data; print(data.data_fingerprint(data.load_builtin('dev', 'challenge')))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    folder = files.ROOT / "code"
    other = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert other.stdout.strip() == data_fingerprint(load_builtin("dev", "challenge")), other.stderr


def test_a_change_of_the_data_is_noticed():
    """Printed by this very expression; whoever changes the grammar raises the task's version and these three."""
    assert {split: data_fingerprint(load_builtin(split, "challenge")) for split in SPLITS} == {
        "train": "bceeddbc26e0d231",
        "dev": "d9d8ff79d0a30e64",
        "test": "91bc580ad4e26ffc",
    }


def test_a_caller_may_change_the_list_it_gets():
    load_builtin("dev").clear()
    generate("dev").clear()
    assert len(load_builtin("dev")) == 320
