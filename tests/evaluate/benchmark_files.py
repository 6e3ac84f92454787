"""Tiny files in the benchmarks' published formats."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.evaluate.stubs import SIDE


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def write(path: Path, tree: Any, lines: bool = False) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in tree) if lines else json.dumps(tree))
    return str(path)


def ten(*answers: str) -> list[dict[str, Any]]:
    """Annotators' answers as VQAv2 has them, the last one repeated up to ten."""
    texts = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, 1)]


def vqav2(folder: Path) -> dict[str, Any]:
    """Three questions; of the second 3 of 10 say red."""
    asked = [(7, 1, "Is it day?"), (7, 2, "What colour is it?"), (9, 3, "How many are there?")]
    questions = [{"image_id": i, "question": text, "question_id": q} for i, q, text in asked]
    known = [
        {"question_id": 3, "image_id": 9, "answer_type": "number", "question_type": "how many", "answers": ten("2")},
        {"question_id": 1, "image_id": 7, "answer_type": "yes/no", "question_type": "is it", "answers": ten("yes"),
         "multiple_choice_answer": "yes"},
        {"question_id": 2, "image_id": 7, "answer_type": "other", "question_type": "what color is",
         "answers": ten("red", "red", "red", "blue")},
    ]  # fmt: skip
    for image in (7, 9):
        picture(folder / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
    return {
        "kind": "vqav2",
        "path": write(folder / "questions.json", {"data_subtype": "val2014", "questions": questions}),
        "annotations": write(folder / "annotations.json", {"annotations": known}),
        "images": str(folder / "val2014"),
    }


def gqa(folder: Path) -> dict[str, Any]:
    """Three questions: a verify and a query that entail each other, and a query."""
    tree = {
        "0101": {"imageId": "n1", "question": "Is the car red?", "answer": "yes", "entailed": ["0101", "0102"],
                 "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"}},
        "0102": {"imageId": "n1", "question": "What colour is the car?", "answer": "red", "entailed": ["0101"],
                 "types": {"structural": "query", "semantic": "attr", "detailed": "directAttr"}},
        "0103": {"imageId": "n2", "question": "Who holds it?", "answer": "the boy", "entailed": [],
                 "types": {"structural": "query", "semantic": "rel", "detailed": "relS"}},
    }  # fmt: skip
    for name in ("n1", "n2"):
        picture(folder / "images" / f"{name}.jpg")
    path = write(folder / "testdev_balanced_questions.json", tree)
    return {"kind": "gqa", "path": path, "images": str(folder / "images")}


def textvqa(folder: Path) -> dict[str, Any]:
    """Two questions about one picture."""
    records = [
        {"question_id": 34602, "image_id": "0054c91", "question": "what is the brand?", "answers": ["nokia"] * 10},
        {"question_id": 34603, "image_id": "0054c91", "question": "what year?", "answers": ["2008"] * 9 + ["no"]},
    ]  # fmt: skip
    picture(folder / "train_images" / "0054c91.jpg")
    tokens = [{"image_id": "0054c91", "ocr_tokens": ["NOKIA", "2008"], "ocr_info": []}]
    write(folder / "ocr.json", {"data": tokens})
    path = write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": records})
    return {"kind": "textvqa", "path": path, "images": str(folder / "train_images")}


def vizwiz(folder: Path) -> dict[str, Any]:
    """One question that can be answered, and one that cannot."""
    records = [
        {"image": "VizWiz_val_0.jpg", "question": "What is this?", "answers": ten("soup"), "answer_type": "other",
         "answerable": 1},
        {"image": "VizWiz_val_1.jpg", "question": "What does it say?", "answers": ten("unanswerable"),
         "answer_type": "unanswerable", "answerable": 0},
    ]  # fmt: skip
    for record in records:
        picture(folder / "val" / record["image"])
    return {"kind": "vizwiz", "path": write(folder / "val.json", records), "images": str(folder / "val")}


def scienceqa(folder: Path) -> dict[str, Any]:
    """Two problems of split test (the second without picture), one of train."""
    problems = {
        "4": {"question": "Which is an animal?", "choices": ["rock", "fox"], "answer": 1, "hint": "Think of life.",
              "image": "image.png", "grade": "grade2", "subject": "natural science", "split": "test"},
        "5": {"question": "Which word rhymes?", "choices": ["cat", "sun", "hat"], "answer": 0, "hint": "", "image": None,
              "grade": "grade8", "subject": "language science", "split": "test"},
        "6": {"question": "?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None, "grade": "grade1",
              "subject": "social science", "split": "train"},
    }  # fmt: skip
    picture(folder / "images" / "test" / "4" / "image.png")
    write(folder / "pid_splits.json", {"train": ["6"], "test": ["4", "5"]})
    path = write(folder / "problems.json", problems)
    return {"kind": "scienceqa", "path": path, "images": str(folder / "images")}


def pope(folder: Path) -> dict[str, Any]:
    """Each file counts its questions from 1; half of each are yes."""
    for name, things in (("random", "car"), ("popular", "person"), ("adversarial", "fork")):
        lines = [
            {"question_id": i, "image": f"COCO_val2014_{i % 2}.jpg", "text": f"Is there a {things} in the image?",
             "label": ("yes", "no")[i % 2]}
            for i in (1, 2, 3, 4)
        ]  # fmt: skip
        write(folder / "coco" / f"coco_pope_{name}.json", lines, lines=True)
    for i in (0, 1):
        picture(folder / "val2014" / f"COCO_val2014_{i}.jpg", 99 * i)
    return {"kind": "pope", "path": str(folder / "coco"), "images": str(folder / "val2014")}


def mme(folder: Path) -> dict[str, Any]:
    """Two categories, in the two ways that their folders are laid out."""
    ask = "Please answer yes or no."
    for name, first in (("a", "Yes"), ("b", "No")):
        other = "No" if first == "Yes" else "Yes"
        picture(folder / "existence" / f"{name}.jpg", ord(name))
        (folder / "existence" / f"{name}.txt").write_text(
            f"Is there a cat? {ask}\t{first}\nIs there a dog? {ask}\t{other}\n"
        )
    picture(folder / "landmark" / "images" / "c.png")
    texts = folder / "landmark" / "questions_answers_YN"
    texts.mkdir()
    (texts / "c.txt").write_text(f"Is it a tower? {ask}\tYes\nIs it a bridge? {ask}\tNo")
    return {"kind": "mme", "path": str(folder)}


HEAD = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tl2-category\n"


def mmbench(folder: Path, copies: bool = False) -> dict[str, Any]:
    """Two questions, of three options and of two; the second shows the first one's picture."""
    image = base64.b64encode(png(5)).decode()
    lines = [
        f"241\tWhat is it?\tnan\tcat\tdog\tfox\t\tB\tanimals\t{image}\tfine",
        "242\tIs it night?\tLook at the sky.\tyes\tno\tnan\tnan\tA\ttime\t241\tcoarse",
    ]
    if copies:
        lines += [
            f"1000241\tWhat is it?\t\tdog\tfox\tcat\t\tA\tanimals\t{image}\tfine",
            f"2000241\tWhat is it?\t\tfox\tcat\tdog\t\tC\tanimals\t{image}\tfine",
            "1000242\tIs it night?\tLook at the sky.\tno\tyes\t\t\tB\ttime\t241\tcoarse",
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dev.tsv").write_text(HEAD + "\n".join(lines) + "\n")
    return {"kind": "mmbench", "path": str(folder / "dev.tsv")}


def seed_bench(folder: Path) -> dict[str, Any]:
    """Two questions about a picture and one about a video."""
    common = {"choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four"}
    questions = [
        {**common, "question_id": "101669", "question": "How many birds?", "answer": "B", "data_id": "145_25",
         "data_type": "image", "question_type_id": 5},
        {**common, "question_id": "101670", "question": "How many trees?", "answer": "D", "data_id": "145_25",
         "data_type": "image", "question_type_id": 1},
        {**common, "question_id": "9", "question": "How many steps?", "answer": "A", "data_id": "v.webm",
         "data_type": "video", "question_type_id": 10, "segment": [0, 1]},
    ]  # fmt: skip
    types = {"Instances Counting": 5, "Scene Understanding": 1, "Action Recognition": 10}
    picture(folder / "SEED-Bench-image" / "145_25")
    path = write(folder / "SEED-Bench.json", {"questions": questions, "question_type": types})
    return {"kind": "seed_bench", "path": path, "images": str(folder / "SEED-Bench-image")}


def llava_wild(folder: Path) -> dict[str, Any]:
    """Three questions about two pictures."""
    asked = [(0, "001.jpg", "conv"), (1, "001.jpg", "detail"), (2, "002.jpg", "conv")]
    questions = [
        {"question_id": q, "image": image, "text": f"Question {q}?", "category": category}
        for q, image, category in asked
    ]
    contexts = [{"id": i, "image": f"00{i}.jpg", "caption": f"Picture {i} shows a lake."} for i in (1, 2)]
    answers = [{"question_id": q, "text": f"Reference {q}.", "answer_id": "x"} for q in (2, 0, 1)]
    for name in ("001.jpg", "002.jpg"):
        picture(folder / "images" / name)
    return {
        "kind": "llava_wild",
        "path": write(folder / "questions.jsonl", questions, lines=True),
        "context": write(folder / "context.jsonl", contexts, lines=True),
        "references": write(folder / "answers_gpt4.jsonl", answers, lines=True),
        "images": str(folder / "images"),
    }


def mm_vet(folder: Path) -> dict[str, Any]:
    """Two questions, one of which needs two capabilities."""
    tree = {
        "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1 <AND> -5", "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_1.png", "question": "Who?", "answer": "a cat", "capability": ["rec"]},
    }  # fmt: skip
    for name in tree:
        picture(folder / "images" / f"{name}.png")
    return {"kind": "mm_vet", "path": write(folder / "mm-vet.json", tree), "images": str(folder / "images")}


SAID = (vqav2, gqa, textvqa, vizwiz, scienceqa, pope, mme, mmbench, seed_bench)
