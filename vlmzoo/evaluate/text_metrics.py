"""Metrics of generated text against references: BLEU, ROUGE-L, CIDEr and CIDEr-D as in the COCO caption evaluation.

Texts are compared as lists of words made by :func:`tokenise`, which follows the Penn Treebank rules that the COCO
evaluation uses and, like it, drops punctuation. METEOR and SPICE are not here: both are Java programs with data of
their own (a paraphrase table, a scene graph parser).

Candidates are one text a row; references are a list of texts a row.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Words = list[str]
Ngram = tuple[str, ...]

LONGEST = 4  # n-grams of one to four words, in BLEU and in CIDEr
TINY, SMALL = 1e-15, 1e-9  # added to BLEU's counts of right and of all n-grams, as in the COCO evaluation
DROPPED = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "..."})
# Spellings that the treebank writes as two words.
_DOUBLE = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "gimme": ("gim", "me"), "lemme": ("lem", "me"),
}  # fmt: skip
_CLITIC = re.compile(r"(?<=\w)(?='(?:s|re|ve|ll|d|m)\b)|(?<=[a-z])(?=n't\b)")  # he | 'll, do | n't
_WORD = re.compile(
    r"""
    \S+@\S+\.\w+                               # an address
    | (?:[a-z]\.){2,}                           # u.s.
    | (?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc)\.   # abbreviations keep their period
    | \d+(?:[.,:/]\d+)+                         # 3.5, 2,000, 10:30, 1/2
    | n't\b | 'n' | '(?:s|re|ve|ll|d|m)\b       # what a contraction was cut into
    | \w+(?:(?:[./-]|'(?=[a-z]))\w+)*           # words and numbers, t-shirt, o'clock, 2nd
    | \.\.\. | -- | \S
    """,
    re.VERBOSE,
)


def tokenise(text: str) -> Words:
    """Lower-case words of a text, without punctuation, contractions in two (``do n't``, ``man 's``).

    A bracket is a word (``-lrb-``): the COCO evaluation means to drop it too, but looks for it in capitals.
    """
    plain = _CLITIC.sub(" ", text.translate(_QUOTES).lower())
    words: Words = []
    for word in _WORD.findall(plain):
        words.extend(_DOUBLE.get(word, (BRACKETS.get(word, word),)))
    return [word for word in words if word not in DROPPED]


def ngrams(words: Sequence[str], longest: int = LONGEST) -> Counter[Ngram]:
    """How often each run of 1 to ``longest`` words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    )


def _tokenised(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Words], list[list[Words]]]:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} lists of references")
    bare = next((i for i, texts in enumerate(references) if not texts), None)
    if bare is not None:
        raise ValueError(f"row {bare} has no reference")
    return [tokenise(text) for text in candidates], [[tokenise(text) for text in row] for row in references]


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each candidate is one of its references, word for word after :func:`tokenise`."""
    said, truths = _tokenised(candidates, references)
    return [words in options for words, options in zip(said, truths, strict=True)]


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 over the corpus (Papineni et al. 2002), [4] numbers in 0..1.

    Clipped n-gram counts are summed over rows before dividing; the brevity penalty compares the summed length with
    the summed length of each row's closest reference (the shorter one of two equally close). No smoothing, but for
    the COCO evaluation's tiny constants, which keep a score without matches above 0.

    Raises:
        ValueError: rows that do not pair up, or a row without references.
    """
    said, truths = _tokenised(candidates, references)
    right, whole = [0] * LONGEST, [0] * LONGEST
    length = closest = 0
    for words, options in zip(said, truths, strict=True):
        most: Counter[Ngram] = Counter()
        for option in options:
            most |= ngrams(option)
        for ngram, count in ngrams(words).items():
            right[len(ngram) - 1] += min(count, most[ngram])
        for n in range(LONGEST):
            whole[n] += max(0, len(words) - n)
        length += len(words)
        closest += min((abs(len(option) - len(words)), len(option)) for option in options)[1]
    if not length:
        return [0.0] * LONGEST
    penalty = min(0.0, 1.0 - closest / length)
    scores, logs = [], 0.0
    for n in range(LONGEST):
        logs += math.log((right[n] + TINY) / (whole[n] + SMALL))
        scores.append(math.exp(logs / (n + 1) + penalty))
    return scores


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> list[float]:
    """ROUGE-L of each row (Lin 2004): F of the longest common subsequence, recall weighted by ``beta`` squared.

    As in the COCO evaluation, the best precision and the best recall over the references are combined, be they of
    the same reference or not; the corpus score is the mean over rows.

    Raises:
        ValueError: rows that do not pair up, or a row without references.
    """
    said, truths = _tokenised(candidates, references)
    return [_rouge_l(words, options, beta) for words, options in zip(said, truths, strict=True)]


def _rouge_l(words: Words, options: Sequence[Words], beta: float) -> float:
    common = [common_subsequence(words, option) for option in options]
    precision = max(common) / max(len(words), 1)
    recall = max(length / max(len(option), 1) for length, option in zip(common, options, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0  # the last line's value one column to the left
        for column, counterpart in enumerate(other, 1):
            before, row[column] = (
                row[column],
                before + 1 if word == counterpart else max(row[column], row[column - 1]),
            )
    return row[-1]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of each row (Vedantam et al. 2015, equations 1 to 3), times 10 as always reported: 0 to 10.

    Cosines of TF-IDF vectors of n-grams, averaged over references and over n = 1 to 4. Document frequencies are
    those of the given references, so the score of a row depends on the rows beside it, and that of a single row is
    0. The corpus score is the mean over rows. No stemming.

    Raises:
        ValueError: rows that do not pair up, or a row without references.
    """
    return _cider(candidates, references, None)


def cider_d(
    candidates: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0
) -> list[float]:
    """CIDEr-D of each row (Vedantam et al. 2015, section 7): CIDEr with clipped counts and a penalty on length.

    This is the number that the COCO evaluation (server and ``pycocoevalcap``) prints as "CIDEr", and so the one in
    most papers. Lengths are compared in bigrams, as there.

    Raises:
        ValueError: rows that do not pair up, or a row without references.
    """
    return _cider(candidates, references, sigma)


def _cider(
    candidates: Sequence[str], references: Sequence[Sequence[str]], sigma: float | None
) -> list[float]:
    said, truths = _tokenised(candidates, references)
    cooked = [[ngrams(option) for option in options] for options in truths]
    frequency = Counter(ngram for options in cooked for ngram in set().union(*options))
    rows = math.log(max(len(said), 1))
    weight = {ngram: rows - math.log(count) for ngram, count in frequency.items()}

    def vectors(counts: Counter[Ngram]) -> list[dict[Ngram, float]]:
        found: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
        for ngram, count in counts.items():
            found[len(ngram) - 1][ngram] = count * weight.get(ngram, rows)
        return found

    scores = []
    for words, options in zip(said, cooked, strict=True):
        counts = ngrams(words)
        own, total = vectors(counts), 0.0
        for option in options:
            likeness = math.fsum(
                _cosine(mine, theirs, clipped=sigma is not None)
                for mine, theirs in zip(own, vectors(option), strict=True)
            )
            total += likeness * (_length_penalty(counts, option, sigma) if sigma is not None else 1.0)
        scores.append(10.0 * total / LONGEST / len(options))
    return scores


def _length_penalty(one: Counter[Ngram], other: Counter[Ngram], sigma: float) -> float:
    lengths = [sum(n for ngram, n in counts.items() if len(ngram) == 2) for counts in (one, other)]
    return math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * sigma**2))


def _cosine(one: dict[Ngram, float], other: dict[Ngram, float], clipped: bool) -> float:
    dot = math.fsum(
        (min(value, other[ngram]) if clipped else value) * other[ngram]
        for ngram, value in one.items()
        if ngram in other
    )
    norms = math.sqrt(math.fsum(v * v for v in one.values())) * math.sqrt(
        math.fsum(v * v for v in other.values())
    )
    return dot / norms if norms else 0.0
