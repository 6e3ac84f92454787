"""Replies of a text model to rounds of a conversation: a strict parser, and filters that each say why they refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from vlmzoo.config import Config
from vlmzoo.data.scenes.chance import keyed, pick
from vlmzoo.data.scenes.text import NUMBERS
from vlmzoo.data.sources.shapes import PLACE
from vlmzoo.endpoint import Reply
from vlmzoo.methods.instruct.prompts import Prompt
from vlmzoo.methods.instruct.records import Annotated
from vlmzoo.methods.instruct.rules import Round
from vlmzoo.methods.instruct.words import plural

BLOCK = re.compile(r"(Question|Answer):\s*(.*)", re.S)
SEPARATION = re.compile(r"^[ \t]*={3,}[ \t]*$", re.M)
THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.S)  # aloud before the reply, where a server leaves it in

SOURCES = re.compile(
    r"\bcaptions?\b|\bbounding[ -]box(?:es)?\b|\bcoordinates?\b|\bannotations?\b|\bmetadata\b"
    r"|\b(?:the|these|those|given|provided|your) (?:notes|descriptions|sentences)\b"
    r"|\b(?:according to|based on|mentioned in|stated in) the (?:given |provided )?(?:text|information|list)\b"
    r"|\b(?:to|on|in|from|by) the (?:given |provided )?description\b",
    re.I,
)
NUMBERED_PLACE = re.compile(r"[\[(]\s*\d*\.?\d+\s*(?:,\s*\d*\.?\d+\s*){1,3}[\])]|(?<![\d.])0?\.\d{2,}\b")
REFUSAL = re.compile(
    r"\b(?:i'?m|i am) (?:sorry|unable|not able)\b|\bas an? (?:ai|artificial|(?:large )?language)\b"
    r"|\bi (?:can ?not|can't|could not|couldn't|do not|don't) (?:see|view|tell|determine|know|have access|assist|help)\b"
    r"|\b(?:is|it's|isn't|are) (?:not possible|impossible|not clear|unclear|not specified|not mentioned|not stated)\b"
    r"|\b(?:cannot|can't|could not) be (?:determined|seen from|told)\b|\bnot enough information\b",
    re.I,
)
HOW_MANY = re.compile(r"\bhow many\b|\bwhat (?:is the )?number of\b", re.I)


class Filters(Config):
    """What a round must be like to be kept.

    Attributes:
        question_words, answer_words: fewest and most words. description_words: the same of an answer that is a whole
            reply (detail). sources: refuse talk of captions, boxes and the like. places: refuse coordinates. refusals:
            refuse answers that say they cannot tell. duplicates: refuse a question that was asked before in the
            conversation. counts: refuse numbers that the boxes contradict.
    """

    question_words: tuple[int, int] = (2, 80)
    answer_words: tuple[int, int] = (1, 400)
    description_words: tuple[int, int] = (20, 400)
    sources: bool = True
    places: bool = True
    refusals: bool = True
    duplicates: bool = True
    counts: bool = True


@dataclass(frozen=True)
class Refused:
    """Something that is not used: a word for why, and the piece that showed it."""

    reason: str
    shown: str


@dataclass
class Judged:
    """What became of a reply: the rounds to use, and what was refused."""

    rounds: list[Round] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


class ReplyError(ValueError):
    """A reply that is not of the form asked for."""

    def __init__(self, reason: str, shown: str) -> None:
        super().__init__(f"{reason}: {shown}")
        self.refused = Refused(reason, shown)


def judge(
    reply: Reply, prompt: Prompt, kind: str, picture: Annotated, filters: Filters, counts: CountCheck
) -> Judged:
    """The rounds of a reply that pass the filters, in order.

    A reply that is cut off or not of the form asked for is refused as a whole; of others each round stands alone.

    Args:
        reply: as the endpoint gave it. prompt, kind: what was asked for. picture: whom it is about.
        filters: what to refuse. counts: knows the words for categories.
    """
    judged = Judged()
    try:
        pairs = parse(reply, prompt, kind, picture)
    except ReplyError as error:
        judged.refused.append(error.refused)
        return judged
    asked: set[str] = set()
    for question, answer in pairs:
        refused = _refusal(question, answer, prompt, filters) or (
            counts.contradiction(question, answer, picture) if filters.counts else None
        )
        words = " ".join(re.findall(r"\w+", question.lower()))
        if refused is None and filters.duplicates and words in asked:
            refused = Refused("duplicate", question)
        if refused is None:
            asked.add(words)
            judged.rounds.append(Round(question, answer, kind))
        else:
            judged.refused.append(refused)
    return judged


def parse(reply: Reply, prompt: Prompt, kind: str, picture: Annotated) -> list[tuple[str, str]]:
    """Question and answer pairs of a reply.

    Raises:
        ReplyError: cut off, empty, no alternating blocks, an empty one, or more of them than asked for.
    """
    text = THOUGHT.sub("", reply.text).replace("\r\n", "\n").strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ReplyError("unicode", ascii(text[:200])) from None
    if reply.finish_reason == "length":
        raise ReplyError("cut", text[-200:])
    if reply.finish_reason == "content_filter":
        raise ReplyError("withheld", text[:200])
    if not text:
        raise ReplyError("empty", "")
    if PLACE in text:
        raise ReplyError("placeholder", text[:200])
    if not prompt.questions:
        return _pairs(text, prompt.rounds)
    if SEPARATION.search(text) or re.match(r"(Question|Answer):", text):
        raise ReplyError("form", text[:200])
    return [(pick(keyed(picture.id, kind), prompt.questions), text)]


def _pairs(text: str, most: int) -> list[tuple[str, str]]:
    blocks = [block.strip() for block in SEPARATION.split(text)]
    if len(blocks) > 1 and not blocks[-1]:  # a separator at the end
        blocks.pop()
    found: list[str] = []
    for number, block in enumerate(blocks):
        match = BLOCK.fullmatch(block)
        wanted = ("Question", "Answer")[number % 2]
        if match is None:
            raise ReplyError("form", block[:200])
        if match[1] != wanted or re.search(r"^(?:Question|Answer):", match[2], re.M):
            raise ReplyError("rounds", block[:200])
        if not match[2].strip():
            raise ReplyError("empty", block[:200])
        found.append(match[2].strip())
    if len(found) % 2 or (most and len(found) > 2 * most):
        raise ReplyError("rounds", f"{len(found)} blocks: {text[-200:]}")
    return list(zip(found[::2], found[1::2], strict=True))


def _refusal(question: str, answer: str, prompt: Prompt, filters: Filters) -> Refused | None:
    both = f"{question}\n{answer}"
    whole = filters.description_words if prompt.questions else filters.answer_words
    for text, (fewest, most) in ((question, filters.question_words), (answer, whole)):
        if not fewest <= len(text.split()) <= most:
            return Refused("length", f"{len(text.split())} words: {text[:200]}")
    for wanted, reason, pattern, text in (
        (filters.sources, "sources", SOURCES, both),
        (filters.places, "coordinates", NUMBERED_PLACE, both),
        (filters.refusals, "refusal", REFUSAL, answer),
    ):
        match = pattern.search(text) if wanted else None
        if match:
            return Refused(reason, text[max(0, match.start() - 60) : match.end() + 60])
    return None


class CountCheck:
    """Finds numbers of objects in a text and compares them with boxes.

    Args:
        categories: of the whole data set. Longer names go first: "two hot dogs" are no dogs.
    """

    def __init__(self, categories: Iterable[str]) -> None:
        self._names: dict[str, str] = {}
        for category in categories:
            self._names[category.lower()] = self._names[plural(category).lower()] = category
        words = "|".join(map(re.escape, sorted(self._names, key=lambda name: (-len(name), name))))
        numbers = "|".join((r"\d{1,3}", *NUMBERS, "ten", "eleven", "twelve"))
        self._pattern = re.compile(rf"\b({numbers}|no)((?:\s+[a-z-]+){{0,2}}?)\s+({words})\b", re.I)
        self._asked = re.compile(rf"\b({words})\b", re.I)
        self._number = re.compile(rf"\b({numbers}|no|none|an?)\b", re.I)

    def contradiction(self, question: str, answer: str, picture: Annotated) -> Refused | None:
        """Why a round's numbers cannot be, or None.

        Asked how many there are of a category, the answer's first number must be the number of its boxes. Elsewhere a
        text may speak of fewer ("two of the dogs"), never of more. Crowds contradict nothing.
        """
        if not self._names or not picture.things:
            return None
        counts = picture.counts()
        how_many = HOW_MANY.search(question)
        about = self._asked.search(question, how_many.end()) if how_many else None
        if about and len({self._names[name.lower()] for name in self._asked.findall(question)}) == 1:
            category = self._names[about[1].lower()]
            said = self._number.search(answer)
            number = _number(said[1]) if said else None
            if number is not None and category not in picture.crowds and number != counts.get(category, 0):
                return Refused(
                    "count", f"{counts.get(category, 0)} boxes of {category}: {question} {answer[:200]}"
                )
        for text in (question, answer):
            for match in self._pattern.finditer(text):
                category, number = self._names[match[3].lower()], _number(match[1])
                if category in picture.crowds or (number == 0 and match[2]):  # "no other dog"
                    continue
                there = counts.get(category, 0)
                if number is not None and (number > there or (number == 0 < there)):
                    return Refused("count", f"{there} boxes of {category}: {match[0]}")
        return None


def _number(word: str) -> int | None:
    low = word.lower()
    if low.isdecimal():
        return int(low)
    if low in ("no", "none"):
        return 0
    if low in ("a", "an"):
        return 1
    return (*NUMBERS, "ten", "eleven", "twelve").index(low)
