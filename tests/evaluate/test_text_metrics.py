"""BLEU, ROUGE-L, CIDEr and CIDEr-D against the COCO evaluation's own numbers and the papers' worked examples."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmzoo.evaluate.text_metrics import (
    bleu,
    cider,
    cider_d,
    common_subsequence,
    exact_match,
    ngrams,
    rouge_l,
    tokenise,
)

GOLDEN: Any = json.loads((Path(__file__).parent.parent / "golden" / "captions" / "coco.json").read_text())
CANDIDATES = [row["candidate"] for row in GOLDEN["rows"]]
REFERENCES = [row["references"] for row in GOLDEN["rows"]]
WORDS = st.lists(st.sampled_from(["a", "red", "blue", "circle", "square", "and", "the"]), max_size=7).map(
    " ".join
)
CORPUS = st.lists(
    st.tuples(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=5
)


def test_words_are_those_of_the_treebank_tokenizer() -> None:
    for row in GOLDEN["rows"]:
        assert tokenise(row["candidate"]) == row["candidate_words"]
        assert [tokenise(text) for text in row["references"]] == row["reference_words"]
    for sample in GOLDEN["words"]:
        assert tokenise(sample["text"]) == sample["words"], sample["text"]


def test_the_coco_evaluation_gives_the_same_numbers() -> None:
    assert bleu(CANDIDATES, REFERENCES) == pytest.approx(GOLDEN["bleu"], abs=1e-12)
    for name, metric in (("rouge_l", rouge_l), ("cider", cider), ("cider_d", cider_d)):
        ours = metric(CANDIDATES, REFERENCES)
        assert ours == pytest.approx([row[name] for row in GOLDEN["rows"]], abs=1e-10)
        assert sum(ours) / len(ours) == pytest.approx(GOLDEN[name], abs=1e-10)
    assert GOLDEN["cider"] != pytest.approx(GOLDEN["cider_d"], abs=0.1)  # the fixture tells them apart


@settings(max_examples=30, deadline=None)
@given(CORPUS)
def test_the_package_itself_gives_the_same_numbers(corpus: Any) -> None:
    scorers = pytest.importorskip("pycocoevalcap.bleu.bleu"), pytest.importorskip("pycocoevalcap.cider.cider")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    candidates, references = [one for one, _ in corpus], [many for _, many in corpus]
    res, gts = {i: [one] for i, one in enumerate(candidates)}, dict(enumerate(references))
    theirs, _ = scorers[0].Bleu(4).compute_score(gts, res, verbose=0)
    assert bleu(candidates, references) == pytest.approx(theirs, abs=1e-9)
    assert cider_d(candidates, references) == pytest.approx(
        scorers[1].Cider().compute_score(gts, res)[1], abs=1e-9
    )
    assert rouge_l(candidates, references) == pytest.approx(rouge.compute_score(gts, res)[1], abs=1e-9)


# Papineni et al. 2002, section 2: example 2, and the two candidates of example 1.
MAT = ["The cat is on the mat.", "There is a cat on the mat."]
GUIDE = [
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
    "It is the practical guide for the army always to heed the directions of the party.",
]
ONE = "It is a guide to action which ensures that the military always obeys the commands of the party."
TWO = "It is to insure the troops forever hearing the activity guidebook that party direct."


def test_the_worked_examples_of_bleu() -> None:
    assert bleu(["the the the the the the the"], [MAT])[0] == pytest.approx(2 / 7)
    first = bleu([ONE], [GUIDE])
    assert first[0] == pytest.approx(17 / 18) and first[1] ** 2 / first[0] == pytest.approx(10 / 17)
    second = bleu([TWO], [GUIDE])
    penalty = math.exp(1 - 16 / 14)  # its closest reference is two words longer
    assert second[0] == pytest.approx(8 / 14 * penalty)
    assert (second[1] / penalty) ** 2 == pytest.approx(8 / 14 * 1 / 13)


def test_the_worked_example_of_rouge_l() -> None:
    """Lin 2004, section 3: "police killed the gunman" against two sentences with the same bigram."""
    reference = [["police killed the gunman"]] * 3
    found = rouge_l(
        ["police kill the gunman", "the gunman kill police", "the gunman police killed"], reference, beta=1.0
    )
    assert found == pytest.approx([3 / 4, 2 / 4, 2 / 4])


def test_cider_by_its_definition() -> None:
    """Equations 1 and 2 with dense vectors, on the fixture's words."""
    said = [Counter(ngrams(tokenise(text))) for text in CANDIDATES]
    truths = [[ngrams(tokenise(text)) for text in texts] for texts in REFERENCES]
    frequency = Counter(g for texts in truths for g in set().union(*texts))

    def vector(counts: Any, n: int, vocabulary: list[Any]) -> list[float]:
        return [counts[g] * math.log(len(said) / max(1, frequency[g])) for g in vocabulary]

    for row in (0, 2, 13):
        total = 0.0
        for n in (1, 2, 3, 4):
            grams = [g for g in {*said[row], *set().union(*truths[row])} if len(g) == n]
            one = vector(said[row], n, grams)
            for text in truths[row]:
                other = vector(text, n, grams)
                dot = sum(a * b for a, b in zip(one, other))
                total += dot / (math.hypot(*one) * math.hypot(*other)) / len(truths[row]) / 4
        assert cider(CANDIDATES, REFERENCES)[row] == pytest.approx(10 * total)


@settings(max_examples=60, deadline=None)
@given(CORPUS)
def test_bounds_and_order(corpus: Any) -> None:
    candidates, references = [one for one, _ in corpus], [many for _, many in corpus]
    for metric, most in ((rouge_l, 1.0), (cider, 10.0), (cider_d, 10.0)):
        found = metric(candidates, references)
        assert all(0.0 <= value <= most + 1e-9 for value in found)
        backwards = metric(candidates[::-1], [texts[::-1] for texts in references[::-1]])
        assert found == pytest.approx(backwards[::-1], abs=1e-9)
    found = bleu(candidates, references)
    assert all(0.0 <= value <= 1.0 for value in found)
    assert found == pytest.approx(bleu(candidates[::-1], references[::-1]))


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS.filter(lambda text: len(text.split()) >= 4), min_size=2, max_size=5, unique=True))
def test_a_perfect_candidate_has_the_most(texts: list[str]) -> None:
    references = [[text] for text in texts]
    assert exact_match(texts, references) == [True] * len(texts)
    assert bleu(texts, references) == pytest.approx([1.0] * 4)
    assert rouge_l(texts, references) == pytest.approx([1.0] * len(texts))
    for metric in (cider, cider_d):
        found = metric(texts, references)
        other = metric(["dog", *texts[1:]], references)
        assert found[0] >= other[0] == 0.0 and max(found) <= 10.0 + 1e-9


def test_edges() -> None:
    assert (
        bleu([""], [["a"]]) == [0.0] * 4
        and rouge_l([""], [["a"]]) == [0.0]
        and cider_d(["", "x"], [["a"], ["b"]]) == [0.0, 0.0]
    )
    assert cider(["a b"], [["a b"]]) == [0.0]  # of one row every word is in every document
    assert exact_match(["A dog!", "a cat"], [["the dog", "a dog."], ["a dog"]]) == [True, False]
    assert common_subsequence("abcbdab", "bdcaba") == 4
    with pytest.raises(ValueError, match="2 candidates and 1 lists"):
        bleu(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="row 1 has no reference"):
        cider(["a", "b"], [["a"], []])
