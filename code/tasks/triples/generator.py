"""Triples of our own and texts for them, for the `quick` scale: places and machines that do not exist.

    generate("train")   # [("Lighthouse", [("Gannet_Point", "height", "41_metres"), ...], ["Gannet Point is ...", ...])]

Names have underscores and relations capitals inside, as WebNLG's. A text states every triple once. One category is in
the test split alone, so that scores on seen and unseen categories differ here too.
"""

from __future__ import annotations

import random
import re

SEED = "lora-triples-1"
SPLITS = {"train": 360, "dev": 30, "test": 30}  # distinct inputs of the seen categories, none in two splits
UNSEEN_INPUTS = 10  # in the test split, beside those
TEXTS = 3  # for each input, all different
SUBJECTS = {  # category -> its things
    "Lighthouse": ("Gannet_Point", "Old_Marrow_Head", "Skerry_Light", "Tern_Rock", "Wexcombe_Beacon"),
    "Ferry": ("Amber_Crossing", "Lady_of_Orrin", "Quiet_Heron", "Sound_Runner", "The_Blue_Alder"),
    "Orchard": ("Bramley_Rise", "Cold_Ash_Orchard", "Hollow_Lane", "Perrin_Slope", "Two_Wells"),
    "Windmill": ("Dunmere_Mill", "Kettle_Hill_Mill", "Sallow_Mill", "Thorn_Mill"),
}
SEEN = ("Lighthouse", "Ferry", "Orchard")
RELATIONS = {  # relation -> its values, its phrases
    "location": (("Orrin", "Wexcombe", "Lower_Sallow", "Port_Adair", "Tarn_Valley"),
                 ("is in {o}", "can be found in {o}", "lies in {o}")),
    "openingYear": (("1811", "1864", "1902", "1937", "1975"),
                    ("opened in {o}", "has been open since {o}", "was opened in {o}")),
    "owner": (("Orrin_Council", "The_Adair_Trust", "Mabel_Thwaite", "Hugo_Larkin"),
              ("is owned by {o}", "belongs to {o}", "is the property of {o}")),
    "nearestTown": (("Port_Adair", "Halden", "Upper_Perrin", "Stoke_Tarn"),
                    ("is close to {o}", "is near the town of {o}", "has {o} as its nearest town")),
    "yearlyVisitors": (("1,200", "5,400", "18,000", "32,500"),
                       ("has {o} visitors a year", "is visited by {o} people a year", "welcomes {o} visitors a year")),
}  # fmt: skip

Entry = tuple[str, list[tuple[str, str, str]], list[str]]  # category, triples, texts


def generate(split: str) -> list[Entry]:
    """The entries of `train`, `dev` or `test`; the same in every process."""
    splits = list(SPLITS)
    start = sum(SPLITS[earlier] for earlier in splits[: splits.index(split)])
    entries = _entries(SEEN, sum(SPLITS.values()))[start : start + SPLITS[split]]
    return entries + (_entries(("Windmill",), UNSEEN_INPUTS) if split == "test" else [])


def _entries(categories: tuple[str, ...], number: int) -> list[Entry]:
    rng = random.Random(f"{SEED} {categories}")
    entries: dict[str, Entry] = {}
    while len(entries) < number:
        category = rng.choice(categories)
        subject = rng.choice(SUBJECTS[category])
        relations = rng.sample(list(RELATIONS), rng.choice((1, 2, 2, 3)))
        triples = [(subject, relation, rng.choice(RELATIONS[relation][0])) for relation in relations]
        texts: list[str] = []
        while len(texts) < TEXTS:
            text = _text(triples, rng)
            texts += [text] if text not in texts else []
        entries.setdefault(str(sorted(triples)), (category, triples, texts))
    return list(entries.values())


def _text(triples: list[tuple[str, str, str]], rng: random.Random) -> str:
    """`X is in Y and belongs to Z.`, in any order of the triples, or with a sentence more."""
    subject = triples[0][0].replace("_", " ")
    phrases = [
        rng.choice(RELATIONS[relation][1]).format(o=value.replace("_", " "))
        for _, relation, value in rng.sample(triples, len(triples))
    ]
    first, *rest = phrases
    text = f"{subject} {first}"
    for number, phrase in enumerate(rest):
        text += f". It {phrase}" if number else rng.choice((f" and {phrase}", f", which {phrase}", f". It {phrase}"))
    return re.sub(r"\s+", " ", text) + "."
