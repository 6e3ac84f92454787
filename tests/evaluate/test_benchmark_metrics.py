"""The benchmarks' scorers on cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from vlmzoo.evaluate import benchmark_metrics as b
from vlmzoo.evaluate.answer_metrics import soft_accuracy, yes_no_statistics

CHOICES = ["a red car", "a dog", "None", "the sky"]


def test_soft_accuracy_leaves_each_annotator_out() -> None:
    """3 of 10: for each of the 7 that said otherwise min(3/3, 1) = 1, for each of the 3 that agree 2/3: 0.9."""
    assert soft_accuracy("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx(0.9)
    assert soft_accuracy("A cat.", ["cat"] * 4 + ["dog"] * 6) == 1.0
    assert soft_accuracy("two", ["2"] * 1 + ["3"] * 9) == pytest.approx((9 * 1 / 3 + 0) / 10)


def test_all_yes_on_balanced_questions_has_f1_of_two_thirds() -> None:
    found = yes_no_statistics(["yes"] * 6, ["yes", "no"] * 3)
    assert found["f1"] == pytest.approx(2 / 3) and found["precision"] == 0.5 and found["recall"] == 1.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), (" b ", "B"), ("B.", "B"), ("(B)", "B"), ("B: a dog", "B"), ("(B) a dog", "B"), ("B.\nBecause", "B"),
        ("The answer is C.", "C"), ("I think the answer is (D)", "D"), ("Answer: B, as the answer is B", "B"),
        ("The answer is A. No, the answer is B.", None),  # two of them
        ("a dog", "B"), ("A dog.", "B"), ("none", "C"),  # the option's own text
        ("A dog and a cat", None), ("A red car is there", None), ("E", None), ("E. text", None), ("", None), ("?", None),
        ("BC", None), ("B and C", None),
    ],
)  # fmt: skip
def test_letters_of_options(answer: str, letter: str | None) -> None:
    assert b.option_letter(answer, CHOICES) == letter


def test_an_options_text_that_two_share_names_none() -> None:
    assert b.option_letter("red", ["red", "Red.", "blue"]) is None
    assert b.option_letter("blue", ["red", "Red.", "blue"]) == "C"


def test_exact_answers() -> None:
    assert b.exact_answer("Left.") == "left" != b.exact_answer("the left")
    assert b.exact_answer("  T-Shirt ") == "t-shirt"


def test_turns_of_options() -> None:
    assert [b.turned("ABC", by) for by in range(4)] == [[*"ABC"], [*"CAB"], [*"BCA"], [*"ABC"]]


def test_a_circle_is_right_where_every_turn_is() -> None:
    right = [True, True, True, True, False, True]
    assert b.all_right(right, ["q1", "q2", "q1", "q1", "q2", "q3"]) == {"q1": True, "q2": False, "q3": True}


def test_consistency() -> None:
    """q1 is right and entails q2 (right) and q3 (wrong): 1/2; q2 entails q1: 1; q3 is wrong: it does not count."""
    right = {"q1": True, "q2": True, "q3": False}
    entailed = {"q1": ["q2", "q3", "elsewhere"], "q2": ["q1"], "q3": ["q1"]}
    assert b.consistency(right, entailed) == [0.5, 1.0]
    assert b.consistency({"q1": True}, {"q1": ["elsewhere"]}) == []


def test_means_by_axis() -> None:
    groups = [
        {"subject": "NAT", "context": ["TXT", "IMG"]},
        {"subject": "NAT", "context": ["NO"]},
        {"subject": "SOC", "context": ["IMG"], "grade": None},
    ]
    found, table = b.by_axis("accuracy", [1, 0, 1], groups)
    assert found["accuracy_NAT"] == 0.5 and found["accuracy_IMG"] == 1.0 and found["accuracy_NO"] == 0.0
    assert found["accuracy_NAT_stderr"] == pytest.approx(math.sqrt(0.25 / 2))
    assert {(line["axis"], line["group"], line["n"]) for line in table} == {
        ("subject", "NAT", 2), ("subject", "SOC", 1), ("context", "TXT", 1), ("context", "IMG", 2), ("context", "NO", 1),
    }  # fmt: skip
    many = [{"type": f"is it {i}?"} for i in range(b.MOST_GROUPS + 1)]
    found, table = b.by_axis("soft_accuracy", [0.3] * len(many), many)
    assert not found and len(table) == len(many)


def test_mme() -> None:
    """existence: pictures a (right, right) and b (right, wrong): 3/4 and 1/2, 125 points; code_reasoning: 0 of 2, 0."""
    right = [True, True, True, False, False, False]
    pictures = ["a", "a", "b", "b", "a", "a"]
    categories = ["existence"] * 4 + ["code_reasoning"] * 2
    found, table = b.mme_scores(right, pictures, categories)
    assert found["perception"] == 125.0 and found["cognition"] == 0.0
    assert found["accuracy"] == 0.5 and found["accuracy_plus"] == pytest.approx(1 / 3)
    assert [(line["kind"], line["accuracy"], line["accuracy_plus"], line["score"]) for line in table] == [
        ("perception", 0.75, 0.5, 125.0),
        ("cognition", 0.0, 0.0, 0.0),
    ]
    assert len(b.PERCEPTION) == 10 and len(b.COGNITION) == 4
