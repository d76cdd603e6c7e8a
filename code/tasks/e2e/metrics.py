"""Scores of generated text: the five of the paper's Table 3 (E2E), slot errors, and two of an earlier study.

    >>> score(predictions, references)        # as `measure_scores.py -p` of the E2E challenge prints
    {"BLEU": 0.6593, "NIST": 8.5923, "METEOR": 0.4483, "ROUGE_L": 0.6850, "CIDEr": 2.2338}

`score` follows the challenge's official script (github.com/tuetschek/e2e-metrics): BLEU and NIST over lower-cased
mteval-v13a tokens; METEOR 1.5, ROUGE-L and CIDEr over Penn Treebank tokens without punctuation. For six systems of the
challenge it gives the script's own figures to the fourth decimal (`tests/test_e2e_metrics.py`). Only METEOR needs Java:
its jar, from the package pycocoevalcap, is started once and kept; where it cannot run, the value is None and
`meteor_unavailable()` says why.

The text is scored as given, and its spacing counts. The LoRA paper scores pre-tokenised outputs against pre-tokenised
references (protocol `lora`), the challenge raw against raw (`challenge`). METEOR hardly changes. ROUGE-L and CIDEr
change: treebank tokens keep `family-friendly` and `20-25` whole, and split `family - friendly` and `20 - 25`. BLEU and
NIST change too: mteval's tokens also keep `£20` and `it's` whole. Parts are easy to match, so under `lora` most scores
rise, BLEU by about 1 point for a good system. A score without its protocol's name says nothing.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain

from tasks.e2e import meteor
from tasks.e2e.meteor import meteor_unavailable
from tasks.e2e.ptb_tokenizer import ptb_tokenize
from tasks.e2e.slot_errors import slot_errors
from tasks.texts import require_lists_of_texts, require_texts

__all__ = ["bleu", "course_score", "meteor_unavailable", "mteval_tokenize", "output_lengths", "score", "slot_errors"]

Tokens = list[str]


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """BLEU, NIST, METEOR, ROUGE_L and CIDEr of a corpus, as the official E2E script prints them (BLEU 0.6593).

    `references[i]` are all the references of `predictions[i]`. METEOR is None if `meteor_unavailable()` says why. An
    empty prediction is a legitimate output and scores low. Raises ValueError for empty lists or different lengths,
    and TypeError for anything but lists of strings.
    """
    check_texts(predictions, references)
    words, reference_words = _tokenize_all(mteval_tokenize, predictions, references)
    tokens, reference_tokens = _tokenize_all(ptb_tokenize, predictions, references)
    with ThreadPoolExecutor(1) as executor:  # the jar is a process of its own
        meteor_score = executor.submit(meteor.METEOR.score, tokens, reference_tokens)
        bleu, nist = _bleu_and_nist(words, reference_words)
        rouge_l, cider = _rouge_l(tokens, reference_tokens), _cider(tokens, reference_tokens)
    return {"BLEU": bleu, "NIST": nist, "METEOR": meteor_score.result(), "ROUGE_L": rouge_l, "CIDEr": cider}


def course_score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and ROUGE_L, 0-100, as github.com/edwinlin13/cs4782-lora-replication computes them (code/train.py, 51fa444).

    NLTK's corpus BLEU on lower-cased word tokens; rouge_score's ROUGE-L F1 with stemming, best reference, mean over
    outputs. Their `nltk.word_tokenize` downloads a sentence splitter; here a sentence ends at `.`, `!` or `?` before
    white space, and NLTK's word tokenizer, which needs no data, does the rest. Raises as `score` does.
    """
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.bleu_score import corpus_bleu
    from rouge_score.tokenizers import DefaultTokenizer

    check_texts(predictions, references)
    word_tokenize = NLTKWordTokenizer().tokenize
    stem_tokenize = cache(DefaultTokenizer(use_stemmer=True).tokenize)  # stemming a word again and again is slow

    def words(text: str) -> Tokens:
        return [word for sentence in re.split(r"(?<=[.!?])\s+", text.lower()) for word in word_tokenize(sentence)]

    def stems(text: str) -> Tokens:
        return [stem for chunk in text.split() for stem in stem_tokenize(chunk)]

    hypotheses, targets = _tokenize_all(words, predictions, references)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no matching 4-gram, which makes BLEU 0
        bleu = corpus_bleu(targets, hypotheses)
    output_stems, reference_stems = _tokenize_all(stems, predictions, references)
    # With P = lcs / len(out) and R = lcs / len(ref), F1 = 2 P R / (P + R) = 2 lcs / (len(out) + len(ref)).
    best = [
        max(2 * _common_subsequence(output, target) / max(len(output) + len(target), 1) for target in targets)
        for output, targets in zip(output_stems, reference_stems, strict=True)
    ]
    return {"BLEU": 100 * bleu, "ROUGE_L": 100 * sum(best) / len(best)}


def output_lengths(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean number of white-space separated words of the outputs and of all references, and BLEU's brevity penalty.

    The penalty is the factor, from 0 to 1, by which BLEU falls because the outputs are shorter than the references.
    Raises as `score` does.
    """
    check_texts(predictions, references)
    targets = [text for texts in references for text in texts]
    lengths = {
        name: sum(len(text.split()) for text in texts) / len(texts)
        for name, texts in (("prediction_length", predictions), ("reference_length", targets))
    }
    return lengths | {"brevity_penalty": _brevity_penalty(*_tokenize_all(mteval_tokenize, predictions, references))}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 over mteval-v13a tokens, from 0 to 1; 0 if all outputs or all references are empty.

    An empty text has no token here. Raises as `score` does.
    """
    check_texts(predictions, references)
    outputs, targets = _tokenize_all(lambda text: [*filter(None, mteval_tokenize(text))], predictions, references)
    return _bleu_and_nist(outputs, targets)[0] if any(outputs) and any(map(any, targets)) else 0.0


def check_texts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise unless each prediction has a list of one or more references: TypeError for no texts, else ValueError."""
    require_texts(predictions, "predictions")
    require_lists_of_texts(references, "references")
    if not predictions or not references:
        raise ValueError(
            f"expected something to score, found {len(predictions)} predictions and {len(references)} lists of "
            "references: give at least one of each"
        )
    if len(predictions) != len(references):
        raise ValueError(
            f"expected as many predictions as lists of references, found {len(predictions)} predictions but "
            f"{len(references)} lists: give one prediction for each MR, with all the references of that MR in one list"
        )
    if without := [index for index, texts in enumerate(references) if not texts]:
        raise ValueError(f"expected at least one reference for each prediction, found none at index {without[:10]}")


def _tokenize_all(
    tokenize: Callable[[str], Tokens], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Tokens], list[list[Tokens]]]:
    return [tokenize(text) for text in predictions], [[tokenize(text) for text in texts] for texts in references]


def _ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


# ---------------------------------------------------------------------------------------------------- BLEU and NIST
ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
SEPARATED = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # all ASCII punctuation but ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])-"), r"\1 - "),
)


def mteval_tokenize(text: str) -> Tokens:
    """Lower-cased tokens as NIST's mteval-v13a splits them; an empty text is one empty token, as in the script."""
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in SEPARATED:
        text = pattern.sub(spaced, text)
    return text.lower().split() or [""]


def _bleu_and_nist(outputs: list[Tokens], references: list[list[Tokens]]) -> tuple[float, float]:
    """Corpus BLEU-4 and NIST-5, from one count of the n-grams.

    An n-gram matches at most as often as in the reference that has it most often. NIST's reference length is the mean.
    NIST weighs a match by the information that its last word adds to the words before it, over all references.
    """
    log_precision = nist = 0.0
    counts = Counter({(): sum(len(target) for targets in references for target in targets)})
    length = sum(map(len, outputs))
    for n in range(1, 6):
        matches: Counter = Counter()
        for output, targets in zip(outputs, references, strict=True):
            grams, clipped = Counter(_ngrams(output, n)), Counter()
            for target in targets:
                target_grams = Counter(_ngrams(target, n))
                for gram in grams:  # in order: a set's differs between processes, and so would the sum's last bit
                    if gram in target_grams:
                        clipped[gram] = max(clipped[gram], min(grams[gram], target_grams[gram]))
            matches.update(clipped)
        counts.update(gram for targets in references for target in targets for gram in _ngrams(target, n))
        # The script lets an output shorter than n count a negative number of n-grams: BLEU may then exceed 1. Not here.
        total = sum(max(len(output) - (n - 1), 0) for output in outputs)
        if n <= 4:
            log_precision += math.log(max(matches.total(), 1e-15) / max(total, 1e-9)) / 4
        nist += sum(hits * math.log2(counts[gram[:-1]] / counts[gram]) for gram, hits in matches.items()) / max(
            total, 1
        )
    ratio = min(1.0, length / sum(sum(map(len, targets)) / len(targets) for targets in references))
    nist_penalty = math.exp(math.log(0.5) * (math.log(ratio) / math.log(1.5)) ** 2)
    return _brevity_penalty(outputs, references) * math.exp(log_precision), nist * nist_penalty


def _brevity_penalty(outputs: list[Tokens], references: list[list[Tokens]]) -> float:
    """Of the corpus; the reference length is the closest one, the shorter of two equally close."""
    closest = sum(
        min((abs(len(target) - len(output)), len(target)) for target in targets)[1]
        for output, targets in zip(outputs, references, strict=True)
    )
    return math.exp(min(0.0, 1 - closest / sum(map(len, outputs))))


# ------------------------------------------------------------------------------------------------ ROUGE-L and CIDEr
def _common_subsequence(left: Tokens, right: Tokens) -> int:
    """Length of the longest common subsequence; each row of the usual table is one integer's bits (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for index, token in enumerate(left):
        positions[token] = positions.get(token, 0) | 1 << index
    ones = row = (1 << len(left)) - 1
    for token in right:
        matched = row & positions.get(token, 0)
        row = (row + matched | row - matched) & ones
    return len(left) - row.bit_count()


def _rouge_l(outputs: list[Tokens], references: list[list[Tokens]]) -> float:
    """Mean over outputs of F(beta = 1.2), from the best precision and best recall over the references."""
    total, squared = 0.0, 1.2**2
    for output, targets in zip(outputs, references, strict=True):
        common = [_common_subsequence(output, target) for target in targets]
        precision = max(common) / max(len(output), 1)
        recall = max(hits / max(len(target), 1) for hits, target in zip(common, targets, strict=True))
        if precision and recall:
            total += (1 + squared) * precision * recall / (recall + squared * precision)
    return total / len(outputs)


def _cider(outputs: list[Tokens], references: list[list[Tokens]]) -> float:
    """CIDEr with clipped counts and a Gaussian penalty (sigma 6) on the difference in length (coco-caption's, "D")."""
    orders = range(1, 5)
    output_counts = [[Counter(_ngrams(output, n)) for n in orders] for output in outputs]
    target_counts = [[[Counter(_ngrams(target, n)) for n in orders] for target in targets] for targets in references]
    documents = Counter(gram for targets in target_counts for gram in set().union(*chain.from_iterable(targets)))
    log_documents = math.log(len(references))
    rarity = defaultdict(lambda: log_documents, {gram: log_documents - math.log(df) for gram, df in documents.items()})

    def weigh(counts: Counter) -> tuple[dict[tuple[str, ...], float], float]:
        weights = {gram: count * rarity[gram] for gram, count in counts.items()}
        return weights, math.hypot(*weights.values())

    total = 0.0
    for by_order, targets in zip(output_counts, target_counts, strict=True):
        weighed = [weigh(counts) for counts in by_order]
        similarity = 0.0
        for target in targets:
            cosines = 0.0
            for (weights, norm), (target_weights, target_norm) in zip(weighed, map(weigh, target), strict=True):
                if norm and target_norm:
                    common = [gram for gram in weights if gram in target_weights]  # in order, as in NIST
                    product = sum(min(weights[gram], target_weights[gram]) * target_weights[gram] for gram in common)
                    cosines += product / (norm * target_norm)
            difference = by_order[1].total() - target[1].total()  # like the script, in bigrams
            similarity += cosines * math.exp(-(difference**2) / (2 * 6.0**2))
        total += similarity / len(targets)
    return 10 * total / (len(orders) * len(outputs))
