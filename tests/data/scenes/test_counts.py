"""Counts by colour and by shape, and conversations that never answer themselves."""

import re
from collections import Counter, defaultdict

import pytest

from tests.data.scenes.checker import COLOURS, NUMBERS, SHAPES
from vlmzoo.data import scenes as s

KINDS = ("colour_count", "shape_count")


def word_of(question: str) -> str:
    """The colour or shape that "How many red shapes are there?" asks for."""
    word = re.fullmatch(r"How many (\w+)(?: shapes)? are there\?", question)[1]
    return next(known for known in (*COLOURS, *SHAPES) if word in (known, known + "s", known + "es"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split,grid,most", [("train", 2, 4), ("test", 3, 9), ("novel", 3, 9)])
def test_counts_are_true(split, grid, most, kind):
    for row in s.Scenes(split, "vqa", kinds=[kind], length=80, objects=(1, most), grid=grid, size=8):
        truth, word = row["truth"], word_of(row["truth"]["question"])
        have = sum(word in (thing["colour"], thing["shape"]) for thing in truth["objects"])
        assert truth["answer"] == NUMBERS[have] in truth["choices"]
        assert len(truth["choices"]) == grid * grid + 1


@pytest.mark.parametrize("kind", KINDS)
def test_wording_does_not_give_counts_away(kind):
    """No answer dominates, and a table wording -> commonest answer learnt on one half is no better on the other."""
    data = s.Scenes("train", "vqa", kinds=[kind], length=3000, size=8)
    asked = []
    for i in range(3000):
        scene = data.scene(i)
        (question,) = s.questions(scene, [kind])
        asked.append((question.question, question.answer))
    answers = Counter(answer for _, answer in asked)
    most = max(answers.values()) / 3000
    assert most < 0.5 and answers["two"] > 300
    table = defaultdict(Counter)
    for text, answer in asked[::2]:
        table[text][answer] += 1
    right = sum(table[text].most_common(1)[0][0] == answer for text, answer in asked[1::2])
    assert right / 1500 < most + 0.05


def test_count_captions_repeat_words():
    """There is something to count: most of these scenes have two of a colour or of a shape."""
    data = s.Scenes("train", detail="count", length=300, objects=(2, 4), size=8)
    assert (
        sum(bool(re.search("two|three", re.sub(".*: ", "", row["truth"]["caption"]))) for row in data) > 120
    )


@pytest.mark.parametrize("signs", [0.0, 1.0])
def test_no_turn_is_answered_by_earlier_ones(signs):
    """Read from the words alone: what was asserted before never holds the answer on presence or number."""
    data = s.Scenes(
        "val",
        "dialogue",
        length=400,
        turns=12,
        size=8,
        objects=(1, 3),
        signs=signs,
        kinds=(*s.KINDS, *KINDS, *(s.MORE_KINDS[2:] if signs else ())),
    )
    kinds = Counter()
    for row in data:
        asserted, denied = "", set()
        for turn in row["truth"]["questions"]:
            kinds[turn["kind"]] += 1
            question, answer = turn["question"].rstrip("?"), turn["answer"]
            if turn["kind"] == "presence":
                named = [word for word in question.split() if word in COLOURS or word in SHAPES]
                assert not denied & set(named), (row["id"], question)
                assert " ".join(named) not in asserted, (row["id"], question)
            if turn["kind"] in KINDS:
                assert word_of(turn["question"]) not in denied, (row["id"], question)
                assert word_of(turn["question"]) not in asserted, (row["id"], question)
            none = answer in ("no", "zero")
            if none and (turn["kind"] in KINDS or question.endswith(" shape") or len(question.split()) == 4):
                denied.update(word for word in (*COLOURS, *SHAPES) if word in question)
            if not none:
                asserted += f" {question} {answer}."
    assert set(kinds) == {*s.KINDS, "colour_count", "shape_count"} | ({"text"} if signs else set())
    assert min(kinds.values()) > 30, kinds


def test_default_conversations_have_no_new_kinds_but_text_with_signs():
    plain = {
        q["kind"] for row in s.Scenes(rows="dialogue", length=60, size=8) for q in row["truth"]["questions"]
    }
    signed = {
        q["kind"]
        for row in s.Scenes(rows="dialogue", length=60, size=8, signs=1.0)
        for q in row["truth"]["questions"]
    }
    assert plain == set(s.KINDS) and signed == {*s.KINDS, "text"}
