"""Two sentence tasks of our own for the `quick` scale: sentiment of a review, and whether two sentences say the same.

Small grammars make them, always the same rows. Words alone do not give the label away. A review may negate ("was
anything but stale"), report an opinion it does not share, or concede a point against its verdict, which wins. A
paraphrase has other words, another order, the passive or the converse ("lent to", "borrowed from"). Any other pair is
made the same way after a change of meaning: of all of it, which is easy to see, or of one thing, which is not (two
roles swapped, one word replaced).

    generate("sentiment-builtin", "train")      # (("The bread was hardly fresh.",), 0), ...
    generate("paraphrase-builtin", "train")     # (("The kid is far taller than ...", "Compared with ..."), 1), ...
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

BUILTIN = ("sentiment-builtin", "paraphrase-builtin")
SPLITS = {"train": 2_000, "validation": 200}
Row = tuple[tuple[str, ...], int]  # one sentence or two; 1 is positive, or a paraphrase

# --- sentiment --------------------------------------------------------------------------------------------------------

SERVICE = (("rude", "slow", "careless"), ("friendly", "prompt", "attentive"))
PLOT = (("predictable", "muddled", "thin"), ("gripping", "clever", "moving"))
# Reviewed thing: part of it: (words against it, words for it).
REVIEWED = {
    "film": {
        "plot": PLOT,
        "acting": (("wooden", "flat", "overdone"), ("superb", "natural", "convincing")),
        "ending": (("rushed", "silly", "feeble"), ("satisfying", "touching", "surprising")),
    },
    "novel": {
        "plot": PLOT,
        "prose": (("clumsy", "dry", "stilted"), ("elegant", "vivid", "polished")),
        "humour": (("crude", "laboured", "tiresome"), ("subtle", "warm", "infectious")),
    },
    "hotel": {
        "room": (("grubby", "cramped", "damp"), ("spotless", "spacious", "cosy")),
        "breakfast": (("stale", "meagre", "tasteless"), ("fresh", "generous", "delicious")),
        "service": SERVICE,
    },
    "bakery": {
        "bread": (("stale", "soggy", "burnt"), ("fresh", "crisp", "fragrant")),
        "coffee": (("bitter", "weak", "lukewarm"), ("rich", "smooth", "excellent")),
        "service": SERVICE,
    },
    "concert": {
        "sound": (("muffled", "harsh", "tinny"), ("clear", "rich", "balanced")),
        "singer": (("bored", "nervous", "hoarse"), ("radiant", "confident", "captivating")),
        "atmosphere": (("lifeless", "dull", "tense"), ("electric", "magical", "joyful")),
    },
    "phone": {
        "screen": (("dim", "blurry", "scratched"), ("bright", "sharp", "flawless")),
        "battery": (("feeble", "unreliable", "hopeless"), ("reliable", "impressive", "tireless")),
        "camera": (("sluggish", "disappointing", "useless"), ("quick", "brilliant", "precise")),
    },
    "walking tour": {
        "guide": (("impatient", "boring", "rude"), ("patient", "funny", "knowledgeable")),
        "route": (("tedious", "confusing", "ugly"), ("varied", "beautiful", "charming")),
        "pace": (("exhausting", "hectic", "sluggish"), ("relaxed", "pleasant", "sensible")),
    },
}
# {same} is a word for the opinion, {other} one against it.
OPINIONS = (
    "the {part} was {same}", "the {part} was {same} and {same}", "the {part} was really {same}",
    "I found the {part} {same}", "the {part} was not {other}", "the {part} was never {other}",
    "the {part} was hardly {other}", "the {part} was anything but {other}", "the {part} was far from {other}",
    "nobody could call the {part} {other}", "the {part} could not have been more {same}",
    "the {part} was not just {same} but also {same}", "the {part} was called {other}, and that is wrong",
    "the {part} was called {same}, and that is right", "I expected the {part} to be {other}, yet it was {same}",
)  # fmt: skip
VERDICTS = (  # against, for
    ("I regret the {thing}", "I do not regret the {thing}"),
    ("I would not recommend the {thing}", "I would recommend the {thing}"),
    ("I would hesitate to choose the {thing} again", "I would not hesitate to choose the {thing} again"),
    ("I have never enjoyed a {thing} less", "I have never enjoyed a {thing} more"),
    ("the {thing} is not worth the money", "the {thing} is worth the money"),
    ("nobody should bother with the {thing}", "nobody should miss the {thing}"),
    ("the {thing} let us down", "the {thing} did not let us down"),
    ("the {thing} left us unimpressed", "the {thing} left us impressed"),
)
REVIEWS = (  # {opinion} and {verdict} agree with the label, {concession} does not
    "{opinion}", "{opinion}, and {opinion}", "{verdict}: {opinion}", "{opinion}, so {verdict}",
    "{concession}, but {verdict}", "although {concession}, {verdict}", "{verdict}, even though {concession}",
    "{concession}; all the same, {verdict}",
)  # fmt: skip


def _review(rng: random.Random) -> Row:
    label = rng.randrange(2)
    thing = rng.choice(list(REVIEWED))
    parts = iter(rng.sample(list(REVIEWED[thing]), 2))

    def opinion(side: int) -> str:
        part = next(parts)
        against_it, for_it = (rng.sample(words, 2) for words in REVIEWED[thing][part])
        same, other = (for_it, against_it) if side else (against_it, for_it)
        return _fill(rng.choice(OPINIONS), {"part": lambda: part, "same": same.pop, "other": other.pop})

    clauses = {
        "opinion": lambda: opinion(label),
        "concession": lambda: opinion(1 - label),
        "verdict": lambda: rng.choice(VERDICTS)[label].format(thing=thing),
    }
    return (_sentence(_fill(rng.choice(REVIEWS), clauses)),), label


# --- paraphrase -------------------------------------------------------------------------------------------------------

Choice = tuple[str, ...]  # different words for one meaning


class Predicate(NamedTuple):
    """One way to say what happened: its words, and the sentence frames they go into."""

    words: dict[str, str]
    frames: tuple[str, ...]


class Family(NamedTuple):
    """Meanings of one kind: the predicates of an inner tuple are synonyms; `swaps` are pairs of slots."""

    predicates: tuple[tuple[Predicate, ...], ...]
    slots: dict[str, tuple[Choice, ...]]
    swaps: tuple[tuple[str, str], ...]


PEOPLE: tuple[Choice, ...] = (
    ("doctor", "physician"), ("lawyer", "attorney"), ("child", "kid"), ("author", "writer"), ("boss", "manager"),
    ("policeman", "police officer"), ("visitor", "guest"), ("singer", "vocalist"), ("sailor", "seaman"),
    ("thief", "robber"), ("teacher", "schoolteacher"), ("baker",), ("farmer",), ("nurse",), ("neighbour",), ("judge",),
)  # fmt: skip
THINGS: tuple[Choice, ...] = (
    ("car", "automobile"), ("bike", "bicycle"), ("sofa", "couch"), ("picture", "image"), ("sack", "bag"),
    ("piano",), ("ladder",), ("camera",), ("map",), ("guitar",),
)  # fmt: skip
CIRCUMSTANCES: tuple[Choice, ...] = (
    ("at noon", "at midday"), ("at night", "during the night"), ("on Monday",), ("in April",), ("last year",),
    ("near the shop", "close to the store"), ("by the river", "on the bank of the river"), ("in the garden",),
    ("at the airport",), ("in the library",), ("outside the museum", "in front of the museum"), ("on the train",),
)  # fmt: skip
ACTS: tuple[Choice, ...] = (
    ("left", "departed"), ("arrived", "turned up"), ("fell asleep", "dozed off"), ("resigned", "stepped down"),
    ("apologised", "said sorry"), ("started to sing", "began singing"), ("laughed",), ("won a prize",), ("woke up",),
)  # fmt: skip


def _placed(*frames: str) -> tuple[str, ...]:
    return tuple(placed for frame in frames for placed in (f"{{circumstance}}, {frame}", f"{frame} {{circumstance}}"))


TRANSITIVE = _placed("the {a} {did} the {b}", "the {b} {was} by the {a}", "it was the {a} that {did} the {b}")
TRANSFER = _placed(
    "the {a} {did} the {thing} to the {b}",
    "the {a} {did} the {b} the {thing}",
    "the {b} {was} the {thing} by the {a}",
    "the {thing} {was} to the {b} by the {a}",
)
CONVERSE = _placed("the {b} {did} the {thing} from the {a}", "the {thing} {was} from the {a} by the {b}")
MORE = ("the {a} is {degree} {more} than the {b}", "compared with the {b}, the {a} is {degree} {more}")
LESS = ("the {b} is {degree} {less} than the {a}", "compared with the {a}, the {b} is {degree} {less}")
ORDER = (
    "the {a} {p} before the {b} {q}",
    "before the {b} {q}, the {a} {p}",
    "the {b} {q} after the {a} {p}",
    "after the {a} {p}, the {b} {q}",
    "first the {a} {p}, and then the {b} {q}",
)


VERBS = (  # synonyms, each as `base past participle`, or `base past` where the last two are the same
    ("help helped", "assist assisted"), ("phone phoned", "ring rang rung"), ("praise praised", "commend commended"),
    ("hire hired", "employ employed"), ("warn warned", "caution cautioned"), ("follow followed", "trail trailed"),
    ("deceive deceived", "trick tricked"), ("rescue rescued", "save saved"), ("annoy annoyed", "irritate irritated"),
    ("photograph photographed",), ("recognise recognised",),
)  # fmt: skip
TRANSFERS = (  # what a does to b; the same act as b's
    (("give gave given", "hand handed"), ()),
    (("send sent", "mail mailed"), ()),
    (("show showed shown",), ()),
    (("sell sold",), ("buy bought", "purchase purchased")),
    (("lend lent", "loan loaned"), ("borrow borrowed",)),
)
OPPOSITES = (
    ("older", "younger"), ("taller", "shorter"), ("richer", "poorer"), ("faster", "slower"), ("louder", "quieter"),
    ("stronger", "weaker"),
)  # fmt: skip


def _verbs(frames: tuple[str, ...], verbs: tuple[str, ...]) -> tuple[Predicate, ...]:
    forms = [(*verb.split(), verb.split()[-1])[:3] for verb in verbs]
    return tuple(Predicate(dict(zip(("base", "past", "participle"), form, strict=True)), frames) for form in forms)


TWO = {"a": PEOPLE, "b": PEOPLE}
EVENT = TWO | {"circumstance": CIRCUMSTANCES, "not": (("",), ("",), ("",), ("not ",))}
FAMILIES = (
    Family(tuple(_verbs(TRANSITIVE, verbs) for verbs in VERBS), EVENT, (("a", "b"),)),
    Family(
        tuple(_verbs(TRANSFER, verbs) + _verbs(CONVERSE, converses) for verbs, converses in TRANSFERS),
        EVENT | {"thing": THINGS},
        (("a", "b"),),
    ),
    Family(
        tuple((Predicate({"more": more, "less": less}, MORE + LESS),) for more, less in OPPOSITES),
        TWO | {"degree": (("much", "far"), ("slightly", "a little"))},
        (("a", "b"),),
    ),
    Family(((Predicate({}, ORDER),),), TWO | {"p": ACTS, "q": ACTS}, (("a", "b"), ("p", "q"))),
)
SWAPPED, UNLIKE = 1 / 4, 1 / 2  # shares of the pairs that are no paraphrase; the rest have one word replaced


def _pair(rng: random.Random) -> Row:
    label = rng.randrange(2)
    family = rng.choice(FAMILIES)
    choices: dict[str, tuple[Any, ...]] = {"predicate": family.predicates} | family.slots

    def possible(meaning: dict[str, Any]) -> bool:  # nobody does a thing to themselves
        return all(meaning[one] != meaning[two] for one, two in family.swaps)

    def draw() -> dict[str, Any]:
        return {slot: rng.choice(options) for slot, options in choices.items()}

    meaning = _until(possible, draw)
    other = meaning
    kind = rng.random()
    if not label and kind < SWAPPED:
        one, two = rng.choice(family.swaps)
        other = meaning | {one: meaning[two], two: meaning[one]}
    elif not label and kind < SWAPPED + UNLIKE:
        other = _until(lambda m: possible(m) and m != meaning, draw)
    elif not label:
        slot = rng.choice([slot for slot in choices if len(choices[slot]) > 1])
        other = _until(lambda m: possible(m) and m != meaning, lambda: meaning | {slot: draw()[slot]})
    texts = [_say(said, rng) for said in (meaning, other)]
    return tuple(rng.sample(texts, 2)), label


def _until(good: Callable[[dict[str, Any]], bool], draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return next(meaning for meaning in iter(draw, None) if good(meaning))


def _say(meaning: dict[str, Any], rng: random.Random) -> str:
    words = {slot: rng.choice(choice) for slot, choice in meaning.items()}
    predicate = words.pop("predicate")
    words |= predicate.words
    if "base" in words:
        words["did"] = "did not {base}".format(**words) if words["not"] else words["past"]
        words["was"] = "was {not}{participle}".format(**words)
    return _sentence(rng.choice(predicate.frames).format(**words))


# --- both -------------------------------------------------------------------------------------------------------------


def _fill(template: str, words: dict[str, Callable[[], str]]) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: words[slot[1]](), template)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


@functools.cache
def generate(name: str, split: str) -> tuple[Row, ...]:
    """Rows of `train` (2,000) or `validation` (200): always the same, and no sentence twice in all of them."""
    make = {"sentiment-builtin": _review, "paraphrase-builtin": _pair}[name]
    rng, seen, rows = random.Random(name), set(), []
    while len(rows) < sum(SPLITS.values()):
        texts, label = make(rng)
        if seen.isdisjoint(texts) and len(set(texts)) == len(texts):
            seen.update(texts)
            rows.append((texts, label))
    return tuple(rows[: SPLITS["train"]] if split == "train" else rows[SPLITS["train"] :])
