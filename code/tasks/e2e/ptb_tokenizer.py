"""Penn Treebank tokens in pure Python, as the E2E scores need them.

METEOR, ROUGE-L and CIDEr of Table 3 are computed over the tokens of `pycocoevalcap.tokenizer`, which starts Stanford's
PTBTokenizer (CoreNLP 3.4.1, options `-preserveLines -lowerCase`) in Java and then drops punctuation. This module gives
the same tokens without Java. Its rules were found by running the Java program, not by reading it. The two agree token
for token on every reference of the E2E train, dev and test sets, on the LoRA authors' pre-tokenised files, and on the
outputs of six systems of the E2E challenge (`tests/test_ptb_tokenizer.py`).

Known differences, none of them in those texts: tags, web addresses, emoticons, mixed fractions (`3 1/2` is one token in
Java), rare abbreviations, apostrophes inside mistyped words, accents as characters of their own, invisible characters
(soft hyphen, zero-width space), the non-breaking hyphen, and a single letter with a full stop before a common sentence
opener (`plan b. The`: Java drops the full stop, even when the opener starts the next line of its input).
"""

from __future__ import annotations

import re
from functools import lru_cache

# The tokens pycocoevalcap drops, in the spellings this module can meet. `?!` and `(` are not among them: they count.
PUNCTUATION = frozenset("'\"`‘’“”.?!,:;-–—…")
NORMALISED = str.maketrans({"£": "#", "€": "$", "’": "'", "‘": "`"}) | {
    ord(bracket): f"-{name}b-" for bracket, name in zip("()[]{}", ("lr", "rr", "ls", "rs", "lc", "rc"), strict=True)
}

# Longest match first, since Python takes the first alternative that matches and the Java lexer the longest.
TOKEN = re.compile(
    r"""
      (?:n['’]t | ['’](?:s|m|d|re|ve|ll)) (?![^\W\d_])                    # is|n't  it|'s
    | [^\W\d_]+ (?=n['’]t(?![^\W\d_]))                                    # the word before n't
    | ['’]t(?=(?:is|was)\b) | ['’]n['’]?(?!\w)                            # 't|is  rock 'n' roll
    | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b)
    | (?-i:[A-HJ-XZn])['’][^\W\d_]{2,} | [dol]['’][^\W\d_]{2,}            # O'Connor  hors d'oeuvres
    | [^\W_]+ (?:[.,][^\W_]*)? (?:-[^\W_]+)+ (?:\.(?=[,;:]))?             # family-friendly  20-25
    | \d+/\d+ | [-+]?\d*(?:[.,:]\d+)+ | [-+]\d+(?![^\W_])                 # 5/5  4.50  -5
    | (?<!\w)(?:[a-z]\.){2,} | [^\W\d_]+(?:[.?!/][^\W\d_]+)+              # a.m.  food.It  and/or
    | (?<!\w)[a-z]\.(?!\w)                                                # 25 L.
    | (?:st|rd|ave|mt|ft|dr|mr|mrs|ms|prof|jr|sr|co|inc|ltd|bros|est|dept|vs|etc)\.
    | [^\W_]+\.(?=[,;:])                                                  # city centre.,
    | [^\W_]+ | [?!]+ | --+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


@lru_cache(maxsize=1 << 16)
def _chunk_tokens(chunk: str) -> tuple[str, ...]:
    kept = (token for token in TOKEN.findall(chunk) if token not in PUNCTUATION and not token.startswith("--"))
    return tuple(token.lower().translate(NORMALISED) for token in kept)


def ptb_tokenize(text: str) -> list[str]:
    """Lower-cased Penn Treebank tokens of one text, punctuation dropped: `It's £20-25.` -> `it 's # 20-25`."""
    return [token for chunk in text.split() for token in _chunk_tokens(chunk)]
