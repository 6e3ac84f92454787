"""Answers as whole sentences: the other form in which an answer can be given, true like the short one."""

import re
from collections.abc import Callable

from vlmzoo.data.scenes.text import Question, with_article

FORMS = ("short", "sentence")


def sentence(question: Question) -> str:
    """The answer to a question as a sentence that holds the short one, in words of the question.

    "What colour is the circle?", "red" becomes "the circle is red."
    """
    pattern, say = _SAYINGS[question.kind]
    found = re.fullmatch(pattern, question.question)
    if found is None:  # a wording that text.py has and this table does not know
        raise ValueError(f"no sentence answers {question.question!r} of kind {question.kind!r}")
    return f"{say(question.answer, *found.groups())}."


def _count(answer: str, things: str) -> str:
    return f"the number of {things} is {answer}"


def _relation(answer: str, first: str, second: str) -> str:
    way = f"to the {answer} of" if answer in ("left", "right") else answer
    return f"{first} is {way} {second}"


# By kind of question: its wording, and what is made of the answer and the pieces of the wording.
_SAYINGS: dict[str, tuple[str, Callable[..., str]]] = {
    "colour": (r"What colour is (.+)\?", lambda answer, thing: f"{thing} is {answer}"),
    "shape": (r"What shape is .+\?", lambda answer: f"it is {with_article(answer)}"),
    "size": (r"Is (.+) small or large\?", lambda answer, thing: f"{thing} is {answer}"),
    "place": (r"Where is (.+)\?", lambda answer, thing: f"{thing} is {'in' if answer == 'centre' else 'at'} the {answer}"),
    "count": (r"How many (.+) are there\?", _count),
    "colour_count": (r"How many (.+) are there\?", _count),
    "shape_count": (r"How many (.+) are there\?", _count),
    "presence": (
        r"Is there (.+)\?", lambda answer, thing: f"yes, there is {thing}" if answer == "yes" else "no, there is none",
    ),
    "relation": (r"Is (.+) (?:left or right of|above or below) (.+)\?", _relation),
    "text": (r"What does the sign say\?", lambda answer: f"the sign says {answer}"),
}  # fmt: skip
