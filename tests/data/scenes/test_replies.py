"""Answers as sentences: every wording has one, and it holds the short answer and no other choice."""

import re

import pytest

from vlmzoo.data.scenes import KINDS, MORE_KINDS, Question, Scenes
from vlmzoo.data.scenes.replies import sentence


@pytest.mark.parametrize(
    ("kind", "question", "answer", "said"),
    [
        ("colour", "What colour is the small circle?", "red", "the small circle is red."),
        ("shape", "What shape is at the top left?", "arrow", "it is an arrow."),
        ("size", "Is the red ring small or large?", "large", "the red ring is large."),
        ("place", "Where is the ring?", "top left", "the ring is at the top left."),
        ("place", "Where is the ring?", "centre", "the ring is in the centre."),
        ("count", "How many large shapes are there?", "two", "the number of large shapes is two."),
        ("presence", "Is there an orange star?", "yes", "yes, there is an orange star."),
        ("presence", "Is there an orange star?", "no", "no, there is none."),
        ("relation", "Is the red ring left or right of the blue star?", "left", "the red ring is to the left of the blue star."),
        ("relation", "Is the red ring above or below the blue star?", "below", "the red ring is below the blue star."),
        ("text", "What does the sign say?", "42", "the sign says 42."),
    ],
)  # fmt: skip
def test_sentences(kind, question, answer, said):
    assert sentence(Question(kind, question, answer, (answer,))) == said


def test_a_wording_without_a_sentence_is_told():
    with pytest.raises(ValueError, match="no sentence answers 'Which one"):
        sentence(Question("colour", "Which one?", "red", ("red",)))


def test_every_kind_is_answered_in_both_forms():
    options = {
        "split": "test",
        "rows": "vqa",
        "kinds": KINDS + MORE_KINDS,
        "length": 120,
        "size": 16,
        "signs": 0.5,
        "grid": 3,
    }
    short, long = Scenes(**options), Scenes(**options, answers="sentence")
    for one, other in zip(short, long, strict=True):
        (*asked, said), (*same, answer) = one["parts"], other["parts"]
        assert asked == same and one["truth"] == other["truth"] and said["text"] == one["truth"]["answer"]
        assert answer["text"].endswith(".") and len(answer["text"].split()) > len(said["text"].split())
        assert re.search(rf"\b{re.escape(said['text'])}\b", answer["text"])
        others = {choice for choice in one["truth"]["choices"] if choice != said["text"]}
        assert not others & set(re.findall(r"[\w ]+", answer["text"]))
    dialogue = Scenes(rows="dialogue", length=1, size=16, answers="sentence")[0]["parts"]
    assert all(part["text"].endswith(".") for part in dialogue if part["role"] == "assistant")


def test_forms_are_of_answers():
    with pytest.raises(ValueError, match="answers is for rows vqa or dialogue; these are captions"):
        Scenes(rows="captions", answers="sentence")
    with pytest.raises(ValueError, match="unknown answers 'sentences': did you mean 'sentence'"):
        Scenes(rows="vqa", answers="sentences")
