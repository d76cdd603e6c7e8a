"""Slot errors: by example, against an independent matcher on six systems, and on text in other spellings."""

from __future__ import annotations

import csv
import json
import re
import unicodedata

import numpy as np
import pytest

from tasks.e2e import slot_errors as matching
from tasks.e2e.metrics import slot_errors
from tasks.e2e.slot_errors import parse_mr

SYSTEMS = ("adapt", "chen", "dangnt", "harv", "tuda", "zhaw1")
MR = (
    "name[The Mill], eatType[pub], food[Italian], priceRange[more than £30], customer rating[3 out of 5], "
    "area[city centre], familyFriendly[no], near[Raja Indian Cuisine]"
)
TEXT = (
    "The Mill is an expensive Italian pub in the centre of the city near Raja Indian Cuisine. It is rated average and "
    "is not family-friendly."
)


def errors(mr: str, text: str) -> dict[str, int]:
    counts = slot_errors([mr], [text])
    return {kind: counts[kind] for kind in ("added", "missing", "wrong", "repeated") if counts[kind]}


def test_a_text_that_says_all_slots_in_other_words_has_no_error():
    assert slot_errors([MR], [TEXT]) == {
        "rate": 0.0, "per_output": [0], "added": 0, "missing": 0, "wrong": 0, "repeated": 0, "slots": 8
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("The Mill is", "Zizzi is", {"missing": 1}),  # not a name in these MRs, so nothing is known of it
        ("Raja Indian Cuisine", "Burger King", {"missing": 1}),
        ("pub", "place", {"missing": 1}),
        ("pub", "coffee shop", {"wrong": 1}),
        ("Italian", "French", {"wrong": 1}),
        ("Italian ", "", {"missing": 1}),  # the Indian of the place is not a cuisine
        ("expensive", "cheap", {"wrong": 1}),
        ("an expensive", "a", {"missing": 1}),
        ("rated average", "rated 5 out of 5", {"wrong": 1}),
        ("rated average", "rated", {"missing": 1}),
        ("centre of the city", "riverside", {"wrong": 1}),
        ("in the centre of the city", "north of the city centre", {"missing": 1}),
        ("is not family", "is family", {"wrong": 1}),
        (" and is not family-friendly", "", {"missing": 1}),
        ("expensive Italian", "cheap but expensive Italian", {"added": 1}),
        ("average and", "average, it is rated average and", {"repeated": 1}),
        (TEXT, "", {"missing": 8}),
        (TEXT, "The Mill. The Mill. The Mill is a pub, a pub.", {"missing": 6}),  # name and type may be taken up
    ],
)
def test_a_change_of_one_slot_is_one_error_of_its_kind(old, new, expected):
    assert old in TEXT
    assert errors(MR, TEXT.replace(old, new)) == expected


@pytest.mark.parametrize(
    ("words", "slot", "value"),
    [
        ("It has a high price range and a low customer rating", "priceRange", "high"),
        ("It has a high price range and a low customer rating", "customer rating", "low"),
        ("The price range is moderate and the rating is high", "priceRange", "moderate"),
        ("The price range is moderate and the rating is high", "customer rating", "high"),
        ("costs less than £20", "priceRange", "less than £20"),
        ("costs less than GBP 20", "priceRange", "less than £20"),
        ("costs less than £20", "priceRange", "less than GBP 20"),
        ("costs £20-25", "priceRange", "£20-25"),
        ("costs 20-25 GBP", "priceRange", "GBP 20-25"),
        ("costs more than £30", "priceRange", "more than £30"),
        ("costs more than 30GBP", "priceRange", "more than £30"),
        ("It is a low-cost place", "priceRange", "cheap"),
        ("rated three out of five stars", "customer rating", "3 out of 5"),
        ("a 1-star place", "customer rating", "1 out of 5"),
        ("it has excellent reviews", "customer rating", "high"),
        ("it doesn't allow kids", "familyFriendly", "no"),
        ("not a place to bring your family", "familyFriendly", "no"),
        ("children are not welcome", "familyFriendly", "no"),
        ("an adults only venue", "familyFriendly", "no"),
        ("kids are welcome", "familyFriendly", "yes"),
        ("great for the whole family", "familyFriendly", "yes"),
        ("on the banks of the river", "area", "riverside"),
        ("a downtown place", "area", "city centre"),
        ("food from Thailand: Thai", "food", "Thai"),  # a value no pattern knows
    ],
)
def test_the_words_state_the_value_and_no_other(words, slot, value):
    assert errors(f"{slot}[{value}]", words).get("missing", 0) + errors(f"{slot}[{value}]", words).get("wrong", 0) == 0
    others = {"priceRange": ["cheap", "moderate", "high"], "customer rating": ["low", "average", "high"]}
    others |= {"familyFriendly": ["yes", "no"], "area": ["riverside", "city centre"], "food": ["French", "Fast food"]}
    accepted = [other for other in others[slot] if not errors(f"{slot}[{other}]", words).keys() & {"missing", "wrong"}]
    assert len(accepted) <= 1


def test_a_slot_that_the_mr_lacks_is_added():
    mrs = ["name[Zizzi], eatType[pub]", "name[Cotto], near[The Bakers]"]
    assert slot_errors(mrs, ["Zizzi is a pub near The Bakers.", "Cotto is near The Bakers."])["per_output"] == [1, 0]
    assert slot_errors(mrs, ["Zizzi is a cheap pub by the river.", "Zizzi is near The Bakers."])["per_output"] == [2, 1]


def test_the_rate_is_all_errors_over_all_slots():
    counts = slot_errors(["name[Zizzi], eatType[pub]", "name[Cotto]"], ["Zizzi.", "It is cheap."])
    assert counts["rate"] == pytest.approx(3 / 3)
    assert (counts["added"], counts["missing"], counts["slots"]) == (1, 2, 3)


# ------------------------------------------------------------------------------------------------------- spellings
CAFE_MR = "name[Café Brazil], eatType[coffee shop], priceRange[£20-25], familyFriendly[yes], near[Fitzbillies' Hall]"
CAFE = "Café Brazil is a family-friendly coffee shop near Fitzbillies' Hall. It costs £20-25."
SPELLINGS = {
    "composed accents": str,
    "decomposed accents": lambda text: unicodedata.normalize("NFD", text),
    "no accents": lambda text: text.replace("é", "e"),
    "en dashes": lambda text: text.replace("-", "\u2013"),
    "minus signs": lambda text: text.replace("-", "\u2212"),
    "non-breaking hyphens": lambda text: text.replace("-", "\u2011"),
    "typographic apostrophes": lambda text: text.replace("'", "\u2019"),
    "reversed quotes as apostrophes": lambda text: text.replace("'", "\u201b"),
    "acute accents as apostrophes": lambda text: text.replace("'", "\u00b4"),
    "non-breaking spaces": lambda text: text.replace(" ", "\u00a0"),
    "full-width letters": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "soft hyphens": lambda text: text.replace("coffee", "cof\u00adfee"),
    "a byte order mark": lambda text: f"\ufeff{text}",
    "typographic quotation marks": lambda text: text.replace("Café Brazil", "\u201cCafé Brazil\u201d"),
    "capitals": str.upper,
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_text_has_no_error_however_unicode_writes_it(spelling):
    assert errors(CAFE_MR, spelling(CAFE)) == {}
    assert errors(CAFE_MR, spelling(CAFE.replace("25", "30").replace("Café", "Casa"))) == {"missing": 2}  # the control


@pytest.mark.parametrize("spelling", ["decomposed accents", "en dashes", "typographic apostrophes"])
def test_an_mr_asks_for_the_same_however_unicode_writes_it(spelling):
    assert errors(SPELLINGS[spelling](CAFE_MR), CAFE) == {}


def test_a_name_may_end_in_punctuation():
    assert errors("name[Yum!], near[Strada (Soho)]", "Yum! is near Strada (Soho).") == {}
    assert errors("name[Yum!], near[Strada (Soho)]", "Yum! is near Soho.") == {"missing": 1}


# ------------------------------------------------------------------------------------------------------ other rows
@pytest.mark.parametrize(
    "other",
    [
        ("food[Indian fusion]", "Indian fusion food."),
        ("food[fast]", "Fast."),
        ("priceRange[cheap and cheerful]", "Cheap and cheerful."),
        ("eatType[coffee]", "Coffee."),
        ("food[Thai]", "Thai food."),
    ],
)
@pytest.mark.parametrize("step", [1, -1])
def test_a_value_that_no_pattern_knows_leaves_the_other_rows_as_they_are(other, step):
    known = ("name[Zizzi], food[Fast food], area[city centre]", "Zizzi serves fast food in the city centre.")
    mrs, texts = zip(*(known, ("food[Indian]", "Indian food."), other)[::step], strict=True)
    assert slot_errors(mrs, texts)["per_output"] == [0, 0, 0]


def test_the_order_of_the_rows_changes_no_error():
    mrs, texts = ["familyFriendly[yes]", "familyFriendly[no]"], ["It welcomes kids.", "Bringing kids is not allowed."]
    assert slot_errors(mrs, texts)["per_output"] == slot_errors(mrs[::-1], texts[::-1])["per_output"] == [0, 0]


# ------------------------------------------------------------------------------------------ the independent matcher
def read_system(folder, system: str) -> tuple[list[str], list[str]]:
    """MRs and outputs as the official script reads them (see test_e2e_metrics.py)."""
    text = (folder / "e2e_metrics_golden" / f"{system}.tsv").read_text(encoding="utf-8")
    for wrong, right in (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é")):
        text = text.replace(wrong, right)
    rows = [line.split("\t") for line in text.splitlines() if line][1:]
    return [mr.strip(' "') for mr, _ in rows], [output.strip(' "') for _, output in rows]


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_independent_matcher_counts_nearly_the_same_errors(system, shared_data):
    peer = json.loads((shared_data / "e2e_metrics_golden" / "slot_errors.json").read_text())[system]
    ours = slot_errors(*read_system(shared_data, system))
    same = [bool(a) == bool(b) for a, b in zip(ours["per_output"], peer["errors_per_output"], strict=True)]
    assert ours["slots"] == peer["slots"]
    assert ours["rate"] == pytest.approx(peer["slot_error_rate"], abs=0.01)
    assert sum(same) / len(same) >= 0.95
    # The table of the module's docstring holds just these numbers.
    row = f"| {system} | {peer['slot_error_rate']:.4f} | {ours['rate']:.4f} | {100 * sum(same) / len(same):.1f}% |"
    assert row.replace("100.0%", "100%") in matching.__doc__


def test_another_mrs_text_is_full_of_errors(shared_data):
    """The control: with the outputs shifted by 100 MRs, agreement with the MR is gone."""
    mrs, outputs = read_system(shared_data, "tuda")
    assert slot_errors(mrs, outputs)["rate"] == 0
    assert slot_errors(mrs, outputs[100:] + outputs[:100])["rate"] > 0.3


def test_pre_tokenised_and_lower_cased_references_are_read_like_the_raw_ones(shared_data):
    with open(shared_data / "e2e" / "testset_w_refs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::3]
    mrs = [row["mr"] for row in rows]
    tokenised = (shared_data / "e2e_lora_format" / "test.txt").read_text(encoding="utf-8").splitlines()[::3]
    raw = slot_errors(mrs, [row["ref"] for row in rows])["per_output"]
    assert any(re.search(r"n 't|£ 20 - 25|it 's", line) for line in tokenised)
    assert slot_errors(mrs, [line.split("||")[1] for line in tokenised])["per_output"] == raw
    assert slot_errors(mrs, [row["ref"].lower() for row in rows])["per_output"] == raw


# ------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    "mr",
    [
        "",
        "name",
        "name[Zizzi",
        "name[]",
        "name[Zizzi] eatType[pub]",
        "name[Zizzi], eatType[pub],",
        "name[Zizzi], cuisine[Italian]",
        "name[Zizzi], name[Cotto]",
        "name : Zizzi | Type : pub",
        "name[Zizzi], near[-]",  # these values would be found in the texts of the other rows
        "name[Zizzi], near[ ]",
        "name[Zizzi], food[']",
        "name[Zizzi], food[\u2026]",
        "name[Zizzi], near[\u200b]",
        None,
        ["name[Zizzi]"],
    ],
)
def test_a_malformed_mr_is_named_with_the_format_it_should_have(mr):
    with pytest.raises(
        ValueError, match=re.escape(f"malformed meaning representation {mr!r}: expected `slot[value], ")
    ):
        parse_mr(mr)


def test_the_slots_of_an_mr_are_read_in_order():
    assert list(parse_mr("name[Blue Spice], priceRange[£20-25]").items()) == [
        ("name", "Blue Spice"),
        ("priceRange", "£20-25"),
    ]


@pytest.mark.parametrize(("mrs", "predictions"), [([], []), (["name[Zizzi]"], []), ([], ["Zizzi."])])
def test_mrs_and_predictions_must_be_as_many_and_at_least_one(mrs, predictions):
    message = f"expected one prediction for each MR, found {len(mrs)} MRs and {len(predictions)} predictions"
    with pytest.raises(ValueError, match=message):
        slot_errors(mrs, predictions)


@pytest.mark.parametrize(
    ("mrs", "predictions", "message"),
    [
        ("name[Zizzi]", ["Zizzi."], "mrs, found a plain string, 'name[Zizzi]': make it a list"),
        (["name[Zizzi]"], "Zizzi.", "predictions, found a plain string, 'Zizzi.': make it a list"),
        ([None], ["Zizzi."], "mrs, found an object of type NoneType, None at index 0"),
        (["name[Zizzi]"], [["Zizzi."]], "predictions, found an object of type list, ['Zizzi.'] at index 0"),
        (["name[Zizzi]"], np.array(["Zizzi."]), "predictions, found an object of type ndarray"),
        ([{"name": "Zizzi"}], ["Zizzi."], "mrs, found an object of type dict"),
    ],
)
def test_what_is_no_list_of_texts_is_named(mrs, predictions, message):
    with pytest.raises(TypeError, match=re.escape(f"expected a list of texts as {message}")):
        slot_errors(mrs, predictions)


@pytest.mark.parametrize(
    ("other", "mr", "text"),
    [
        ("name[Cotto], eatType[cafe]", "name[Zizzi], eatType[coffee shop]", "Zizzi is a cafe."),
        ("name[Cotto], priceRange[£20-£25]", "name[Zizzi], priceRange[£20-25]", "Zizzi costs £20-£25."),
        ("name[Cotto], area[city center]", "name[Zizzi], area[city centre]", "Zizzi is in the city center."),
        ("name[Cotto], near[Riverside]", "name[Zizzi], area[riverside]", "Zizzi is by the riverside."),
        ("name[Pub]", "name[Zizzi], eatType[pub]", "Zizzi is a pub."),
        ("name[Cotto], near[5]", "name[Zizzi], customer rating[5 out of 5]", "Zizzi is rated 5 out of 5."),
        ("name[A]", "name[Zizzi], eatType[pub]", "Zizzi is a pub."),
        ("name[The]", "name[Zizzi], area[riverside]", "Zizzi is by the riverside."),
        ("name[Cotto], food[a]", "name[Zizzi], eatType[pub]", "Zizzi is a pub."),
        ("name[Cotto], food[5]", "name[Zizzi], customer rating[5 out of 5]", "Zizzi is rated 5 out of 5."),
        ("name[Cotto], area[the]", "name[Zizzi], area[riverside]", "Zizzi is by the riverside."),
        ("name[Cotto], food[restaurant]", "name[Zizzi], eatType[restaurant]", "Zizzi is a restaurant."),
    ],
)
def test_a_value_of_another_row_changes_nothing_in_a_text_that_says_what_it_should(other, mr, text):
    assert slot_errors([mr], [text])["per_output"] == [0]
    assert slot_errors([other, mr], ["Cotto.", text])["per_output"][1] == 0


@pytest.mark.parametrize(
    ("mr", "text"),
    [
        ("name[Cotto], eatType[cafe]", "Cotto is a coffee shop."),
        ("name[Cotto], priceRange[£20-£25]", "Cotto is moderately priced."),
        ("name[Cotto], near[Riverside]", "Cotto is near Riverside."),
        ("name[A]", "A is here."),
    ],
)
def test_another_way_to_say_a_known_value_is_that_value_and_its_own_place_is_one(mr, text):
    assert slot_errors([mr], [text])["per_output"] == [0]
