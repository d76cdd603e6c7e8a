"""E2E-like data of our own for the `quick` scale: restaurants that do not exist, described by a small grammar.

Slots and their closed values (food, price, rating, area, ...) are E2E's, so that all code for E2E reads this. Names,
neighbours, sentences and the grammar are ours. A reference begins with one of a few sentence plans. Its phrases put a
slot's value before the noun (`before`), after it (`after`), into a predicate (`verb`) or into a sentence of its own
(`clause`). One or two further sentences state the slots left over. Every slot of the meaning representation is stated
once, and nothing else.

    generate("train")   # [("name[Quillon], eatType[pub], near[Halden Library]", "Quillon is a pub near ..."), ...]
"""

from __future__ import annotations

import functools
import random
import re

SEED = "lora-e2e-1"  # a string: random.Random hashes it the same way in every process
SPLITS = {"train": 400, "dev": 40, "test": 60}  # distinct meaning representations, none in two splits
REFERENCES = 8  # for each of them, all different
SLOTS_PER_MR = {3: 1, 4: 2, 5: 4, 6: 4, 7: 3, 8: 2}  # number of slots: weight

NAMES = (
    "Bellweather", "Chez Adélie", "Fennimore", "Harrow House", "Juniper Row", "Kestrel", "Little Almanac",
    "Marrow and Sage", "Ochre", "Pomander", "Quillon", "Saltbox", "The Copper Kettle", "The Crooked Elm",
    "The Lantern Yard", "The Ninth Bell", "The Old Signal", "The Paper Fox", "The Tin Whistle", "The Velvet Otter",
    "The Wandering Goat", "Thistledown", "Umber and Oak", "Vesperine",
)  # fmt: skip
NEIGHBOURS = (
    "Corn Hill Station", "Halden Library", "Larkfield Market", "Mercer Theatre", "Observatory Hall", "Orchard Gallery",
    "Pinnock Gardens", "The Glass Arcade", "The Merchant Hotel", "The Old Foundry", "The Weighbridge",
    "Tollgate Museum",
)  # fmt: skip
VALUES = {
    "name": NAMES,
    "eatType": ("coffee shop", "pub", "restaurant"),
    "food": ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("city centre", "riverside"),
    "familyFriendly": ("yes", "no"),
    "near": NEIGHBOURS,
}

Phrases = dict[str, tuple[str, ...]]
CUISINE: Phrases = {
    "before": ("{v}",),
    "after": ("serving {v} food", "with {v} dishes on the menu", "that specialises in {v} cooking", "for {v} food"),
    "verb": ("serves {v} food", "offers {v} dishes", "has a {v} menu", "specialises in {v} cuisine"),
    "clause": ("the menu is {v}", "{v} food is served", "the kitchen prepares {v} meals", "the cooking is {v}"),
}
AMOUNT: Phrases = {
    "after": ("with prices of {v}", "in the {v} price range", "where a meal costs {v}"),
    "verb": ("charges {v}", "has a price range of {v}", "has prices of {v}", "asks {v} for a meal"),
    "clause": ("a meal costs {v}", "the price range is {v}", "dinner will cost you {v}", "you can expect to pay {v}"),
}
SCORE: Phrases = {
    "before": ("{n}-star", "{n} star"),
    "after": ("with a customer rating of {v}", "rated {v} by customers", "that customers rate {v}"),
    "verb": (
        "has a customer rating of {v}",
        "is rated {v}",
        "scores a customer rating of {v}",
        "is rated {v} by guests",
    ),
    "clause": ("customers rate it {v}", "the customer rating is {v}", "guests have rated it {v}"),
}
PLACE: Phrases = {
    "where": ("{p}",),
    "after": ("{p}", "{p}", "located {p}", "that can be found {p}"),
    "verb": ("is {p}", "is located {p}", "stands {p}", "can be found {p}", "sits {p}"),
    "clause": ("you will find it {p}", "it lies {p}", "you can visit it {p}"),
}
# Values of closed slots that have words of their own.
WORDS: dict[tuple[str, str], Phrases] = {
    ("food", "Fast food"): {
        "before": ("fast food",),
        "after": ("serving fast food", "with fast food on the menu", "that sells fast food", "for fast food"),
        "verb": ("serves fast food", "offers fast food", "sells fast food", "specialises in fast food"),
        "clause": ("fast food is served", "the menu is fast food", "the kitchen prepares fast food"),
    },
    ("priceRange", "cheap"): {
        "before": ("cheap", "inexpensive", "low-priced"),
        "after": ("with low prices", "with cheap prices", "that is cheap"),
        "verb": ("is cheap", "has low prices", "is inexpensive", "charges low prices"),
        "clause": ("prices are low", "meals are cheap", "a visit is inexpensive"),
    },
    ("priceRange", "moderate"): {
        "before": ("moderately priced",),
        "after": ("with moderate prices", "in the moderate price range", "that is moderately priced"),
        "verb": ("is moderately priced", "has moderate prices", "has a moderate price range"),
        "clause": ("prices are moderate", "the price range is moderate", "meals are moderately priced"),
    },
    ("priceRange", "high"): {
        "before": ("expensive", "high-priced"),
        "after": ("with high prices", "in the high price range", "that is expensive"),
        "verb": ("is expensive", "has high prices", "has a high price range", "charges high prices"),
        "clause": ("prices are high", "meals are expensive", "the price range is high"),
    },
    ("customer rating", "low"): {
        "before": ("low-rated", "poorly rated"),
        "after": ("with a low customer rating", "with poor customer reviews", "that is poorly rated"),
        "verb": ("has a low customer rating", "is poorly rated", "gets poor reviews", "is rated low by customers"),
        "clause": ("customers rate it as low", "the customer rating is low", "its customer reviews are poor"),
    },
    ("customer rating", "average"): {
        "before": ("average-rated",),
        "after": ("with an average customer rating", "with average customer reviews", "that is rated as average"),
        "verb": ("has an average customer rating", "is rated average by customers", "gets average reviews"),
        "clause": ("customers rate it as average", "the customer rating is average", "its reviews are average"),
    },
    ("customer rating", "high"): {
        "before": ("highly rated",),
        "after": ("with a high customer rating", "with excellent customer reviews", "that is highly rated"),
        "verb": ("has a high customer rating", "is highly rated", "gets excellent reviews", "is highly rated by all"),
        "clause": ("customers rate it as high", "the customer rating is high", "its customer ratings are high"),
    },
    ("familyFriendly", "yes"): {
        "before": ("family-friendly", "child-friendly", "kid-friendly"),
        "after": ("that welcomes families", "that is family-friendly", "where children are welcome"),
        "verb": ("is family-friendly", "welcomes children", "is child-friendly", "welcomes families"),
        "clause": ("children are welcome", "families are welcome", "kids are welcome"),
    },
    ("familyFriendly", "no"): {
        "before": ("adults-only",),
        "after": ("that is not family-friendly", "where children are not welcome", "that does not welcome families"),
        "verb": ("is not family-friendly", "does not welcome children", "is not child-friendly", "isn't kid-friendly"),
        "clause": ("children are not welcome", "families are not allowed", "kids are not welcome"),
    },
}  # fmt: skip
WHERE: dict[str, tuple[str, ...]] = {
    "city centre": ("in the city centre", "in the centre of the city", "in the city centre area"),
    "riverside": ("in the riverside area", "by the river", "on the riverside", "at the riverside"),
    "near": ("near {v}", "close to {v}", "next to {v}", "beside {v}", "opposite {v}", "a short walk from {v}"),
}
NUMBER = {"1 out of 5": "one", "3 out of 5": "three", "5 out of 5": "five"}
NOUNS = ("place", "venue", "spot")  # where the meaning representation has no eatType
GOOD = {"priceRange[cheap]", "priceRange[less than £20]", "customer rating[high]", "customer rating[5 out of 5]",
        "familyFriendly[yes]"}  # fmt: skip
BAD = {"priceRange[high]", "priceRange[more than £30]", "customer rating[low]", "customer rating[1 out of 5]",
       "familyFriendly[no]"}  # fmt: skip
# Never in one sentence, where the words of one may be read as the other's: "a low-rated pub with high prices".
RIVALS = {"priceRange": "customer rating", "customer rating": "priceRange"}
RELATIVE = ("that ", "where ")
MODIFIER_ORDER = ("customer rating", "priceRange", "familyFriendly", "food", "area", "near")

# {before} and {after} take up to two slots each, {front}, {where}, {verb} and {clause} just one; & becomes and or but.
OPENINGS = (
    "{name} is {before}{after}", "{name} is {before}{after}", "there is {before} called {name}{after}",
    "{front}, {name} is {before}{after}", "{where} is {name}, {before}{after}", "{full_name} {verb} & {verb}",
    "{where}, you will find {before} called {name}{after}", "{name}, {before}{after}, {verb}",
    "{before}{after}, {name} {verb}", "if you are looking for {before}{after}, try {name}",
    "try {name} if you want {before}{after}",
)  # fmt: skip
FOLLOW_UPS = (
    "{it} {verb}", "{clause}", "{it} {verb} & {verb}", "{it} {verb} & {verb}", "{clause}, & {clause}",
    "{clause}, & it {verb}",
)  # fmt: skip


def generate(split: str) -> list[tuple[str, str]]:
    """Rows (meaning representation, reference) of `train`, `dev` or `test`, grouped; the same in every process."""
    splits = list(SPLITS)
    start = sum(SPLITS[earlier] for earlier in splits[: splits.index(split)])
    rows = []
    for mr, slots in list(_meaning_representations().items())[start : start + SPLITS[split]]:
        rng = random.Random(SEED + mr)
        references: list[str] = []
        while len(references) < REFERENCES:
            reference = _reference(slots, rng)
            if reference not in references:
                references.append(reference)
        rows += [(mr, reference) for reference in references]
    return rows


@functools.cache
def _meaning_representations() -> dict[str, dict[str, str]]:
    rng = random.Random(SEED)
    slots_by_mr: dict[str, dict[str, str]] = {}
    while len(slots_by_mr) < sum(SPLITS.values()):
        (count,) = rng.choices(list(SLOTS_PER_MR), list(SLOTS_PER_MR.values()))
        chosen = ["name", *rng.sample(list(VALUES)[1:], count - 1)]
        slots = {slot: rng.choice(values) for slot, values in VALUES.items() if slot in chosen}
        slots_by_mr[", ".join(f"{slot}[{value}]" for slot, value in slots.items())] = slots
    return slots_by_mr


@functools.cache
def _phrases(slot: str, value: str) -> Phrases:
    """All phrases for a slot's value, by role; a role that it cannot play is absent."""
    general = {"food": CUISINE, "priceRange": AMOUNT, "customer rating": SCORE}
    patterns = WORDS.get((slot, value)) or general.get(slot, PLACE)
    places = [place.format(v=value) for place in WHERE.get("near" if slot == "near" else value, ("",))]
    phrases = {
        role: tuple(text.format(v=value, n=NUMBER.get(value), p=place) for place in places for text in texts)
        for role, texts in patterns.items()
    }
    front = tuple(text for text in phrases["after"] if not text.startswith(RELATIVE))
    return phrases | {"front": front}


def _reference(slots: dict[str, str], rng: random.Random) -> str:
    """One text that states every slot once."""
    left = [slot for slot in slots if slot not in ("name", "eatType")]
    rng.shuffle(left)
    used: list[str] = []  # in the sentence being written

    def take(role: str, at_most: int = 1) -> list[str]:
        taken = []
        for slot in list(left):
            if len(taken) < at_most and RIVALS.get(slot) not in used and role in _phrases(slot, slots[slot]):
                left.remove(slot)
                used.append(slot)
                taken.append(slot)
        return [rng.choice(_phrases(slot, slots[slot])[role]) for slot in sorted(taken, key=MODIFIER_ORDER.index)]

    def before() -> str:
        return " ".join(["a", *take("before", rng.choice((0, 1, 1, 2))), slots.get("eatType") or rng.choice(NOUNS)])

    def after() -> str:
        phrases = take("after", rng.choice((0, 1, 1, 2)) if used else 1)
        heads = {"that" if text.startswith(RELATIVE) else text.split()[0] for text in phrases}
        glue = " and " if len(heads) < len(phrases) else " "
        return f" {glue.join(sorted(phrases, key=lambda text: text.startswith(RELATIVE)))}".rstrip()

    name = slots["name"]
    fixed = {"name": name, "full_name": f"the {slots['eatType']} {name}" if "eatType" in slots else name}
    written = {"before": before, "after": after, "it": lambda: rng.choice(("it", "it", "the place"))}

    def fill(match: re.Match[str]) -> str:
        role = match[1]
        return fixed[role] if role in fixed else written[role]() if role in written else take(role)[0]

    def sentence(plans: tuple[str, ...]) -> str:
        everything = list(left)
        while True:
            left[:], used[:] = everything, []
            try:
                text = re.sub(r"{(\w+)}", fill, rng.choice(plans))
            except IndexError:  # no slot left that can play a role of this plan: try another plan
                continue
            stated = {f"{slot}[{slots[slot]}]" for slot in used}
            text = text.replace("&", "but" if stated & GOOD and stated & BAD else "and")
            text = re.sub(r"\ba(?= (?!one)[aeiou])", "an", text, flags=re.IGNORECASE)
            return f"{text[0].upper()}{text[1:]}."

    sentences = [sentence(OPENINGS)]
    while left:
        sentences.append(sentence(FOLLOW_UPS))
    return " ".join(sentences)
