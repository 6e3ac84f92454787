"""Metrics of short answers: the VQA challenge's normalisation and soft accuracy, yes/no statistics as in POPE."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from vlmzoo.evaluate.metrics import accuracy, named

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(value)
    for value, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
} | {"none": "0"}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written with their apostrophes; answers that leave out one (or all) of them are completed. Words that are words
# of their own without it (its, were, well, ill, id, shed, wed, lets) are not among them.
_CONTRACTIONS = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "couldn't've",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hadn't've",
    "hasn't",
    "haven't",
    "he'd",
    "he'd've",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "i'd've",
    "i'm",
    "i've",
    "isn't",
    "it'd",
    "it'd've",
    "it'll",
    "ma'am",
    "mightn't",
    "mightn't've",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "'ow's'at",
    "shan't",
    "she'd've",
    "should've",
    "shouldn't",
    "shouldn't've",
    "somebody'd've",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'd've",
    "someone'll",
    "someone's",
    "something'd",
    "something'd've",
    "something'll",
    "that's",
    "there'd",
    "there'd've",
    "there're",
    "there's",
    "they'd",
    "they'd've",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we'd've",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'd've",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "wouldn't've",
    "y'all",
    "y'all'll",
    "y'all'd've",
    "you'd",
    "you'd've",
    "you'll",
    "you're",
    "you've",
]


def _without_one(word: str) -> set[str]:
    places = [i for i, letter in enumerate(word) if letter == "'"]
    return {word[:i] + word[i + 1 :] for i in places}


CONTRACTIONS = {short: word for word in _CONTRACTIONS for short in _without_one(word)}
_DIGITS_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


@lru_cache(1 << 16)  # the same few answers come again and again
def vqa_normalise(answer: str) -> str:
    """An answer as the VQA challenge compares it (its public evaluation code; the rules are on visualqa.org).

    Lower case; punctuation out where a blank stands beside it (or where the answer holds a number like 2,000), a
    blank in its place elsewhere; periods out unless a digit follows; number words to digits; articles out; missing
    apostrophes of contractions put in.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    thousands = _DIGITS_COMMA.search(text) is not None
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside or thousands else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def names_only(answer: str, right: str, choices: Sequence[str]) -> bool:
    """Whether an answer of any form names the right one of the choices and no other: content without form.

    Choices are found as whole words, one that lies inside a longer one found there ("left" in "top left") not again.
    """
    rest, named = f" {' '.join(re.findall(r'[a-z0-9]+', answer.lower()))} ", set()
    for choice in sorted(choices, key=len, reverse=True):
        if f" {choice.lower()} " in rest:
            named.add(choice)
            rest = rest.replace(f" {choice.lower()} ", " | ")
    return named == {right}


def is_short(answer: str, choices: Sequence[str]) -> bool:
    """Whether an answer has the short form: some words, and no more than the longest choice has."""
    return 0 < len(answer.split()) <= max(len(choice.split()) for choice in choices)


def soft_accuracy(answer: str, answers: Sequence[str]) -> float:
    """VQA accuracy of one answer against its annotators' (Antol et al. 2015, section 4): 0..1.

    min(matches / 3, 1), averaged over leaving out each annotator in turn: of ten, 3 matches give 0.9 and 4 give 1.
    Both sides are normalised by :func:`vqa_normalise`.

    Raises:
        ValueError: no annotator's answer.
    """
    if not answers:
        raise ValueError("no annotator's answer to compare with")
    said = vqa_normalise(answer)
    same = [vqa_normalise(one) == said for one in answers]
    matches = sum(same)
    return math.fsum(min((matches - own) / 3, 1.0) for own in same) / len(same)


YES, NO = frozenset(("yes", "true")), frozenset(("no", "not", "false"))
_FIRST_SENTENCE = re.compile(r"[.!?\n]")
_WORDS = re.compile(r"[a-z']+")


def yes_or_no(answer: str) -> str | None:
    """``yes``, ``no`` or None (neither) of an answer's first sentence.

    As in POPE a "no" or "not" anywhere in it says no. POPE takes everything else for a yes; here it takes the word
    itself (or "true" / "false" for statements), so an answer off the point can be counted apart.
    """
    words = _WORDS.findall(_FIRST_SENTENCE.split(answer.strip().lower(), maxsplit=1)[0])
    if any(word in NO or word.endswith("n't") for word in words):
        return "no"
    return "yes" if any(word in YES for word in words) else None


def yes_no_statistics(answers: Sequence[str | None], truths: Sequence[str]) -> dict[str, float]:
    """POPE's statistics (Li et al. 2023, section 4.2) of ``yes`` / ``no`` / None against ``yes`` / ``no``.

    "Yes" is the positive class. Neither counts as wrong: it is no predicted "yes", and it is named by itself.

    Returns:
        accuracy, precision and recall with standard errors, f1, yes_ratio (yes among all rows) and unanswered
        (share of rows). Precision of no yes, recall of no true yes and F1 of neither are nan.
    """
    pairs = list(zip(answers, truths, strict=True))
    precision = accuracy([truth == "yes" for answer, truth in pairs if answer == "yes"])
    recall = accuracy([answer == "yes" for answer, truth in pairs if truth == "yes"])
    hits = sum(answer == truth == "yes" for answer, truth in pairs)
    said, true = sum(answer == "yes" for answer in answers), sum(truth == "yes" for truth in truths)
    return {
        **named("accuracy", accuracy([answer == truth for answer, truth in pairs])),
        **named("precision", precision),
        **named("recall", recall),
        "f1": 2 * hits / (said + true) if said + true else math.nan,
        "yes_ratio": said / len(pairs) if pairs else math.nan,
        "unanswered": sum(answer is None for answer in answers) / len(pairs) if pairs else math.nan,
    }
