"""Replies of a model: the parser takes the form asked for and nothing else; each filter refuses what it is for."""

from __future__ import annotations

import pytest

from vlmzoo.endpoint import Reply
from vlmzoo.methods.instruct import Annotated, Thing
from vlmzoo.methods.instruct.prompts import DETAIL_QUESTIONS, PROMPTS, Kind
from vlmzoo.methods.instruct.replies import CountCheck, Filters, Judged, judge

BOX = (0.1, 0.1, 0.2, 0.2)
PICTURE = Annotated(
    "1",
    "a.jpg",
    ("dogs",),
    tuple([Thing("dog", BOX)] * 3 + [Thing("hot dog", BOX), Thing("cat", BOX)]),
    frozenset({"person"}),
)
COUNTS = CountCheck(["dog", "hot dog", "cat", "bird", "person"])
LONG = "The dogs run over the grass in the sun, and a cat looks on from a wall at the right side of it all, half asleep."


def judged(
    text: str, kind: Kind = "conversation", finish: str = "stop", filters: Filters | None = None
) -> Judged:
    return judge(Reply(text, finish, 1, 1), PROMPTS[kind], kind, PICTURE, filters or Filters(), COUNTS)


def rounds(*pairs: tuple[str, str]) -> str:
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in pairs)


def reasons(found: Judged) -> list[str]:
    return [one.reason for one in found.refused]


GOOD = ("What do they do?", "They run over the grass.")


@pytest.mark.parametrize(
    "text",
    [
        rounds(GOOD, ("Is it day?", "Yes, the sun shines.")),
        rounds(GOOD, ("Is it day?", "Yes, the sun shines.")) + "\n===\n",
        rounds(GOOD, ("Is it day?", "Yes, the sun shines.")).replace("\n", "\r\n"),
        rounds(GOOD, ("Is it day?", "Yes, the sun shines.")).replace(":\n", ": ").replace("===", "======"),
        "<think>\nQuestion: hm\n</think>\n\n" + rounds(GOOD, ("Is it day?", "Yes, the sun shines.")),
    ],
)
def test_the_form_asked_for(text: str) -> None:
    found = judged(text)
    assert [(one.question, one.answer) for one in found.rounds] == [
        GOOD,
        ("Is it day?", "Yes, the sun shines."),
    ]
    assert found.refused == [] and {one.kind for one in found.rounds} == {"conversation"}


def test_lines_within_an_answer_stay() -> None:
    assert judged(rounds(("What is it?", "First.\n\nSecond."))).rounds[0].answer == "First.\n\nSecond."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Sure! Here it is:\n" + rounds(GOOD), "form"),
        ("no form at all", "form"),
        ('{"question": "x"}', "form"),
        (rounds(GOOD).replace("Question", "**Question**"), "form"),
        (rounds(GOOD) + "\n===\nQuestion:\nAnd then?", "rounds"),
        ("Answer:\nx\n===\nQuestion:\ny", "rounds"),
        ("Question:\nx\n===\nQuestion:\ny", "rounds"),
        ("Question:\nx\nAnswer:\ny", "rounds"),
        (rounds(("What?", "")), "empty"),
        (rounds(GOOD) + "\n===\n\n===\n" + rounds(GOOD), "form"),
        (rounds(("What is <image>?", "x")), "placeholder"),
        (rounds(("What is this?", "\ud800")), "unicode"),
    ],
)
def test_any_other_form_is_refused_as_a_whole(text: str, reason: str) -> None:
    found = judged(text)
    assert found.rounds == [] and reasons(found) == [reason]


def test_cut_and_withheld_replies_are_refused() -> None:
    assert reasons(judged(rounds(GOOD), finish="length")) == ["cut"]
    assert reasons(judged(rounds(GOOD), finish="content_filter")) == ["withheld"]


def test_detail_is_a_description_with_a_question_of_ours() -> None:
    [one] = judged(LONG, "detail").rounds
    assert one.question in DETAIL_QUESTIONS and one.answer == LONG
    assert judged(LONG, "detail").rounds == [one]
    assert reasons(judged(rounds(GOOD), "detail")) == ["form"]
    assert reasons(judged("Too short.", "detail")) == ["length"]
    assert len(set(DETAIL_QUESTIONS)) == 16


def test_reasoning_is_one_pair() -> None:
    assert len(judged(rounds(GOOD), "reasoning").rounds) == 1
    assert reasons(judged(rounds(GOOD, GOOD), "reasoning")) == ["rounds"]


REFUSED = [
    ("sources", "What is there?", "The captions say that it is a dog."),
    ("sources", "What do the bounding boxes show?", "A dog."),
    ("sources", "What is there?", "According to the given information, a dog."),
    ("sources", "What is in the description?", "A dog."),
    ("coordinates", "Where is it?", "It is at [0.1, 0.2, 0.3, 0.4]."),
    ("coordinates", "Where is it?", "Its left edge is at 0.12 of the width."),
    ("refusal", "What is the breed?", "I'm sorry, but nobody can say."),
    ("refusal", "What is the breed?", "It is not possible to say what it is."),
    ("refusal", "What is the breed?", "As an AI language model, I like dogs."),
    ("refusal", "What is the breed?", "The breed cannot be determined here."),
    ("length", "What?", "A dog."),
    ("length", "What is there?", "word " * 401),
    ("count", "How many dogs are there?", "There are two dogs."),
    ("count", "How many dogs are there?", "Four."),
    ("count", "How many birds are there?", "There is one."),
    ("count", "How many cats are there?", "None."),
    ("count", "What is there?", "Five small brown dogs play."),
    ("count", "What is there?", "There are no dogs."),
    ("count", "What is there?", "Two hot dogs lie there."),
    ("count", "What do the 4 dogs do?", "They play."),
]
KEPT = [
    ("What is written there?", "It costs $1.50 (in the shop), since 1998."),
    ("How many dogs are there?", "There are three dogs."),
    ("How many dogs are there?", "There are 3, and a cat watches them."),
    ("How many birds are there?", "There are no birds."),
    ("How many people are there?", "About twenty people."),
    ("What do they do?", "Two of the dogs play, one dog sleeps."),
    ("What do they do?", "Three dogs eat a hot dog; no other dogs are there."),
    ("How many tables are there?", "Nine."),
    ("Who holds the coordinated dogs?", "People in the crowd."),
]


@pytest.mark.parametrize(("reason", "question", "answer"), REFUSED)
def test_filters_refuse_one_round_and_keep_the_others(reason: str, question: str, answer: str) -> None:
    found = judged(rounds(GOOD, (question, answer), ("Is it day?", "Yes.")))
    assert [one.question for one in found.rounds] == [GOOD[0], "Is it day?"]
    assert reasons(found) == [reason] and found.refused[0].shown


@pytest.mark.parametrize(("question", "answer"), KEPT)
def test_filters_keep_what_is_well(question: str, answer: str) -> None:
    assert reasons(judged(rounds((question, answer)))) == []


def test_a_question_asked_again_is_dropped() -> None:
    found = judged(rounds(GOOD, ("what do THEY do", "Something else.")))
    assert len(found.rounds) == 1 and reasons(found) == ["duplicate"]


@pytest.mark.parametrize("reason", ["sources", "coordinates", "refusal", "count"])
def test_filters_can_be_switched_off(reason: str) -> None:
    off = {"sources": "sources", "coordinates": "places", "refusal": "refusals", "count": "counts"}[reason]
    for _, question, answer in (one for one in REFUSED if one[0] == reason):
        assert reasons(judged(rounds((question, answer)), filters=Filters(**{off: False}))) == []


def test_a_category_that_begins_with_another_is_not_the_other() -> None:
    beds = Annotated("3", "c.jpg", (), (Thing("dog", BOX), Thing("dog bed", BOX), Thing("dog bed", BOX)))
    counts = CountCheck(["dog", "dog bed"])
    assert counts.contradiction("What is there?", "Two dog beds and one dog.", beds) is None
    assert counts.contradiction("How many dog beds are there?", "There are two.", beds) is None
    assert counts.contradiction("What is there?", "Two dogs.", beds) is not None


def test_without_boxes_nothing_is_contradicted() -> None:
    blind = Annotated("2", "b.jpg", ("dogs",))
    found = judge(
        Reply(rounds(("How many dogs?", "Nine dogs.")), "stop", 0, 0),
        PROMPTS["conversation"],
        "conversation",
        blind,
        Filters(),
        COUNTS,
    )
    assert found.refused == []


@pytest.mark.parametrize("kind", PROMPTS)
def test_our_own_examples_pass(kind: Kind) -> None:
    """What the model is shown is what we would take from it."""
    prompt = PROMPTS[kind]
    assert len(prompt.examples) >= 2
    for number, example in enumerate(prompt.examples):
        things = tuple(Thing(one.category, one.bbox) for one in example.instances)
        picture = Annotated(str(number), "x.jpg", example.captions, things)
        counts = CountCheck(one.category for one in example.instances)
        found = judge(Reply(example.reply, "stop", 0, 0), prompt, kind, picture, Filters(), counts)
        assert found.refused == [] and found.rounds
        assert len(found.rounds) == (1 if kind != "conversation" else 5)
        turns = prompt.messages(picture)
        assert turns[-1]["content"] == turns[1 + 2 * number]["content"]
        assert [turn["role"] for turn in turns] == [
            "system",
            *["user", "assistant"] * len(prompt.examples),
            "user",
        ]
