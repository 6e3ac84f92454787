"""VQA normalisation and soft accuracy by hand cases of the challenge's rules; POPE statistics by counting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmzoo.evaluate.answer_metrics import (
    CONTRACTIONS,
    is_short,
    names_only,
    soft_accuracy,
    vqa_normalise,
    yes_no_statistics,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Two", "2"), ("none", "0"), ("The dog", "dog"), ("a an the", ""), ("yes.", "yes"), ("St. Louis", "st louis"),
        ("3.5", "3.5"), ("$2,000", "$2000"), ("red,white", "red white"), ("red, white", "red white"),
        ("t-shirt", "t shirt"), ("black - white", "black white"), ("dont", "don't"), ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("its", "its"), ("oclock", "o'clock"),
        ("10 am\n", "10 am"), ("is it?", "is it"), ("twenty", "twenty"), ("B+", "b"), ("A+", ""),
        ("(left)", "left"), ("1/2", "1 2"), ("ten o clock", "10 o clock"), ("", ""),
    ],
)  # fmt: skip
def test_the_challenges_normalisation(answer: str, plain: str) -> None:
    assert vqa_normalise(answer) == plain


def test_contractions_are_put_right_and_words_left_alone() -> None:
    assert CONTRACTIONS["youre"] == "you're" and CONTRACTIONS["id've"] == "i'd've"
    assert not {"its", "were", "well", "ill", "id", "shed", "wed", "hell", "shell", "lets"} & set(
        CONTRACTIONS
    )


def test_soft_accuracy_leaves_out_each_annotator() -> None:
    def of(matches: int) -> float:
        return soft_accuracy("red", ["Red"] * matches + ["blue"] * (10 - matches))

    # three of ten: 0.9, not 1 (LLaVA's and the challenge's scorers; 0.3 and 0.6 for one and two)
    assert [of(n) for n in range(6)] == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.0, 1.0])
    with pytest.raises(ValueError):
        soft_accuracy("red", [])


@given(st.text("ab ", max_size=3), st.lists(st.sampled_from(["a b", "b", "ab"]), min_size=1, max_size=10))
def test_soft_accuracy_by_its_definition(answer: str, answers: list[str]) -> None:
    said = vqa_normalise(answer)
    wanted = 0.0
    for left_out in range(len(answers)):
        others = [vqa_normalise(one) for i, one in enumerate(answers) if i != left_out]
        wanted += min(1.0, others.count(said) / 3) / len(answers)
    assert soft_accuracy(answer, answers) == pytest.approx(wanted) == soft_accuracy(answer, answers[::-1])


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ("Yes", "yes"), ("yes, there is.", "yes"), ("No.", "no"), ("There is not a dog, yes", "no"), ("It isn't", "no"),
        ("Nothing", None), ("I know it", None), ("", None), ("yes. no dog", "yes"), ("True", "yes"), ("false", "no"),
        ("a dog\nno", None), (" YES!", "yes"),
    ],
)  # fmt: skip
def test_yes_or_no(answer: str, meant: str | None) -> None:
    assert yes_or_no(answer) == meant


def test_yes_to_everything_on_balanced_questions() -> None:
    found = yes_no_statistics(["yes"] * 10, ["yes", "no"] * 5)
    assert found["f1"] == pytest.approx(2 / 3)  # POPE's sign of a model that always agrees
    assert found["accuracy"] == found["precision"] == 0.5 and found["recall"] == found["yes_ratio"] == 1.0
    assert found["accuracy_stderr"] == pytest.approx(math.sqrt(0.25 / 10)) and found["unanswered"] == 0.0


def test_statistics_by_counting() -> None:
    answers = ["yes", "yes", "no", "no", None, None, "yes"]
    truths = ["yes", "no", "no", "yes", "yes", "no", "yes"]
    found = yes_no_statistics(answers, truths)
    assert found["accuracy"] == pytest.approx(3 / 7)  # neither is wrong
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert found["yes_ratio"] == pytest.approx(3 / 7) and found["unanswered"] == pytest.approx(2 / 7)
    assert math.isnan(yes_no_statistics(["no"], ["no"])["f1"]) and math.isnan(
        yes_no_statistics([], [])["accuracy"]
    )


@given(st.lists(st.tuples(st.sampled_from(["yes", "no", None]), st.sampled_from(["yes", "no"])), min_size=1))
def test_statistics_stay_in_bounds_and_ignore_order(pairs: list[tuple[str | None, str]]) -> None:
    found = yes_no_statistics([a for a, _ in pairs], [t for _, t in pairs])
    again = yes_no_statistics([a for a, _ in pairs[::-1]], [t for _, t in pairs[::-1]])
    for name, value in found.items():
        assert math.isnan(value) or 0.0 <= value <= 1.0
        assert again[name] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("left", True), ("It is to the LEFT.", True), ("left, or right", False), ("leftmost", False), ("", False),
        ("at the top left", False), ("top left and left", False),
    ],
)  # fmt: skip
def test_content_is_the_right_choice_and_no_other(answer: str, right: bool) -> None:
    choices = ("left", "right", "top left")
    assert names_only(answer, "left", choices) is right
    assert names_only(answer, "top left", choices) is (answer == "at the top left")


def test_short_form_is_a_word_or_a_phrase() -> None:
    assert is_short("top left", ("top left", "right")) and is_short("no idea", ("top left",))
    assert (
        not is_short("at the top left", ("top left",))
        and not is_short("", ("yes",))
        and not is_short("it is", ("yes",))
    )
