"""What rows of scenes are made of: parts in reading order, and the truth as plain data."""

from typing import Any

from vlmzoo.data.scenes.text import Question, boxes, place, sign_place
from vlmzoo.data.scenes.world import Scene

Row = dict[str, Any]


def image_part(role: str) -> Row:
    """The place of a picture."""
    return {"role": role, "type": "image", "text": None}


def text_part(role: str, text: str) -> Row:
    """A text."""
    return {"role": role, "type": "text", "text": text}


def question_truth(question: Question) -> Row:
    """A question with its answer, as plain data."""
    return {
        "kind": question.kind,
        "question": question.question,
        "answer": question.answer,
        "choices": list(question.choices),
    }


def scene_truth(shown: Scene, style: str = "plain") -> Row:
    """What is in a scene and how it is drawn, as plain data."""
    things = [
        {
            "name": thing.name,
            "colour": thing.colour,
            "shape": thing.shape,
            "size": thing.size,
            "place": place(thing, shown.grid),
            "box": list(edges),
        }
        for thing, (_, edges) in zip(shown.objects, boxes(shown), strict=True)
    ]
    plate = shown.sign
    sign = plate and {"text": plate.text, "place": sign_place(plate, shown.grid), "box": list(plate.box)}
    return {"objects": things, "count": len(things), "sign": sign, "style": style}
