"""Scorers of the benchmarks: letters of options, circular evaluation, MME's pairs, GQA's consistency, means by group."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from vlmzoo.evaluate import metrics

MOST_GROUPS = 24  # an axis with more of them stands in the table alone
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_ALONE = re.compile(r"[A-Za-z]")
_FIRST = re.compile(r"\(?([A-Z])(?:$|[.:)]+(?:\s|$))")
_SAID = re.compile(r"\b[Aa]nswer is:? *\(?([A-Z])\b")


def option_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer names; None if it names none, or more than one.

    Taken are a letter alone, one that stands first with its mark (``B.``, ``(B)``, ``B: text``), the one that "the answer
    is", and an option's own text. ScienceQA's evaluation guesses where none is named; here that is wrong.
    """
    text = answer.strip()
    letters = ascii_uppercase[: len(choices)]
    first = _FIRST.match(text)
    said = set(_SAID.findall(text))
    if _ALONE.fullmatch(text):
        found = text.upper()
    elif first:
        found = first[1]
    elif said:
        found = said.pop() if len(said) == 1 else ""
    else:
        plain = metrics.normalise(text)
        same = [i for i, choice in enumerate(choices) if plain and metrics.normalise(choice) == plain]
        return letters[same[0]] if len(same) == 1 else None
    return found if found and found in letters else None


def exact_answer(text: str) -> str:
    """An answer as GQA's is compared by LLaVA's evaluation: lower case, without a last period."""
    return text.strip().lower().removesuffix(".").strip()


def turned(choices: Sequence[str], by: int) -> list[str]:
    """Options moved on by ``by`` places, the last ones to the front."""
    shift = by % len(choices)
    return [*choices[len(choices) - shift :], *choices[: len(choices) - shift]]


def all_right(right: Sequence[bool], names: Sequence[str]) -> dict[str, bool]:
    """Whether everything that goes by a name is right: MMBench's circles, MME's pictures (accuracy+)."""
    found: dict[str, bool] = {}
    for value, name in zip(right, names, strict=True):
        found[name] = found.get(name, True) and value
    return found


def consistency(right: Mapping[str, bool], entailed: Mapping[str, Sequence[str]]) -> list[float]:
    """GQA's consistency (Hudson and Manning 2019, section 4.4): for every question answered rightly, the share that is
    right of the questions it entails; those that are not among the rows are left out.

    Args:
        right: by the question's id. entailed: ids of the questions whose answers follow.
    """
    shares = []
    for name, others in entailed.items():
        known = [right[other] for other in others if other in right]
        if right[name] and known:
            shares.append(sum(known) / len(known))
    return shares


def by_axis(
    name: str, grades: Sequence[float], groups: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Means over the groups of every axis: metrics ``<name>_<group>``, and lines of a table.

    Args:
        name: of the grades, which lie from 0 to 1. groups: of each row, axis to a group or a list of them.
    """
    axes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for grade, own in zip(grades, groups, strict=True):
        for axis, group in own.items():
            for one in group if isinstance(group, list) else [group]:
                if one is not None:
                    axes[axis][str(one)].append(grade)
    found: dict[str, float] = {}
    table = []
    for axis, members in axes.items():
        for group, values in sorted(members.items()):
            value, error = share(values)
            table.append({"axis": axis, "group": group, name: value, "stderr": error, "n": len(values)})
            if len(members) <= MOST_GROUPS:
                found |= metrics.named(f"{name}_{_word(group)}", (value, error))
    return found, table


def share(grades: Sequence[float]) -> tuple[float, float]:
    """Mean grade and its standard error, which is binomial where grades are right or wrong."""
    if all(grade in (0, 1) for grade in grades):
        return metrics.accuracy([bool(grade) for grade in grades])
    return metrics.mean(grades)


def _word(group: str) -> str:
    return re.sub(r"[^A-Za-z0-9+-]+", "_", group).strip("_")


def mme_scores(
    right: Sequence[bool], pictures: Sequence[str], categories: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """MME's numbers (Fu et al. 2023): of a category 100 (accuracy + accuracy+), summed over perception and cognition.

    accuracy+ is the share of pictures whose questions are all answered rightly.

    Returns:
        accuracy and accuracy_plus over all, perception and cognition (of the categories there are), and a line for each
        category.
    """
    table = []
    sums: dict[str, float] = {}
    for category in dict.fromkeys(categories):
        own = [i for i, other in enumerate(categories) if other == category]
        value, error = metrics.accuracy([right[i] for i in own])
        plus, _ = metrics.accuracy(
            list(all_right([right[i] for i in own], [pictures[i] for i in own]).values())
        )
        kind = "perception" if category in PERCEPTION else "cognition" if category in COGNITION else ""
        line = {"category": category, "kind": kind, "accuracy": value, "stderr": error, "accuracy_plus": plus}
        table.append({**line, "score": 100 * (value + plus), "n": len(own)})
        if kind:
            sums[kind] = sums.get(kind, 0.0) + 100 * (value + plus)
    whole = [f"{category}/{picture}" for category, picture in zip(categories, pictures, strict=True)]
    pictured = metrics.accuracy(list(all_right(right, whole).values()))
    return {
        **metrics.named("accuracy", metrics.accuracy(right)),
        **metrics.named("accuracy_plus", pictured),
        **sums,
    }, table
