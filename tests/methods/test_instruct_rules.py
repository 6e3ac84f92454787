"""Rule-made questions: every answer is found again from the boxes by a check that shares no code with the generator."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from vlmzoo.config import ConfigError, read
from vlmzoo.methods.instruct import Annotated, Rules, Thing, write_rounds
from vlmzoo.methods.instruct.negatives import Absent
from vlmzoo.methods.instruct.records import annotated
from vlmzoo.methods.instruct.rules import KINDS, Round
from vlmzoo.methods.instruct.words import counted, listed, plural
from vlmzoo.types import RowError

CATEGORIES = ["person", "dog", "hot dog", "skis", "bus", "knife", "cherry", "umbrella", "wine glass"]
PLURALS = dict(
    zip(
        CATEGORIES,
        ["people", "dogs", "hot dogs", "skis", "buses", "knives", "cherries", "umbrellas", "wine glasses"],
        strict=True,
    )
)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def pictures(number: int, seed: int = 0) -> list[Annotated]:
    """Random boxes; rare categories, crowds, captions that name what has no box."""
    rng = random.Random(seed)
    made = []
    for i in range(number):
        names = rng.choices(CATEGORIES, weights=range(len(CATEGORIES), 0, -1), k=rng.randint(0, 7))
        things = []
        for name in names:
            left, top = rng.uniform(0, 0.9), rng.uniform(0, 0.9)
            things.append(Thing(name, (left, top, rng.uniform(left + 0.02, 1), rng.uniform(top + 0.02, 1))))
        crowds = frozenset({"person"} if rng.random() < 0.1 else ())
        captions = (
            (f"a view number {i} with an umbrella",) if rng.random() < 0.5 else ("two sentences", "of it.")
        )
        made.append(
            Annotated(
                str(i),
                f"{i}.jpg",
                captions,
                tuple(sorted(things)),
                crowds,
                rng.randint(50, 640),
                rng.randint(50, 480),
            )
        )
    return made


PICTURES = pictures(150)
ABSENT = Absent(PICTURES)


def rounds_of(picture: Annotated, **fields: object) -> list[Round]:
    return write_rounds(picture, Rules(**{"questions": 40, **fields}), ABSENT)


# --- the check ---------------------------------------------------------------------------------------------------


def plain(one: Round) -> tuple[str, str, list[str]]:
    """The question without its form, the answer in words, and the choices."""
    lines = one.question.split("\n")
    if lines[-1] == SHORT:
        assert one.form == "short" and len(lines) == 2
        return lines[0], one.answer, []
    if lines[-1] == LETTER:
        options = [line.split(". ", 1) for line in lines[1:-1]]
        assert [letter for letter, _ in options] == list("ABCD")[: len(options)] and one.form == "letter"
        texts = [text for _, text in options]
        assert len(set(texts)) == len(texts) >= 2
        return lines[0], dict(options)[one.answer], texts
    return "\n".join(lines), one.answer, []


def seen(picture: Annotated, name: str) -> list[Thing]:
    return [thing for thing in picture.things if thing.category == name]


def middle(picture: Annotated, name: str) -> tuple[float, float]:
    [thing] = seen(picture, name)
    assert name not in picture.crowds
    x0, y0, x1, y1 = thing.box
    return x0 + (x1 - x0) / 2, y0 + (y1 - y0) / 2


def cell_of(picture: Annotated, name: str) -> str:
    x, y = middle(picture, name)
    assert all(abs(edge - cut) > 0.019 for edge in (x, y) for cut in (1 / 3, 2 / 3))
    down = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else "middle"
    across = "left" if x < 1 / 3 else "right" if x > 2 / 3 else "middle"
    return "centre" if (down, across) == ("middle", "middle") else f"{down} {across}"


def number_in(text: str) -> int:
    """Of "There are two dogs ...", "There is a dog ...", or digits."""
    if text.isdecimal():
        return int(text)
    word = re.match(r"There (?:is|are) (\w+)", text)[1]  # type: ignore[index]
    return NUMBERS.index(word) if word in NUMBERS else 1


def check_presence(picture: Annotated, question: str, answer: str) -> None:
    name = re.fullmatch(r"(?:Is|Are) there (?:an?|any) (.+) in the picture\?", question)[1]  # type: ignore[index]
    there = bool(seen(picture, name)) or name in picture.crowds
    assert re.split(r"[,.]", answer)[0] == ("Yes" if there else "No")
    if not there:
        assert not any(re.search(rf"\b({name}|{PLURALS[name]})\b", text) for text in picture.captions)


def check_count(picture: Annotated, question: str, answer: str) -> None:
    words = re.fullmatch(r"How many (.+) are there in the picture\?", question)[1]  # type: ignore[index]
    [name] = [name for name, many in PLURALS.items() if many == words]
    assert name not in picture.crowds and number_in(answer) == len(seen(picture, name))


def check_cell(picture: Annotated, question: str, answer: str) -> None:
    name = re.fullmatch(r"In which part of the picture (?:is|are) the (.+)\?", question)[1]  # type: ignore[index]
    assert answer.lower() in (
        cell_of(picture, name),
        f"the {name} {'are' if name == 'skis' else 'is'} {'in' if cell_of(picture, name) == 'centre' else 'at'} the "
        f"{cell_of(picture, name)} of the picture.",
    )


def check_relation(picture: Annotated, question: str, answer: str) -> None:
    sides = "to the left or to the right of|above or below|to the left of|to the right of|above|below"
    one, side, other = re.fullmatch(rf"(?:Is|Are) the (.+?) ({sides}) the (.+)\?", question).groups()  # type: ignore[union-attr]
    (x, y), (u, v) = middle(picture, one), middle(picture, other)
    across = "left" in side or "right" in side
    gap = x - u if across else y - v
    assert abs(gap) >= 0.1 - 1e-9
    true = ("left", "right")[gap > 0] if across else ("above", "below")[gap > 0]
    if " or " in side:
        assert true in answer.lower()
        assert not ({"left", "right", "above", "below"} - {true}) & set(re.findall(r"\w+", answer.lower()))
    else:
        assert answer.split(",")[0] == ("Yes" if true in side else "No")
        assert "," not in answer or true in answer


def check_size(picture: Annotated, question: str, answer: str) -> None:
    pattern = r"Which takes up the (smaller|larger) part of the picture, the (.+) or the (.+)\?"
    word, *names = re.fullmatch(pattern, question).groups()  # type: ignore[union-attr]
    areas = {}
    for name in names:
        middle(picture, name)
        [thing] = seen(picture, name)
        areas[name] = (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])
    small, large = sorted(areas, key=areas.__getitem__)
    assert areas[large] >= 2 * areas[small]
    true = small if word == "smaller" else large
    assert answer == true[0].upper() + true[1:] or re.fullmatch(
        rf"The {true} takes? up the {word} part\.", answer
    )


def edges_in(text: str) -> list[float]:
    return [float(edge) for edge in re.fullmatch(r"\[(.+), (.+), (.+), (.+)\]", text).groups()]  # type: ignore[union-attr]


def close(edges: list[float], thing: Thing) -> bool:
    return all(abs(a - b) <= 0.00501 for a, b in zip(edges, thing.box, strict=True))


def check_region(picture: Annotated, question: str, answer: str) -> None:
    box, string = question.split("\n")
    assert string == "Provide a short description for this region."
    assert any(close(edges_in(box), thing) for thing in seen(picture, answer[0].lower() + answer[1:]))


def check_box(picture: Annotated, question: str, answer: str) -> None:
    said, string = question.split("\n")
    assert string == "Provide the bounding box coordinate of the region this sentence describes."
    [thing] = seen(picture, re.fullmatch(r"The (.+)\.", said)[1])  # type: ignore[index]
    assert close(edges_in(answer), thing)


def check_caption(picture: Annotated, question: str, answer: str) -> None:
    assert question == "Provide a one-sentence caption for the provided image." and answer in picture.captions


def check_detail(picture: Annotated, question: str, answer: str) -> None:
    caption = next(
        (text for text in picture.captions if answer.startswith(text.rstrip(".").capitalize())), None
    )
    assert caption is not None
    rest = answer[len(caption.rstrip(".")) + 2 :]
    counts, *places = re.split(r"(?<=\.) ", rest)
    listed_things = re.fullmatch(r"There (?:is|are) (.+) in the picture\.", counts)[1]  # type: ignore[index]
    want = Counter(thing.category for thing in picture.things if thing.category not in picture.crowds)
    for piece in re.split(r", | and ", listed_things):
        if piece.startswith("some "):
            assert PLURALS[next(iter(picture.crowds))] == piece[5:]
            continue
        found = [
            name
            for name, number in want.items()
            if piece
            in (
                {1: f"a {name}"}.get(number, f"{NUMBERS[number]} {PLURALS[name]}"),
                f"an {name}"[: 99 * (number == 1)],
            )
            or (number == 1 and piece == name == "skis")
        ]
        assert len(found) == 1, piece
        del want[found[0]]
    assert not want
    for place in places:
        name, where = re.fullmatch(r"The (.+?) (?:is|are) (?:at|in) the (.+)\.", place).groups()  # type: ignore[union-attr]
        assert cell_of(picture, name) == where


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in globals().copy().items()
    if name.startswith("check_")
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["short", "letter", "sentence"])
def test_every_answer_is_true(kind: str, form: str) -> None:
    found = 0
    for picture in PICTURES:
        for one in rounds_of(picture, kinds=(kind,), forms=(form,)):
            question, answer, choices = plain(one)
            CHECKS[kind](picture, question, answer)
            found += 1
            for wrong in set(choices) - {answer}:
                with pytest.raises(AssertionError):  # one choice is right, and the check can tell
                    CHECKS[kind](picture, question, wrong)
    assert found >= 60


def test_the_check_is_no_part_of_the_generator() -> None:
    for name, many in PLURALS.items():
        assert plural(name) == many


# --- negatives ---------------------------------------------------------------------------------------------------


def tiny(name: str, *categories: str, caption: str = "nothing said") -> Annotated:
    things = tuple(Thing(category, (0.1, 0.1, 0.2, 0.2)) for category in categories)
    return Annotated(name, f"{name}.jpg", (caption,), things)


def test_negatives_are_popes() -> None:
    """Frequencies: a 4, b 3, c 3, d 2, e 1. With e: d once. With d: c twice (a once, e once)."""
    data = [
        tiny("1", "a", "b"), tiny("2", "a", "b"), tiny("3", "a", "c", "d"), tiny("4", "c", "d"), tiny("5", "b", "c"),
        tiny("6", "a"), tiny("7", "d", "e"),
    ]  # fmt: skip
    absent, rng = Absent(data), random.Random(0)
    assert absent.choose(tiny("x", "d"), "popular", "d", [], rng) == "a"
    assert absent.choose(tiny("x", "d"), "popular", "d", ["a"], rng) == "b"
    assert absent.choose(tiny("x", "d"), "adversarial", "d", [], rng) == "c"
    assert absent.choose(tiny("x", "d"), "adversarial", "d", ["c"], rng) == "a"
    assert absent.choose(tiny("x", "e"), "adversarial", "e", ["d"], rng) is None
    drawn = Counter(absent.choose(tiny("x", "d"), "random", "d", [], rng) for _ in range(400))
    assert set(drawn) == {"a", "b", "c", "e"} and min(drawn.values()) > 60
    assert absent.choose(tiny("x", "d", caption="an a beside it"), "popular", "d", [], rng) == "b"


def test_negatives_take_turns_and_yes_and_no_are_balanced() -> None:
    found: Counter[str] = Counter()
    for picture in PICTURES:
        here = [one for one in rounds_of(picture) if one.kind == "presence"]
        found.update(one.negative or "present" for one in here)
    absent = sum(found.values()) - found["present"]
    assert 0.9 < absent / found["present"] <= 1  # a picture with nearly everything has too few absent ones
    assert all(found[how] > 40 for how in ("random", "popular", "adversarial"))


# --- the conversation --------------------------------------------------------------------------------------------


def test_nothing_depends_on_the_order_of_a_file() -> None:
    for picture in PICTURES[:30]:
        instances = [{"category": one.category, "bbox": list(one.box)} for one in picture.things]
        instances += [{"category": one, "bbox": [0, 0, 1, 1], "iscrowd": 1} for one in picture.crowds]
        record = {"image": picture.image, "captions": list(picture.captions), "instances": instances[::-1]}
        backwards = annotated(dict(reversed(record.items())), picture.id, "fractions")
        assert rounds_of(backwards) == rounds_of(picture)
    again = Absent(reversed(PICTURES))
    assert all(
        write_rounds(one, Rules(), again) == write_rounds(one, Rules(), ABSENT) for one in PICTURES[:30]
    )


def test_another_seed_asks_other_questions() -> None:
    assert sum(rounds_of(one) != rounds_of(one, seed=1) for one in PICTURES) > 100


def test_kinds_take_turns_up_to_the_limit() -> None:
    full = max(PICTURES, key=lambda one: len(rounds_of(one)))
    assert len(rounds_of(full, questions=5)) == 5
    kinds = [one.kind for one in rounds_of(full, questions=len(KINDS))]
    assert kinds == list(KINDS)
    for picture in PICTURES:
        asked = rounds_of(picture)
        assert [one.kind for one in asked] == sorted((one.kind for one in asked), key=KINDS.index)
        assert len({one.question for one in asked}) == len(asked)


def test_no_box_is_both_shown_and_asked_for() -> None:
    for picture in PICTURES:
        asked = rounds_of(picture)
        shown = {one.question.split("\n")[0] for one in asked if one.kind == "region"}
        assert not shown & {one.answer for one in asked if one.kind == "box"}


def test_boxes_of_the_padded_square() -> None:
    """A picture of 200 x 100 has 50 rows of padding above: y = 0.2 is (50 + 20) / 200."""
    wide = Annotated("w", "w.jpg", (), (Thing("dog", (0.5, 0.2, 1.0, 0.6)),), width=200, height=100)
    tall = replace(wide, width=101, height=200)  # (200 - 101) // 2 = 49 columns on the left
    found = [
        one.answer if one.kind == "box" else one.question.split("\n")[0]
        for picture in (wide, tall)
        for one in rounds_of(picture, padded=True, kinds=("region", "box"), decimals=3)
    ]
    assert found == ["[0.500, 0.350, 1.000, 0.550]", "[0.497, 0.200, 0.750, 0.600]"]
    with pytest.raises(RowError, match="width and height"):
        rounds_of(replace(wide, width=0, height=0), padded=True)


def test_a_region_that_two_categories_share_is_not_asked_about() -> None:
    box = (0.2, 0.2, 0.6, 0.6)
    both = Annotated("b", "b.jpg", (), (Thing("bed", box), Thing("dog", (0.2, 0.2, 0.6, 0.55))))
    for seed in range(10):
        assert not [one for one in rounds_of(both, seed=seed) if one.kind == "region"]


def test_a_picture_of_which_no_box_is_known_says_nothing_of_what_is_absent() -> None:
    assert [one.kind for one in rounds_of(Annotated("c", "c.jpg", ("a dog.",)))] == ["caption"]


def test_boxes_too_small_for_the_decimals_are_not_written() -> None:
    speck = Annotated("s", "s.jpg", (), (Thing("bird", (0.101, 0.101, 0.102, 0.3)),))
    for seed in range(6):
        assert not [one for one in rounds_of(speck, seed=seed) if one.kind in ("region", "box")]


def test_wrong_options_are_told() -> None:
    with pytest.raises(ConfigError, match=r"rules\.negatives"):
        read(Rules, {"negatives": ["popularr"]}, "rules")
    with pytest.raises(ConfigError, match=r"rules\.forms: wanted at least one name, each of them once"):
        read(Rules, {"forms": ["short", "short"]}, "rules")
    with pytest.raises(ConfigError, match="did you mean 'ratio'"):
        read(Rules, {"ration": 2}, "rules")


def test_words() -> None:
    words = {"tomato": "tomatoes", "toothbrush": "toothbrushes", "bench": "benches", "boy": "boys", "mouse": "mice",
             "sheep": "sheep", "traffic light": "traffic lights", "scissors": "scissors"}  # fmt: skip
    assert {one: plural(one) for one in words} == words
    assert [counted(1, "apple"), counted(1, "skis"), counted(3, "man"), counted(12, "cup")] == [
        "an apple", "skis", "three men", "12 cups",
    ]  # fmt: skip
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
