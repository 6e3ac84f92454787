"""The embedded data set: pure, disjoint, true, balanced, and the same on disk."""

import hashlib
import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from vlmzoo.data import scenes as s
from vlmzoo.data.scenes.disk import write
from vlmzoo.data.scenes.text import PLACES, place


def pixels(scene: s.Scene, size: int = 32) -> np.ndarray:
    return np.asarray(s.draw(scene, size))


def digest(scene: s.Scene) -> str:
    return hashlib.sha256(pixels(scene).tobytes()).hexdigest()


def drawn(split: str, count: int, **options) -> list[s.Scene]:
    return [s.scene(0, split, i, **options) for i in range(count)]


# What there is


def test_classes_are_balanced_and_the_held_out_ones_are_apart():
    assert len(s.CLASSES) == len(set(s.CLASSES)) == 64
    assert len(s.NOVEL_CLASSES) == 16
    assert not set(s.CLASSES) & set(s.NOVEL_CLASSES)
    assert set(Counter(shape for _, shape in s.NOVEL_CLASSES).values()) == {2}
    assert set(Counter(colour for colour, _ in s.NOVEL_CLASSES).values()) == {1, 2}


@pytest.mark.parametrize("grid", [2, 3])
def test_held_out_pairs_are_neither_drawn_nor_named_outside_novel(grid):
    for split in ("train", "val", "test"):
        for scene in drawn(split, 300, grid=grid):
            assert all(thing.kind in s.CLASSES for thing in scene.objects)
            said = " ".join(s.captions(scene) + [q.question for q in s.questions(scene)])
            assert not any(f"{colour} {shape}" in said for colour, shape in s.NOVEL_CLASSES)
    assert all(thing.kind in s.NOVEL_CLASSES for scene in drawn("novel", 300) for thing in scene.objects)


def test_scenes_hold_what_was_asked_for():
    counts = Counter(len(scene.objects) for scene in drawn("train", 1000))
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 180
    for scene in drawn("train", 200, objects=(2, 9), grid=3):
        cells = [(o.row, o.col) for o in scene.objects]
        assert cells == sorted(set(cells)) and 2 <= len(cells) <= 9
        assert len({o.kind for o in scene.objects}) == len(cells)


def test_pure_function_of_its_arguments():
    before = [digest(scene) for scene in drawn("train", 20)]
    random.seed(1), np.random.seed(1)
    state = random.getstate()
    assert [digest(scene) for scene in reversed(drawn("train", 20))] == before[::-1]
    assert random.getstate() == state
    assert digest(s.scene(1, "train", 0)) != before[0]


def test_known_scene_does_not_change_between_versions():
    scene = s.scene(0, "train", 5, objects=(3, 4))
    assert [o.name for o in scene.objects] == [
        "orange diamond",
        "cyan circle",
        "brown triangle",
        "orange circle",
    ]


@pytest.mark.parametrize("objects", [(1, 1), (1, 4)])
def test_splits_share_no_picture_and_pictures_vary(objects):
    seen = {split: {digest(scene) for scene in drawn(split, 2000, objects=objects)} for split in s.SPLITS}
    assert all(len(pictures) >= 1998 for pictures in seen.values())
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


# Pictures


@pytest.mark.parametrize("grid", [2, 3])
def test_boxes_are_tight_around_the_drawn_shapes(grid):
    size = 192
    for scene in drawn("train", 40, objects=(1, 4), grid=grid):
        picture = pixels(scene, size).astype(float)
        for thing, (name, box) in zip(scene.objects, s.boxes(scene), strict=True):
            assert name == thing.name
            # Shaded, a shape keeps the hue of its paint: its direction in RGB, unlike ground and shadow.
            paint = np.array(thing.rgb)
            cosine = (picture @ paint) / (np.linalg.norm(picture, axis=-1) * np.linalg.norm(paint))
            level = picture @ paint / (paint @ paint)
            mask = (cosine > 0.9993) & (level > 0.6) & (level < 1.01)
            cell = size // grid
            own = np.zeros_like(mask)
            window = np.s_[
                thing.row * cell : (thing.row + 1) * cell, thing.col * cell : (thing.col + 1) * cell
            ]
            own[window] = mask[window]
            if thing.colour == "grey":  # its hue is the ground's own
                continue
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size
            assert np.abs(found - box).max() < 3.1 / size, (scene.key, name, found, box)


def test_small_pictures_look_like_large_ones_reduced():
    for scene in drawn("train", 20):
        small = pixels(scene, 32).astype(float)
        reduced = np.asarray(s.draw(scene, 128).resize((32, 32), Image.Resampling.BOX)).astype(float)
        assert np.abs(small - reduced).mean() < 3.5


@pytest.mark.parametrize("size", [8, 33, 64, 224])
def test_any_size(size):
    assert s.draw(s.scene(0, "train", 0), size).size == (size, size)


def test_colours_stand_out_from_each_other_and_from_the_ground():
    for scene in drawn("train", 200):
        ground = np.array((scene.background.start, scene.background.end))
        for thing in scene.objects:
            assert np.abs(ground - np.array(thing.rgb)).max(1).min() > 55


# Words


def truth_of(scene: s.Scene, question: s.Question) -> str:
    """The answer, read from the wording and the scene alone, by other means than the module's."""
    words = question.question.rstrip("?").lower().replace(" an ", " a ").split()

    def fits(thing, noun):
        where = place(thing, scene.grid)
        named = [w for w in noun if w not in ("a", "the", "shape", "shapes", "at", "in", "is", "and")]
        spoken = " ".join(w for w in named if w not in (thing.colour, thing.shape, thing.size))
        return spoken in ("", where)

    def the(noun):
        found = [o for o in scene.objects if fits(o, noun)]
        assert len(found) == 1, (question, "refers to", len(found))
        return found[0]

    if question.kind == "colour":
        return the(words[3:]).colour
    if question.kind == "shape":
        return the(words[2:]).shape
    if question.kind == "size":
        return the(words[1:-3]).size
    if question.kind == "place":
        return place(the(words[2:]), scene.grid)
    if question.kind == "count":
        return s.ANSWERS["count"][sum(fits(o, words[2:-2]) for o in scene.objects)]
    if question.kind == "presence":
        return "yes" if any(fits(o, words[2:]) for o in scene.objects) else "no"
    first, second = the(words[1:4]), the(words[-3:])
    if "above" in words:
        assert first.row != second.row
        return "above" if first.row < second.row else "below"
    assert first.col != second.col
    return "left" if first.col < second.col else "right"


@pytest.mark.parametrize("split,grid,most", [("train", 2, 4), ("test", 3, 9), ("novel", 3, 9)])
def test_answers_are_true_and_questions_unambiguous(split, grid, most):
    for scene in drawn(split, 250, objects=(1, most), grid=grid):
        asked = s.questions(scene)
        kinds = {question.kind for question in asked}
        assert kinds == set(s.KINDS) - (set() if len(scene.objects) > 1 else {"relation"})
        for question in asked:
            assert question.answer == truth_of(scene, question), question
            assert question.answer in question.choices
            assert set(question.choices) <= set(s.ANSWERS[question.kind])
        assert len({q.question for q in asked}) == len(asked)


def asked_by_kind(count: int = 4000) -> dict[str, list[tuple[str, str]]]:
    found = defaultdict(list)
    for scene in drawn("train", count):
        for question in s.questions(scene):
            found[question.kind].append((question.question, question.answer))
    return found


@pytest.fixture(scope="module")
def by_kind() -> dict[str, list[tuple[str, str]]]:
    return asked_by_kind()


@pytest.mark.parametrize(
    "kind,most",
    [
        ("colour", 0.16),
        ("shape", 0.17),
        ("size", 0.53),
        ("place", 0.28),
        ("count", 0.34),
        ("presence", 0.53),
        ("relation", 0.28),
    ],
)
def test_no_answer_dominates(by_kind, kind, most):
    answers = Counter(answer for _, answer in by_kind[kind])
    assert max(answers.values()) / sum(answers.values()) < most


@pytest.mark.parametrize(
    "kind,most", [("size", 0.56), ("presence", 0.56), ("relation", 0.56), ("place", 0.33)]
)
def test_wording_does_not_give_the_answer_away(by_kind, kind, most):
    """Half of the questions train a table wording -> commonest answer; it is tried on the other half."""
    asked = by_kind[kind]
    table: dict[str, Counter] = defaultdict(Counter)
    for text, answer in asked[::2]:
        table[text][answer] += 1
    known = [(text, answer) for text, answer in asked[1::2] if text in table]
    right = sum(table[text].most_common(1)[0][0] == answer for text, answer in known)
    assert len(known) > 500
    assert right / len(known) < most


def test_presence_asks_hard_things():
    """Most pairs that are not there share a colour or a shape with one that is."""
    near = total = 0
    for scene in drawn("train", 500):
        for question in s.questions(scene, ["presence"]):
            words = question.question.rstrip("?").split()[3:]
            if question.answer == "no" and words[-1] != "shape" and len(words) == 2:
                total += 1
                near += any(words[0] == o.colour or words[1] == o.shape for o in scene.objects)
    assert near / total > 0.99


def test_captions_are_varied_and_true():
    for scene in drawn("train", 300):
        said = s.captions(scene)
        assert len(said) == len(set(said)) >= 6
        full = [text for text in said if all(f"{o.size} {o.name}" in text for o in scene.objects)]
        assert full and all(place(o, 2) in full[-1] for o in scene.objects)
        assert any(s.caption(scene, key) != s.caption(scene, 0) for key in range(1, 9))
        assert " a orange" not in " ".join(said)


def test_class_prompts_are_the_words_of_single_object_captions():
    for scene in drawn("train", 50, objects=(1, 1)):
        assert set(s.class_prompts(scene.objects[0].name)) <= set(s.captions(scene))


def test_a_conversation_does_not_answer_itself():
    """No answer about an object's attribute comes after a turn whose words name that attribute of it."""
    for scene in drawn("train", 300):
        known: set[tuple[int, str]] = set()
        turns = s.conversation(scene, 8)
        assert 1 <= len(turns) <= 8
        for question in turns:
            if question.kind in ("colour", "shape", "size", "place"):
                assert (question.about[0], question.kind) not in known
                i = question.about[0]
                said = f"{question.question} {question.answer}"
                thing = scene.objects[i]
                for attribute in ("colour", "shape", "size"):
                    if getattr(thing, attribute) in said.split() and " or " not in said:
                        known.add((i, attribute))
                if question.kind == "place":
                    known.add((i, "place"))


# Rows


@pytest.mark.parametrize("rows", s.ROWS)
@pytest.mark.parametrize("split", s.SPLITS)
def test_rows_are_canonical_and_plain(rows, split):
    data = s.Scenes(split, rows, length=14)
    for i, row in enumerate(data):
        assert set(row) == {"images", "parts", "label", "id", "source", "truth"}
        assert row["id"] == f"scenes/{split}/{i}" and row["source"] == "scenes"
        assert row["images"][0]["image"].mode == "RGB"
        assert [part["type"] for part in row["parts"]].count("image") == 1
        assert row["parts"][0] == {"role": row["parts"][0]["role"], "type": "image", "text": None}
        assert json.loads(json.dumps(row["truth"])) == row["truth"]
        assert (row["label"] is not None) == (rows == "labels")
        roles = [part["role"] for part in row["parts"][1:]]
        assert roles == (["user", "assistant"] * (len(roles) // 2) if rows in ("vqa", "dialogue") else roles)


def test_labels_name_the_one_object():
    for split, classes in (("test", s.CLASSES), ("novel", s.NOVEL_CLASSES)):
        for row in s.Scenes(split, "labels", length=50):
            (thing,) = row["truth"]["objects"]
            assert classes[row["label"]] == (thing["colour"], thing["shape"])


def test_vqa_asks_all_kinds_equally():
    data = s.Scenes("test", "vqa", length=70)
    assert set(Counter(row["truth"]["kind"] for row in data).values()) == {10}
    alone = s.Scenes("test", "vqa", length=12, objects=(1, 1))
    assert "relation" not in {row["truth"]["kind"] for row in alone}


def test_format_prompt_follows_the_first_question():
    (_, first, *rest) = s.Scenes(rows="dialogue", length=1, format_prompt=True)[0]["parts"]
    assert first["text"].endswith(f"?\n{s.FORMAT_PROMPT}")
    assert not any(s.FORMAT_PROMPT in part["text"] for part in rest)


@pytest.mark.parametrize("rows", s.ROWS)
def test_controls_change_the_picture_and_nothing_else(rows):
    plain, blank, swapped = (s.Scenes("test", rows, length=21, pictures=p) for p in s.PICTURES)
    greys = set()
    for i in range(21):
        rest = [{k: v for k, v in data[i].items() if k != "images"} for data in (plain, blank, swapped)]
        assert rest[0] == rest[1] == rest[2]
        images = [data[i]["images"][0]["image"].tobytes() for data in (plain, blank, swapped)]
        greys.add(images[1])
        assert images[0] != images[2]
    assert len(greys) == 1


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"rows": "caption"}, "did you mean 'captions'"),
        ({"pictures": "blanc"}, "did you mean 'blank'"),
        ({"length": 0}, "length is 0"),
        ({"length": 1, "pictures": "swapped"}, "length is 1"),
        ({"size": 4}, "size is 4"),
        ({"turns": 0}, "turns is 0"),
        ({"grid": 4}, "grid is 4"),
        ({"objects": (0, 2)}, "objects is"),
        ({"objects": (3, 2)}, "objects is"),
        ({"objects": (1, 5)}, "objects is"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        s.Scenes(**options)


def test_rows_outside_are_refused():
    data = s.Scenes(length=3)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            data[index]
    with pytest.raises(ValueError, match="did you mean 'train'"):
        s.scene(0, "trian", 0)
    with pytest.raises(ValueError, match="size"):
        s.draw(s.scene(0, "train", 0), 4)


# Disk


@pytest.mark.parametrize("rows", ["dialogue", "vqa", "captions"])
def test_llava_folder_reads_back(tmp_path, rows):
    folder = write(tmp_path / "out", layout="llava", split="val", rows=rows, length=5, size=48)
    data = s.Scenes("val", rows, length=5, size=48)
    written = json.loads((folder / "llava.json").read_text())
    assert [entry["id"] for entry in written] == [row["id"] for row in data]
    for entry, row in zip(written, data, strict=True):
        with Image.open(folder / entry["image"]) as picture:
            assert picture.tobytes() == row["images"][0]["image"].tobytes()
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [turn["value"].startswith("<image>\n") for turn in turns] == [True] + [False] * (
            len(turns) - 1
        )
        said = [part["text"] for part in row["parts"][1:]]
        assert [turn["value"].removeprefix("<image>\n") for turn in turns][-len(said) :] == said


def test_coco_folder_reads_back(tmp_path):
    folder = write(tmp_path / "deep" / "out", layout="coco", split="test", length=5, seed=3)
    said = json.loads((folder / "coco.json").read_text())
    seen = json.loads((folder / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in seen["categories"]}
    assert said["images"] == seen["images"] and len(names) == 64
    for i, image in enumerate(said["images"]):
        scene = s.scene(3, "test", i)
        assert (folder / "images" / image["file_name"]).exists()
        assert [a["caption"] for a in said["annotations"] if a["image_id"] == image["id"]] == s.captions(
            scene
        )
        found = [a for a in seen["annotations"] if a["image_id"] == image["id"]]
        assert [names[a["category_id"]] for a in found] == [o.name for o in scene.objects]
        for annotation, (_, (x0, y0, x1, y1)) in zip(found, s.boxes(scene), strict=True):
            assert annotation["bbox"] == pytest.approx(
                [64 * x0, 64 * y0, 64 * (x1 - x0), 64 * (y1 - y0)], abs=0.02
            )


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write(full, length=2)
    for options in (
        {"layout": "cocoa"},
        {"layout": "coco", "rows": "vqa"},
        {"rows": "labels"},
        {"split": "x"},
    ):
        with pytest.raises(ValueError):
            write(tmp_path / "wrong", length=2, **options)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "broken", length=2)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_places_cover_the_board():
    assert {grid: len(set(names)) for grid, names in PLACES.items()} == {2: 4, 3: 9}
