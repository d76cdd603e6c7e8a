"""A 5-gram language model: the baseline that the small GPT-2 of `pretrain_gpt2_mini.py` has to beat.

The paper adapts models that were pre-trained on general text (section 1). The model that ships with
the repository is worth adapting if it beats this one: an interpolated n-gram model with modified
Kneser-Ney smoothing (Chen and Goodman, 1999, section 3). It is the strongest classical model, and is
trained and measured on the same tokens.

    ngram_baseline.perplexity(train, held_out)

With c(h w) the count of word w after the history h, and h' the history without its oldest token,

    p(w | h) = (c(h w) - D(c(h w))) / c(h .) + gamma(h) p(w | h'),    p(w | h) = p(w | h') if h is new.

Counts: the longest n-grams are counted as they occur, a shorter one by how many different tokens
precede it. Discounts: D(0) = 0, D(k) = k - (k+1) Y n_{k+1} / n_k for k = 1, 2, 3 (3 stands for all
larger counts), Y = n_1 / (n_1 + 2 n_2). Of the n-grams of that order, n_k have count k.
gamma(h) is the discounted mass over c(h .). Below the unigrams lies the uniform distribution.
"""

from __future__ import annotations

import numpy as np

# For an order whose counts of counts give no usable discount: common when nearly every n-gram is frequent (unigrams)
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def perplexity(train: np.ndarray, held_out: np.ndarray, order: int = 5, block: int = 256) -> float:
    """Perplexity of the held-out tokens that a model with `block` positions is scored on.

    These are the tokens after the first of each whole block. In its favour, the n-gram model sees the
    tokens of earlier blocks too; a model with `block` positions does not.

    Args:
        train, held_out: token ids, integers of shape (tokens,).
        order: length of the longest n-grams; 5 looks at the four preceding tokens.

    Raises:
        ValueError: `order` is below 1, `train` is empty, or `held_out` is shorter than one block.
    """
    if len(held_out) < block:
        raise ValueError(f"expected at least one block of {block} held-out tokens, found {len(held_out)}; give more")
    blocks = probabilities(train, held_out, order)[: len(held_out) // block * block].reshape(-1, block)
    return float(np.exp(-np.log(blocks[:, 1:]).mean()))


def probabilities(train: np.ndarray, held_out: np.ndarray, order: int = 5) -> np.ndarray:
    """p(token | the tokens before it) of every held-out token, shape (tokens,), float64.

    Both streams begin with `order - 1` start marks, which are part of histories and never predicted.
    The vocabulary is every id up to the largest in either stream.

    Raises:
        ValueError: `order` is below 1 or `train` is empty.
    """
    if order < 1 or len(train) == 0:
        raise ValueError(f"expected order >= 1 and training tokens, found order {order} and {len(train)} tokens")
    vocabulary = int(np.max(np.concatenate([train, held_out]))) + 1
    marks = np.full(order - 1, vocabulary)
    stream = np.concatenate([marks, train, marks, held_out]).astype(np.int64)
    train_positions = np.arange(len(train)) + order - 1  # in the stream
    held_out_positions = np.arange(len(stream) - len(held_out), len(stream))

    ids = _ngram_ids(stream, order, vocabulary + 1)
    result = np.full(len(held_out), 1 / vocabulary)
    for n in range(1, order + 1):
        size = int(ids[n].max()) + 1
        if n == order:
            counts = np.bincount(ids[n][train_positions], minlength=size)
        else:
            counts = np.bincount(ids[n][_one_of_each(ids[n + 1], train_positions)], minlength=size)
        discounts = _discounts(counts)[np.minimum(counts, 3)]

        kinds = _one_of_each(ids[n], train_positions)
        history, kind = ids[n - 1][kinds - 1], ids[n][kinds]
        size = int(ids[n - 1].max()) + 1
        histories = ids[n - 1][held_out_positions - 1]
        total = np.bincount(history, weights=counts[kind], minlength=size)[histories]
        freed = np.bincount(history, weights=discounts[kind], minlength=size)[histories]

        known = total > 0
        kept = (counts - discounts)[ids[n][held_out_positions]]
        result[known] = (kept + freed * result)[known] / total[known]
    return result


def _ngram_ids(stream: np.ndarray, order: int, symbols: int) -> list[np.ndarray]:
    """For n = 0 ... order: a number for each position, the same wherever the same n-gram ends.

    It is made from the number of the (n-1)-gram one position earlier and the token, so that it stays
    small for any order. The first n - 1 positions have no n-gram; their numbers are not used.
    """
    ids = [np.zeros(len(stream), dtype=np.int32)]
    for _ in range(order):
        keys = np.roll(ids[-1], 1) * np.int64(symbols) + stream
        ids.append(np.unique(keys, return_inverse=True)[1].astype(np.int32))
    return ids


def _one_of_each(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One of the `positions` for each different n-gram that ends at them."""
    position = np.full(int(ids.max()) + 1, -1)
    position[ids[positions]] = positions
    return position[position >= 0]


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D(0), D(1), D(2), D(3 and more), from the counts of all n-grams of one order."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    k = np.arange(1, 4)
    if n[1:4].all():
        discounts = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
        if (discounts >= 0).all():
            return np.array([0, *discounts])
    return np.array([0, *FALLBACK_DISCOUNTS])
