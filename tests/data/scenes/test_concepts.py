"""Concepts: frequencies as stated, names that mean one thing, true definitions."""

import re
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from vlmzoo.config import ConfigError
from vlmzoo.data import scenes as s
from vlmzoo.data.scenes.concepts import Concepts, ConceptsConfig

FEW = 8  # pixels: these tests read words


def close(found: int, share: float, total: int) -> bool:
    """Within five standard deviations of a count."""
    return abs(found - share * total) <= 5 * np.sqrt(total * share * (1 - share)) + 1


@pytest.mark.parametrize("split,exponent", [("train", 1.1), ("test", 0.0), ("novel", 2.0)])
def test_counts_are_those_expected(split, exponent):
    data = Concepts(split, length=2000, size=FEW, exponent=exponent)
    frequencies = [concept["frequency"] for concept in data.concepts]
    assert sum(frequencies) == pytest.approx(1) and len(frequencies) == (16 if split == "novel" else 32)
    for rank, frequency in enumerate(frequencies, 1):
        assert frequency == pytest.approx(frequencies[0] * rank**-exponent)
    rows = [data[i]["truth"] for i in range(2000)]
    seen, named = Counter(row["concept"] for row in rows), Counter(row["name"] for row in rows)
    for concept in data.concepts:
        assert close(seen[concept["name"]], concept["frequency"], 2000), concept
        for name, share in concept["name_frequencies"].items():
            assert close(named[name], concept["frequency"] * share, 2000), (concept, name)


def test_names_mean_one_thing_and_are_no_other_words():
    vocabulary = set()
    for i in range(150):
        scene = s.scene(0, "train", i, sign=i % 2 == 0)
        said = chain(s.captions(scene), (q.question for q in s.questions(scene)), s.class_prompts("red ring"))
        vocabulary |= {word.lower() for word in re.findall(r"\w+", " ".join(said)) if not word.isupper()}
    names = [
        name
        for split in ("train", "novel")
        for concept in Concepts(split, concepts=len(s.CLASSES) if split == "train" else 16).concepts
        for name in concept["synonyms"]
    ]
    assert len(names) == len(set(names)) == 80 * 3
    for name in names:
        assert name.isalpha() and name.islower()
        assert not any(word in name for word in vocabulary if len(word) > 2)
        assert not any(name in word for word in vocabulary)
        assert not any(name in other for other in names if other != name)


def test_concepts_are_shared_by_splits_seeds_and_numbers_but_not_by_novel():
    train = Concepts("train").concepts
    assert Concepts("test", seed=5).concepts == train
    fewer = Concepts("val", concepts=10).concepts
    assert [c["synonyms"] for c in fewer] == [c["synonyms"] for c in train[:10]]
    assert sum(c["frequency"] for c in fewer) == pytest.approx(1)
    assert Concepts("train", vocabulary=1).concepts != train
    novel = Concepts("novel")
    assert {tuple(c["kind"].split()) for c in novel.concepts} == set(s.NOVEL_CLASSES)
    assert [c["kind"] for c in Concepts("novel", concepts=5).concepts] == [
        c["kind"] for c in novel.concepts[:5]
    ]
    official = [c["synonyms"].index(c["name"]) for c in train]
    assert set(official) == {0, 1, 2}  # not always the commonest


@pytest.mark.parametrize("rows", ["captions", "labels"])
@pytest.mark.parametrize("split", ["train", "novel"])
def test_rows_show_what_definitions_say(split, rows):
    data = Concepts(split, rows, length=60, size=16, style=s.STYLES)
    by_name = {concept["name"]: (number, concept) for number, concept in enumerate(data.concepts)}
    for number, row in enumerate(data):
        truth = row["truth"]
        label, concept = by_name[truth["concept"]]
        (thing,) = truth["objects"]
        assert thing["name"] == concept["kind"]
        assert re.fullmatch(rf"an? {truth['concept']} is an? {thing['name']}\.", concept["definition"])
        assert row["id"] == f"scenes_concepts/{split}/{number}"
        assert set(np.unique(np.asarray(row["images"][0]["image"])[..., 2] % 4)) == {s.SPLITS.index(split)}
        if rows == "labels":
            assert row["label"] == label and truth["name"] is None and len(row["parts"]) == 1
            continue
        assert row["label"] is None and truth["name"] in concept["synonyms"]
        assert row["parts"][1]["text"] == truth["caption"] in truth["captions"]
        for text in truth["captions"]:
            assert truth["name"] in text.rstrip(".").split()
            assert not {thing["colour"], thing["shape"]} & set(text.rstrip(".").split())
            assert not re.search(r"\ban [^aeiou]|\ba [aeiou]", text)


def test_balanced_rows_take_turns():
    data = ConceptsConfig(split="test", rows="labels", balanced=True, length=96, size=FEW).open()
    assert Counter(row["label"] for row in data) == dict.fromkeys(range(32), 3)
    assert data.class_names[5] == f"a {data.concepts[5]['name']}" and data.class_templates
    assert {row["truth"]["objects"][0]["size"] for row in data} == {"small", "large"}


def test_rows_are_pure_and_bounded():
    rows = [Concepts("val", length=20, size=FEW, seed=3)[i]["truth"] for i in range(20)]
    assert [Concepts("val", length=500, size=FEW, seed=3)[i]["truth"] for i in range(20)] == rows
    assert [Concepts("val", length=20, size=FEW, seed=4)[i]["truth"] for i in range(20)] != rows
    with pytest.raises(IndexError):
        Concepts(length=3)[3]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"rows": "label"}, "did you mean 'labels'"),
        ({"concepts": 65}, "concepts is 65; in split 'train' it is 1 to 64"),
        ({"split": "novel", "concepts": 17}, "1 to 16"),
        ({"exponent": -1}, "exponent is -1"),
        ({"shares": (0.5, 0.4)}, "add up to 1"),
        ({"shares": (0.2, 0.8)}, "the commonest name comes first"),
        ({"shares": ()}, "one to eight positive shares"),
        ({"style": "plane"}, "did you mean 'plain'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ConceptsConfig(**options).open()
