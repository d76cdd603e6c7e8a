"""What several adapters answer to one input: all of them in one batch, and each once more alone, for its time.

    write(bank, tokenizer, {"name": "Quillon", "food": "French"}, [BASE, "rank 4"])      a text by each
    classify(bank, tokenizer, tasks, ["The bread was fresh.", ""], ["sentiment"])        a class by each

People type what comes here. So it is bounded, and what cannot be answered is refused with a sentence (ValueError) that
does not repeat what was typed. `code/demo.py` is the page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from serving.adapters import AdapterBank
from tasks.catalogue import GlueTask
from tasks.e2e.beam_search import DecodingSettings, generate, room_for_prompt
from tasks.e2e.data import to_context
from tasks.glue import data as glue_data
from tasks.texts import require_texts

BASE = "no adapter"  # the row of the base model
MOST_ROWS = 8  # of a batch
VALUE_LENGTH, SENTENCE_LENGTH = 60, 300  # characters
SENTENCE_TOKENS = 128  # of a row, as in GLUE's runs
DECODING = DecodingSettings()  # the paper's


@dataclass(frozen=True)
class Answer:
    """One row: its adapter, the sentences it read where rows differ in that, what it says, and its time alone."""

    adapter: str
    read: tuple[str, ...]
    text: str
    seconds: float


@dataclass(frozen=True)
class Answers:
    """The rows of one batch, the time of that batch, and whether each row alone says the same."""

    rows: tuple[Answer, ...]
    seconds: float
    same_alone: bool


Row = tuple[str, tuple[str, ...]]  # an adapter's name, and the sentences of `Answer.read`


def write(
    bank: AdapterBank, tokenizer: PreTrainedTokenizerBase, slots: Mapping[str, str], names: Sequence[str]
) -> Answers:
    """The text of each adapter for a restaurant's slots (E2E), of which the empty ones are left out.

    Raises ValueError for slots that say nothing or too much, for too few or many names, and for an unknown one;
    TypeError for what is no text.
    """
    require_texts([*slots.values()], "slots")
    _require_known(names, [BASE, *bank.names])
    context = _context(slots)
    room = room_for_prompt(bank.model, DECODING) - 1  # the separator
    if (size := len(tokenizer.encode(context, add_special_tokens=False))) > room:
        raise ValueError(f"The model has room for {room} tokens of slots, these are {size}: shorten some values.")

    def ask(rows: list[Row]) -> list[str]:
        with bank.rows([None if name == BASE else name for name, _ in rows]):
            answers = generate(bank.model, tokenizer, [context] * len(rows), DECODING, progress=False)
        return [answer.text for answer in answers]

    return _answers([(name, ()) for name in names], ask)


def classify(
    bank: AdapterBank,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, GlueTask],
    sentences: Sequence[str],
    names: Sequence[str],
) -> Answers:
    """The class, with its probability, by each adapter and the head of its task; `tasks` has the task of each adapter.

    The adapter of a task with one sentence reads each that is there, in rows of their own; with two, both. Raises
    ValueError for sentences that are missing, too many or too long, for too few or many names, and for an unknown one;
    TypeError for what is no text.
    """
    require_texts(sentences, "sentences")
    given = [sentence for sentence in map(_words, sentences) if sentence]
    if not given:
        raise ValueError("Write a sentence first.")
    if max(map(len, given)) > SENTENCE_LENGTH:
        raise ValueError(f"A sentence may have {SENTENCE_LENGTH} characters, one has {max(map(len, given))}.")
    _require_known(names, tasks)
    rows: list[Row] = []
    for name in names:
        number = len(tasks[name].columns)
        if number == 2 != len(given):
            raise ValueError(f"The adapter {name!r} compares two sentences, found {len(given)}: write both.")
        rows += [(name, tuple(given))] if number == 2 else [(name, (sentence,)) for sentence in given]
    tokens = [glue_data.encode([glue_data.Example(read, 0)], tokenizer, SENTENCE_TOKENS) for _, read in rows]
    if any(row.truncated for row in tokens):
        raise ValueError(f"The model reads {SENTENCE_TOKENS} tokens at most, these sentences have more: shorten them.")
    encoded = {row: one.rows[0] for row, one in zip(rows, tokens, strict=True)}

    def ask(rows: list[Row]) -> list[str]:
        batch = glue_data.collate([encoded[row] for row in rows], tokenizer.pad_token_id)
        logits = bank.classify([name for name, _ in rows], batch)
        return [_answer(row, tasks[name]) for row, (name, _) in zip(logits, rows, strict=True)]

    return _answers(rows, ask)


def _answer(logits: Tensor, task: GlueTask) -> str:
    """The likeliest class with its share; where there are no classes, the number."""
    if not task.labels:
        return f"{float(logits[0]):.1f}"
    return f"{task.labels[int(logits.argmax())]} ({float(logits.softmax(-1).max()):.0%})"


def _require_known(names: Sequence[str], known: Collection[str]) -> None:
    if not all(name in known for name in names):
        raise ValueError(f"There is no such adapter: choose among {', '.join(known)}.")


def _words(text: str) -> str:
    return " ".join(text.split())


def _context(slots: Mapping[str, str]) -> str:
    """What the model reads; ValueError where a person has to change something."""
    given = {slot: value for slot, text in slots.items() if (value := _words(text))}
    if not given:
        raise ValueError("Fill in a slot first, such as the name.")
    for slot, value in given.items():
        if len(value) > VALUE_LENGTH:
            raise ValueError(f"A value may have {VALUE_LENGTH} characters, {slot!r} has {len(value)}.")
        if not any(map(str.isalnum, value)) or set("[]") & set(value):
            raise ValueError(f"A value has a letter or a digit and no square brackets: change {slot!r}.")
    return to_context(", ".join(f"{slot}[{value}]" for slot, value in given.items()))


def _timed(call: Callable[[list[Row]], list[str]], rows: list[Row]) -> tuple[list[str], float]:
    start = perf_counter()
    return call(rows), perf_counter() - start


def _answers(rows: list[Row], ask: Callable[[list[Row]], list[str]]) -> Answers:
    """`ask` for all rows together, then for each alone."""
    if not 1 <= len(rows) <= MOST_ROWS:
        raise ValueError(f"A batch here has 1 to {MOST_ROWS} rows, these would be {len(rows)}: choose other adapters.")
    together, seconds = _timed(ask, rows)
    alone = [_timed(ask, [row]) for row in rows]
    answers = [Answer(*row, text, time) for row, text, (_, time) in zip(rows, together, alone, strict=True)]
    return Answers(tuple(answers), seconds, all(text == one for text, ((one,), _) in zip(together, alone, strict=True)))
