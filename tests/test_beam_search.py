"""Decoding against the official search in plain lists, and against `transformers`' own `generate`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from costs.benchmark_e2e import transformers_beam_search
from methods.prefixes import PreEmbed, PreLayer, add_prefix
from tasks.e2e import beam_search as search
from tasks.e2e.beam_search import DecodingSettings, Generation, beam_search, end_token_ids, generate

ENDS = [0, 1]
SETTINGS = DecodingSettings(beams=4, max_new_tokens=14, no_repeat_ngram=2, batch_size=8)
SEEDS = range(4)


class Letters:
    """A tokenizer with a token for each letter and, as GPT-2's, one for the blank line."""

    symbols = ("<|endoftext|>", "\n\n", "\n", " ", *"abcdefghijklmnopqrst")
    eos_token, eos_token_id = symbols[0], 0
    pattern = "\n\n|\n|."

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.symbols.index(symbol) for symbol in re.findall(self.pattern, text)]

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool) -> str:
        return "".join(self.symbols[i] for i in ids)


class LettersWithoutBlankLine(Letters):
    pattern = "\n|."


def tiny_model(seed: int, **changes) -> GPT2LMHeadModel:
    """Random, in float64 so that no two beams tie, and peaked so that repeats and ends are common."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 24, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.6}
    config = GPT2Config(**{**sizes, **changes}, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).double().eval()


def random_prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (6,), generator=generator).tolist()
    return [[*torch.randint(3, 24, (n,), generator=generator).tolist(), 0] for n in lengths]


def random_contexts(seed: int) -> list[str]:
    return [Letters().decode(prompt[:-1], False) for prompt in random_prompts(seed)]


def our_answers(settings: DecodingSettings = SETTINGS) -> list[list[int]]:
    return [answer for s in SEEDS for answer in beam_search(tiny_model(s), random_prompts(s), ENDS, settings)]


def official_answers(settings: DecodingSettings = SETTINGS, **broken_rule) -> Iterator[list[int]]:
    for seed in SEEDS:
        model = tiny_model(seed)
        for prompt in random_prompts(seed):
            yield official_search(model, prompt, settings, **broken_rule)


@torch.inference_mode()
def official_search(
    model: GPT2LMHeadModel,
    prompt: list[int],
    settings: DecodingSettings,
    ends: tuple[int, ...] = (0, 1),
    refill_at_once: bool = False,
    ban_from_prompt: bool = False,
    renormalise: bool = True,
    count_prompt: bool = False,
    stop_at_first_end: bool = False,
) -> list[int]:
    """The official search of one prompt, beam by beam; each flag breaks one of its rules."""
    n, found, live = settings.no_repeat_ngram, [], [(0.0, [])]

    def record(total: float, tokens: list[int]) -> None:
        length = len(tokens) + (len(prompt) if count_prompt else 0)
        found.append((total / length**settings.length_penalty, tokens))

    for _ in range(settings.max_new_tokens):
        if not live or (stop_at_first_end and found):
            break
        candidates = []
        all_logits = model(torch.tensor([prompt + tokens for _, tokens in live]), use_cache=False).logits[:, -1]
        for (total, tokens), logits in zip(live, all_logits, strict=True):
            seen = prompt + tokens if ban_from_prompt else tokens
            ngrams = [seen[start : start + n] for start in range(len(seen) - n + 1)]
            banned = [ngram[-1] for ngram in ngrams if ngram[:-1] == seen[len(seen) - n + 1 :]]
            log_p = logits.log_softmax(-1)
            log_p[banned] = -torch.inf
            if renormalise:
                log_p = log_p.log_softmax(-1)
            candidates += [(total + p, [*tokens, token]) for token, p in enumerate(log_p.tolist())]
        candidates.sort(key=lambda candidate: candidate[0], reverse=True)
        for total, tokens in candidates[: settings.beams]:
            if tokens[-1] in ends:
                record(total, tokens)
        pool = candidates if refill_at_once else candidates[: settings.beams]
        live = [candidate for candidate in pool if candidate[1][-1] not in ends][: settings.beams]
    for total, tokens in live:
        if not (stop_at_first_end and found):
            record(total, tokens)
    return max(found, key=lambda pair: pair[0])[1]


def transformers_answers(**own: bool) -> list[list[int]]:
    return [
        answer
        for seed in SEEDS
        for answer in transformers_beam_search(tiny_model(seed), random_prompts(seed), ENDS, SETTINGS, **own)
    ]


@pytest.fixture(scope="module")
def answers() -> list[list[int]]:
    return our_answers()


def test_answers_are_those_of_the_official_search(answers):
    assert answers == list(official_answers())


@pytest.mark.parametrize(
    "change",
    [{"length_penalty": 0.0}, {"length_penalty": 2.0}, {"no_repeat_ngram": 3}, {"no_repeat_ngram": 1}, {"beams": 2}],
    ids=str,
)
def test_every_setting_acts_as_in_the_official_search(answers, change):
    settings = replace(SETTINGS, **change)
    changed = our_answers(settings)
    assert changed == list(official_answers(settings))
    assert changed != answers


@pytest.mark.parametrize(
    "broken_rule",
    [
        {"refill_at_once": True},
        {"ban_from_prompt": True},
        {"renormalise": False},
        {"count_prompt": True},
        {"stop_at_first_end": True},
        {"ends": (0,)},
    ],
    ids=str,
)
def test_each_rule_of_the_official_search_decides_an_answer(answers, broken_rule):
    assert any(ours != theirs for ours, theirs in zip(answers, official_answers(**broken_rule), strict=True))


def test_repeats_are_allowed_where_no_ngram_is_forbidden(answers):
    def repeats(tokens: list[int]) -> bool:
        bigrams = list(pairwise(tokens))
        return len(set(bigrams)) < len(bigrams)

    assert not any(map(repeats, answers))
    assert any(map(repeats, our_answers(replace(SETTINGS, no_repeat_ngram=0))))


def test_transformers_generate_agrees_once_its_differences_are_taken_out(answers):
    assert transformers_answers() == answers
    assert transformers_answers(own_refill=True) != answers
    assert transformers_answers(own_ban=True) != answers


@pytest.mark.parametrize("kind", [PreEmbed, PreLayer])
def test_answers_after_a_prefix_are_those_of_the_official_search_that_computes_all_of_it_anew(answers, kind):
    model, plain, prompts = tiny_model(0), tiny_model(0), random_prompts(0)
    torch.manual_seed(1)
    add_prefix(model, kind, 3)
    torch.manual_seed(1)
    words = torch.randint(24, (3,)).tolist()  # what a new prefix is like
    found = beam_search(model, prompts, ENDS, SETTINGS)
    assert found == [official_search(plain, words + prompt, SETTINGS) for prompt in prompts]
    assert found != answers[: len(prompts)]
    torch.nn.init.normal_(next(model.transformer.prefix.parameters()))
    trained = beam_search(model, prompts, ENDS, SETTINGS)
    assert trained == [official_search(model, prompt, SETTINGS) for prompt in prompts]
    assert trained != found


def test_both_end_tokens_end_an_answer_and_the_cap_cuts_the_rest(answers):
    last = [tokens[-1] for tokens in answers]
    assert {0, 1} < set(last)
    for tokens in answers:
        assert not set(tokens[:-1]) & set(ENDS)
        assert tokens[-1] in ENDS or len(tokens) == SETTINGS.max_new_tokens


def test_a_context_is_decoded_alike_alone_and_in_a_batch_and_answers_keep_the_order():
    model, contexts = tiny_model(0), random_contexts(0)
    batched = generate(model, Letters(), contexts, SETTINGS, progress=False)
    alone = [generate(model, Letters(), [context], SETTINGS, progress=False)[0] for context in contexts]
    assert batched == alone
    assert len(set(batched)) > 1
    assert generate(model, Letters(), contexts, replace(SETTINGS, batch_size=4), progress=False) == alone


def test_a_repeated_context_is_decoded_once():
    model, context, rows = tiny_model(0), random_contexts(0)[0], []
    model.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    first, second = generate(model, Letters(), [context, context], SETTINGS, progress=False)
    assert first == second
    assert set(rows) == {1}


def attention_masks(prompts: list[list[int]], ends: list[int]) -> list[torch.Tensor]:
    """Those that a search of 40 steps hands to the model."""
    model, masks = tiny_model(0), []
    model.register_forward_pre_hook(lambda _, __, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True)
    beam_search(model, prompts, ends, replace(SETTINGS, max_new_tokens=40))
    return masks


def test_a_prompt_leaves_the_batch_when_none_of_its_beams_can_win():
    rows = [len(mask) for mask in attention_masks(random_prompts(0), ENDS)]
    assert rows[0] == 6 > rows[-1]
    assert rows == sorted(rows, reverse=True)
    assert len(rows) < 40


def test_keys_that_no_beam_sees_leave_the_cache():
    prompt, impossible = random_prompts(0)[0], 999
    masks = attention_masks([prompt], [impossible])
    assert len(masks) == 40
    assert masks[-1].shape[-1] < (len(prompt) + 39 * SETTINGS.beams) / 2


def test_no_contexts_give_no_answers():
    assert generate(tiny_model(0), Letters(), [], SETTINGS, progress=False) == []


def test_a_generation_tells_its_length_and_whether_it_ended(monkeypatch):
    answer = {"a": [3, 5, 3, 6, 1], "b": [5, 6, 0], "c": [5, 2, 2, 6], "d": [5]}
    found = iter(answer.values())
    monkeypatch.setattr(search, "beam_search", lambda model, prompts, *_: [next(found) for _ in prompts])
    assert generate(tiny_model(0), Letters(), list(answer), SETTINGS, progress=False) == [
        Generation("b c", 5, ended=True),
        Generation("bc", 3, ended=True),
        Generation("b", 4, ended=False),  # cut at two line ends that are not the blank-line token
        Generation("b", 1, ended=False),
    ]


@pytest.mark.parametrize(("positions", "kept"), [(64, 50), (1024, 498)])
def test_of_a_long_context_the_last_tokens_are_kept_that_leave_room_for_the_answer(monkeypatch, positions, kept):
    prompts = []
    monkeypatch.setattr(search, "beam_search", lambda model, batch, *_: prompts.extend(batch) or [[0]] * len(batch))
    generate(tiny_model(0, n_positions=positions), Letters(), ["ab" * 300 + "c"], SETTINGS, progress=False)
    assert len(prompts[0]) == kept
    assert prompts[0][-3:] == [5, 6, 0]


def test_a_prompt_and_its_answer_may_fill_every_position():
    model = tiny_model(3)
    long = random_contexts(3)[0] * 64
    assert generate(model, Letters(), [long], SETTINGS, progress=False)[0].tokens == SETTINGS.max_new_tokens


def test_a_model_in_training_decodes_without_dropout_and_goes_on_training():
    model, contexts = tiny_model(0, embd_pdrop=0.5), random_contexts(0)
    expected = generate(model, Letters(), contexts, SETTINGS, progress=False)
    model.train()
    assert generate(model, Letters(), contexts, SETTINGS, progress=False) == expected
    assert model.training


def test_the_blank_line_ends_an_answer_only_where_it_is_one_token():
    assert end_token_ids(Letters()) == [0, 1]
    assert end_token_ids(LettersWithoutBlankLine()) == [0]


def test_gpt2_ends_with_endoftext_and_with_the_blank_line(shared_data):
    folder = shared_data / "gpt2_tokenizer"
    tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    assert end_token_ids(tokenizer) == [50256, 628]


def test_progress_counts_distinct_contexts(capsys):
    contexts = random_contexts(0)
    generate(tiny_model(0), Letters(), [*contexts, contexts[0]], SETTINGS)
    assert f"{len(contexts)}/{len(contexts)}" in capsys.readouterr().err
    generate(tiny_model(0), Letters(), contexts, SETTINGS, progress=False)
    assert capsys.readouterr().err == ""


def test_a_cap_that_leaves_no_room_for_the_context_is_refused():
    with pytest.raises(ValueError, match=r"max_new_tokens must be below the 64 positions .* found 64"):
        generate(tiny_model(0), Letters(), ["a"], replace(SETTINGS, max_new_tokens=64))


@pytest.mark.parametrize(
    "contexts", ["ab", None, ["ab", None], [["ab"]], [[4, 5]], torch.tensor([4, 5]), {"ab"}], ids=str
)
def test_what_is_no_list_of_contexts_is_refused(contexts):
    with pytest.raises(TypeError, match="expected a list of texts as contexts, found a"):
        generate(tiny_model(0), Letters(), contexts, SETTINGS, progress=False)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (0, float("nan"), 2.5, "2", None, True)) for name in ("beams", "max_new_tokens", "batch_size")),
        ("length_penalty", (-1.0, float("nan"), float("inf"), 1000.0, "1")),
        ("no_repeat_ngram", (-1, 2.5)),
        ("blank_line_ends", ("no", None)),
    ],
)
def test_a_value_with_which_nothing_can_be_searched_is_refused_by_its_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be "):
            DecodingSettings(**{name: value})


def test_more_beams_than_tokens_are_refused():
    model = tiny_model(0)
    tokens = model.config.vocab_size
    with pytest.raises(ValueError, match=f"beams must be at most the {tokens} tokens of the model, found {tokens + 1}"):
        generate(model, Letters(), ["a"], replace(SETTINGS, beams=tokens + 1), progress=False)
    assert generate(model, Letters(), ["a"], replace(SETTINGS, beams=tokens), progress=False)


def test_a_model_with_broken_weights_is_refused():
    model = tiny_model(0)
    torch.nn.init.constant_(model.transformer.ln_f.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="expected finite logits"):
        generate(model, Letters(), ["a"], SETTINGS, progress=False)


def test_weights_that_break_after_an_answer_has_ended_are_no_answer():
    prompt, ends = [[1] * 10], end_token_ids(Letters())
    seed, whole = max(
        ((seed, *beam_search(tiny_model(seed), prompt, ends, SETTINGS)) for seed in SEEDS),
        key=lambda found: len(found[1]),
    )
    assert len(whole) > 4
    for position in range(10, 10 + len(whole) - 1):  # of each token that the search has read
        model = tiny_model(seed)
        model.transformer.wpe.weight.data[position] = torch.nan
        with pytest.raises(FloatingPointError, match="expected finite logits"):
            beam_search(model, prompt, ends, SETTINGS)


def test_a_search_that_fails_leaves_a_model_in_training(monkeypatch):
    model = tiny_model(0).train()
    torch.nn.init.constant_(model.transformer.ln_f.bias, torch.nan)
    with pytest.raises(FloatingPointError):
        generate(model, Letters(), ["a"], SETTINGS)
    assert model.training
