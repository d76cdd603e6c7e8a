"""The n-gram baseline against a slow textbook implementation with dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from training.ngram_baseline import perplexity, probabilities

VOCABULARY = 6
START = "start"


class Textbook:
    """Modified Kneser-Ney as one reads it: one dictionary of n-grams an order, one recursion."""

    def __init__(self, train: list[int], order: int, vocabulary: int, raw_counts_everywhere: bool = False):
        self.order, self.vocabulary = order, vocabulary
        tokens = [START] * (order - 1) + train
        ngrams = {
            n: Counter(tuple(tokens[i - n + 1 : i + 1]) for i in range(order - 1, len(tokens)))
            for n in range(1, order + 1)
        }
        self.counts = {order: ngrams[order]}
        for n in range(1, order):
            self.counts[n] = ngrams[n] if raw_counts_everywhere else Counter(longer[1:] for longer in ngrams[n + 1])
        self.discounts = {n: self.estimate_discounts(counts) for n, counts in self.counts.items()}
        self.followers: dict[tuple, list[int]] = defaultdict(list)
        for counts in self.counts.values():
            for ngram, count in counts.items():
                self.followers[ngram[:-1], len(ngram)].append(count)

    @staticmethod
    def estimate_discounts(counts: Counter) -> list[float]:
        n = Counter(counts.values())
        if min(n[1], n[2], n[3]) > 0:
            y = n[1] / (n[1] + 2 * n[2])
            discounts = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
            if min(discounts) >= 0:
                return discounts
        return [0, 0.5, 1.0, 1.5]

    def probability(self, word: int, history: tuple) -> float:
        n = len(history) + 1
        shorter = self.probability(word, history[1:]) if history else 1 / self.vocabulary
        counts = self.followers.get((history, n))
        if counts is None:
            return shorter
        count = self.counts[n][(*history, word)]
        freed = sum(self.discounts[n][min(c, 3)] for c in counts)
        return (count - self.discounts[n][min(count, 3)] + freed * shorter) / sum(counts)

    def stream(self, tokens: list[int]) -> list[float]:
        padded = [START] * (self.order - 1) + tokens
        return [
            self.probability(padded[i], tuple(padded[i - self.order + 1 : i]))
            for i in range(self.order - 1, len(padded))
        ]


def corpus(length: int, seed: int) -> np.ndarray:
    """A chain of tokens that depend on the two before them, with the last token of the vocabulary rare."""
    generator = np.random.default_rng(seed)
    tokens = [0, 1]
    for _ in range(length - 2):
        likely = (2 * tokens[-1] + tokens[-2]) % (VOCABULARY - 1)
        tokens.append(likely if generator.random() < 0.6 else int(generator.integers(VOCABULARY)))
    return np.array(tokens, dtype=np.uint16)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_probability_equals_the_textbooks(order):
    train, held_out = corpus(400, seed=0), corpus(200, seed=1)
    expected = Textbook(train.tolist(), order, VOCABULARY).stream(held_out.tolist())
    np.testing.assert_allclose(probabilities(train, held_out, order), expected, rtol=1e-12)


def test_the_comparison_covers_estimated_and_fallback_discounts_and_new_histories():
    train, held_out = corpus(400, seed=0).tolist(), corpus(200, seed=1).tolist()
    textbook = Textbook(train, 5, VOCABULARY)
    fallback = {n for n, discounts in textbook.discounts.items() if discounts == [0, 0.5, 1.0, 1.5]}
    assert 1 in fallback and 5 not in fallback
    histories = {tuple(held_out[i - 4 : i]) for i in range(4, 200)}
    known = {ngram[:-1] for ngram in textbook.counts[5]}
    assert histories & known and histories - known


def test_counting_short_ngrams_as_they_occur_is_not_kneser_ney():
    train, held_out = corpus(400, seed=0), corpus(200, seed=1)
    wrong = Textbook(train.tolist(), 3, VOCABULARY, raw_counts_everywhere=True).stream(held_out.tolist())
    assert not np.allclose(probabilities(train, held_out, 3), wrong, rtol=1e-3)


@pytest.mark.parametrize("history", [(0, 1), (5, 5), (3, 0)])
def test_probabilities_after_a_history_sum_to_one(history):
    train = corpus(400, seed=0)
    continuations = np.array([(*history, word) for word in range(VOCABULARY)])
    after_history = probabilities(train, continuations.ravel(), order=3).reshape(-1, 3)[:, -1]
    assert after_history.sum() == pytest.approx(1, abs=1e-12)
    assert (after_history > 0).all()


def test_a_token_that_was_never_trained_on_gets_probability_too():
    train = corpus(400, seed=0)
    assert 0 < probabilities(train, np.array([0, 1, 9]), order=3)[-1] < 0.01


def test_perplexity_leaves_out_the_first_token_of_each_block_and_the_last_partial_block():
    train, held_out = corpus(400, seed=0), corpus(70, seed=1)
    textbook = Textbook(train.tolist(), 3, VOCABULARY).stream(held_out.tolist())
    scored = [math.log(p) for i, p in enumerate(textbook) if i % 32 and i < 64]
    assert len(scored) == 62
    assert perplexity(train, held_out, order=3, block=32) == pytest.approx(math.exp(-sum(scored) / 62), rel=1e-12)


def test_longer_histories_help_where_the_text_depends_on_them_and_not_where_it_is_shuffled():
    train, held_out = corpus(20_000, seed=0), corpus(2_560, seed=1)
    assert perplexity(train, held_out, order=3) < 0.9 * perplexity(train, held_out, order=2)
    shuffled = np.random.default_rng(2).permutation(train)
    assert perplexity(shuffled, held_out, order=3) > 0.98 * perplexity(shuffled, held_out, order=1)


def test_less_than_one_block_of_held_out_tokens_is_an_error():
    with pytest.raises(ValueError, match="at least one block of 256 held-out tokens, found 255"):
        perplexity(corpus(400, seed=0), corpus(255, seed=1))


@pytest.mark.parametrize(("length", "order"), [(400, 0), (0, 5)])
def test_order_zero_and_an_empty_training_text_are_errors(length, order):
    with pytest.raises(ValueError, match=f"expected order >= 1 and training tokens, found order {order} and {length}"):
        probabilities(corpus(400, seed=0)[:length], corpus(300, seed=1), order)
