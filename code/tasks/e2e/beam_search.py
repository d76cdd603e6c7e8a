"""Beam search from meaning representation to sentence: how Tables 3, 13 and 14 are decoded.

The search is the official one (`gpt2_beam.py`, section D.3's beam 10), so that a score differs from
the paper's by its model and not by its decoder:
https://github.com/microsoft/LoRA/blob/c4593f0/examples/NLG/src/gpt2_beam.py

    answers = generate(model, tokenizer, contexts, DecodingSettings(length_penalty=0.8))

A finished beam scores `sum log p / length ** penalty`; its length counts the generated tokens with
the end token, not the prompt. `transformers`' `generate` scores alike, but searches differently:

* Of the `beams` best candidates some end. The official search goes on with the rest and has all
  its beams back a step later; `generate` promotes lower candidates to fill the places at once.
* The official search forbids repeating an n-gram of the generated tokens, before the softmax, so
  that the other tokens share its probability. `generate` forbids the prompt's n-grams too, and so
  the copy of a long name, and does not renormalise.
* The official search takes all its steps. Once `beams` have finished, `generate` stops when its
  best live total, divided by the present length, falls behind the worst of them.

The search here has none of the three. The tests compare it with the official rules in plain lists,
and with `generate` corrected by a stopping criterion and a logits processor. Three shortcuts leave
the output as it is: a distinct context is decoded once, a beam that can no longer win is dropped,
and the beams of a context share one cache. Contexts may have adapters of their own (`batch_rows.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from batch_rows import only_rows, row_owners
from experiments.settings import Settings, check_values
from families import positions
from tasks.e2e.data import OFFICIAL_LENGTH, separator_id
from tasks.texts import require_texts

BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class DecodingSettings:
    """The paper's decoding of E2E (Table 11); the official README has a length penalty of 0.8.

    `no_repeat_ngram` = 0 allows any repetition; `batch_size` counts contexts, not beams.
    """

    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64
    batch_size: int = 16
    blank_line_ends: bool = True

    def __post_init__(self) -> None:
        check_values(self)

    @classmethod
    def of(cls, settings: Settings, batch_size: int) -> DecodingSettings:
        """The decoding of a run with these settings, so many contexts at once."""
        names = ("beams", "length_penalty", "no_repeat_ngram", "max_new_tokens", "blank_line_ends")
        return cls(batch_size=batch_size, **{name: getattr(settings, name) for name in names})


@dataclass(frozen=True)
class Generation:
    """One answer: its text, its number of generated tokens with the end token, and whether it ended.

    An answer that has not ended was cut at `max_new_tokens`.
    """

    text: str
    tokens: int
    ended: bool


def end_token_ids(tokenizer: PreTrainedTokenizerBase, blank_line_ends: bool = True) -> list[int]:
    """The tokens that end an answer: `<|endoftext|>` and, where it is a single token, the blank line (GPT-2's 628)."""
    blank_line = tokenizer.encode(BLANK_LINE, add_special_tokens=False) if blank_line_ends else []
    return [tokenizer.eos_token_id, *(blank_line if len(blank_line) == 1 else [])]


def room_for_prompt(model: PreTrainedModel, settings: DecodingSettings | Settings) -> int:
    """How many tokens a prompt may have beside its answer.

    Raises ValueError if there is no room for one, or if the beams are more than the model has tokens to begin with.
    """
    longest, tokens = min(OFFICIAL_LENGTH, positions(model)), model.config.vocab_size
    if settings.max_new_tokens >= longest:
        raise ValueError(
            f"max_new_tokens must be below the {longest} positions of a sequence, to leave room for the context; "
            f"found {settings.max_new_tokens}"
        )
    if settings.beams > tokens:
        raise ValueError(f"beams must be at most the {tokens} tokens of the model, found {settings.beams}")
    return longest - settings.max_new_tokens


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[str],
    settings: DecodingSettings,
    progress: bool = True,
) -> list[Generation]:
    """Decode each context into its best answer, in the order given.

    The prompt is the context's tokens and the `<|endoftext|>` that separates it from the completion. A long one
    keeps only its last tokens, to leave room for `max_new_tokens`. The text is cut at `<|endoftext|>`, then at a blank
    line, and stripped.

    Raises:
        TypeError: `contexts` is no list of strings.
        ValueError: as `room_for_prompt`.
        FloatingPointError: the model's logits are not finite.
    """
    require_texts(contexts, "contexts")
    room = room_for_prompt(model, settings)
    ends = end_token_ids(tokenizer, settings.blank_line_ends)
    inputs = list(zip(contexts, row_owners(len(contexts)), strict=True))
    row = {one: place for place, one in reversed([*enumerate(inputs)])}  # of each distinct input
    prompts = {
        one: [*tokenizer.encode(one[0], add_special_tokens=False), separator_id(tokenizer)][-room:] for one in inputs
    }
    by_length = sorted(prompts, key=lambda one: len(prompts[one]))
    answers: dict[tuple, Generation] = {}
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(prompts), desc="decoding", unit="MR", disable=not progress) as bar:
            for start in range(0, len(by_length), settings.batch_size):
                batch = by_length[start : start + settings.batch_size]
                with only_rows([row[one] for one in batch]):
                    best = beam_search(model, [prompts[one] for one in batch], ends, settings)
                for one, tokens in zip(batch, best, strict=True):
                    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
                    text = text.split(tokenizer.eos_token)[0].split(BLANK_LINE)[0].strip()
                    answers[one] = Generation(text, len(tokens), ended=tokens[-1] in ends)
                bar.update(len(batch))
    finally:
        model.train(was_training)
    return [answers[one] for one in inputs]


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel, prompts: list[list[int]], end_ids: list[int], settings: DecodingSettings
) -> list[list[int]]:
    """The tokens of the best answer to each prompt, with its end token if it ended.

    A batch holds one row a prompt, with its live beams side by side. The beams are queries to one cache, in which
    each sees the prompt and its own ancestors only: a beam that branches copies a row of `visible`, not its keys.
    """
    device, limit, penalty = model.device, settings.max_new_tokens, settings.length_penalty
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    visible = torch.arange(longest, device=device) >= longest - lengths[:, None]  # False on the left padding
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=ids,
        attention_mask=visible.long(),
        position_ids=(visible.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits  # (rows, beams, vocabulary); at first one beam a row

    visible = visible[:, None]  # (rows, beams, keys)
    history = ids.new_empty(len(prompts), 1, 0)  # (rows, beams, generated tokens)
    totals = torch.zeros(len(prompts), 1, device=device)  # (rows, beams): sum log p
    best = totals.new_full((len(prompts),), -torch.inf)
    rows = list(range(len(prompts)))  # the prompt of each row
    answers: list[list[int]] = [[] for _ in prompts]
    ends = torch.tensor(end_ids, device=device)

    for length in range(1, limit + 1):
        totals, parents, tokens = _best_continuations(logits.float(), totals, history, settings)
        if totals.isnan().any():
            raise FloatingPointError(
                "expected finite logits, found NaN or infinite ones: the model's weights are broken"
            )
        history = torch.cat((history.take_along_dim(parents[..., None], dim=1), tokens[..., None]), dim=-1)

        finished = torch.isin(tokens, ends) | (length == limit)
        score, winner = totals.masked_fill(~finished, -torch.inf).max(dim=1)
        score = score / length**penalty
        for row in (score > best).nonzero().flatten().tolist():
            answers[rows[row]] = history[row, winner[row]].tolist()
        best = torch.maximum(best, score)

        # A total can only fall, so this is the most that a beam can still score. A beam that cannot win displaces only
        # candidates below it, which cannot win either: dropping it leaves the winner the same.
        reach = totals / limit**penalty
        live = ~finished & (reach > best[:, None])
        if not live.any():
            break
        kept = live.any(dim=1).nonzero()
        totals, order = totals.masked_fill(~live, -torch.inf)[kept[:, 0]].topk(int(live.sum(dim=1).max()))
        history, tokens = history[kept, order], tokens[kept, order]
        visible = visible[kept, parents[kept, order]]
        best, lengths = best[kept[:, 0]], lengths[kept[:, 0]]
        visible = _forget(cache, visible, kept, all_rows=len(kept) == len(rows))
        rows = [rows[row] for row in kept[:, 0].tolist()]

        own = torch.eye(tokens.shape[1], dtype=torch.bool, device=device).expand(len(tokens), -1, -1)
        visible = torch.cat((visible, own), dim=-1)
        hidden = torch.zeros_like(visible, dtype=model.dtype).masked_fill(~visible, torch.finfo(model.dtype).min)
        with only_rows(rows):
            logits = model(
                input_ids=tokens,
                attention_mask=hidden[:, None],
                position_ids=(lengths + length - 1)[:, None].expand_as(tokens),
                past_key_values=cache,
            ).logits

    return answers


def _best_continuations(
    logits: Tensor, totals: Tensor, history: Tensor, settings: DecodingSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The `beams` best one-token continuations of each row: totals, parent beams and tokens, each (rows, beams)."""
    n, length = settings.no_repeat_ngram, history.shape[-1]
    if 0 < n <= length:
        ngrams = history.unfold(-1, n, 1)  # (rows, beams, length - n + 1, n)
        repeats = (ngrams[..., :-1] == history[..., None, length - n + 1 :]).all(dim=-1)
        row, beam, start = repeats.nonzero(as_tuple=True)
        logits[row, beam, ngrams[row, beam, start, -1]] = -torch.inf
    # Within a beam the order of log p is that of the logits: the vocabulary is normalised for the few best only.
    top, tokens = logits.topk(settings.beams)
    candidates = totals[..., None] + (top - logits.logsumexp(dim=-1, keepdim=True))
    totals, index = candidates.flatten(1).topk(settings.beams)
    return totals, index // settings.beams, tokens.flatten(1).gather(1, index)


def _forget(cache: DynamicCache, visible: Tensor, kept: Tensor, all_rows: bool) -> Tensor:
    """Drop the rows not `kept` from the cache, and the keys that no beam sees once they are half of it."""
    seen = visible.any(dim=1)
    needed = int(seen.sum(dim=1).max())
    if all_rows and 2 * needed > seen.shape[1]:
        return visible
    keys = seen.int().argsort(dim=1, descending=True, stable=True)[:, :needed]
    for layer in cache.layers:
        layer.keys = layer.keys[kept, :, keys].transpose(1, 2)
        layer.values = layer.values[kept, :, keys].transpose(1, 2)
    return visible.take_along_dim(keys[:, None], dim=2)
