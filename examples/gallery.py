"""The pictures of the README: python examples/gallery.py (or make gallery), written to docs/pages/images.

Scenes and the families are drawn at once; the answers are those of the models that `make quickstart` trains.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlmzoo.data.scenes import STYLES, Scenes, captions

OUT = Path("docs/pages/images")
RUNS = Path("runs/quickstart")
PAPER, INK, SOFT = "#f4f1ea", "#26262b", "#6b6a70"
GREEN, RED = "#2c7a4b", "#b3402e"
COLOURS = {
    "vision": "#dbe7f3",
    "connector": "#f6e3c5",
    "fusion": "#f2d4cd",
    "language": "#dcebd6",
    "text": "#dcebd6",
}
WIDTH, GAP, PAD, RADIUS = 1200, 20, 22, 18
Line = tuple[str, str, int]  # words, colour, size


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, so that no file is needed."""
    return ImageFont.load_default(size)


def card(sheet: Image.Image, box: tuple[int, int, int, int], fill: str = PAPER) -> ImageDraw.ImageDraw:
    """A rounded card on the transparent sheet, with smooth edges; it reads on light and dark pages."""
    wide, high = box[2] - box[0], box[3] - box[1]
    mask = Image.new("L", (4 * wide, 4 * high))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * wide - 1, 4 * high - 1), 4 * RADIUS, fill=255)
    sheet.paste(fill, (box[0], box[1], box[2], box[3]), mask.resize((wide, high), Image.Resampling.LANCZOS))
    return ImageDraw.Draw(sheet)


def wrapped(words: str, size: int, width: int) -> list[str]:
    """Lines of at most ``width`` pixels."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def placed(lines: list[Line], width: int) -> tuple[list[tuple[int, Line]], int]:
    """Lines with their height from the top, broken where they are wider than ``width``, and the height of all."""
    found, y = [], 0
    for words, colour, size in lines:
        for piece in wrapped(words, size, width):
            found.append((y, (piece, colour, size)))
            y += int(size * 1.3)
        y += size // 3
    return found, y


def tiles(found: list[tuple[Image.Image, list[Line]]], columns: int, side: int) -> Image.Image:
    """Pictures on cards, each with its words beside it; the tallest card says how high all are."""
    wide = (WIDTH - GAP * (columns - 1)) // columns
    texts = [placed(lines, wide - side - 3 * PAD) for _, lines in found]
    height = max(side, *(high for _, high in texts)) + 2 * PAD
    rows = -(-len(found) // columns)
    sheet = Image.new("RGBA", (WIDTH, rows * height + GAP * (rows - 1)), (0, 0, 0, 0))
    for number, ((picture, _), (lines, high)) in enumerate(zip(found, texts, strict=True)):
        x, y = (number % columns) * (wide + GAP), (number // columns) * (height + GAP)
        pen = card(sheet, (x, y, x + wide, y + height))
        shown = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(shown, (x + PAD, y + (height - side) // 2))
        for down, (words, colour, size) in lines:
            pen.text((x + side + 2 * PAD, y + (height - high) // 2 + down), words, colour, font(size))
    return sheet


def scenes() -> Image.Image:
    """Scenes in each style, with a caption, and a question with its answer."""
    found = []
    for number, style in enumerate(STYLES):
        source = Scenes("val", "vqa", length=60, size=88, style=style, objects=(2, 3))
        row, truth = source[number + 7], source[number + 7]["truth"]
        caption = captions(source.scene(number + 7))[-1]
        lines = [
            (style, SOFT, 20),
            (caption, INK, 22),
            (f"{truth['question']} {truth['answer']}", GREEN, 22),
        ]
        found.append((row["images"][0]["image"], lines))
    return tiles(found, 2, 176)


def answers(results: list[tuple[str, Path]]) -> Image.Image:
    """Answers of trained models on test pictures, right and wrong ones alike, in the order of their results."""
    found = []
    for name, file in results:
        for sample in json.loads(file.read_text(encoding="utf-8"))["samples"][:6]:
            said = (sample["answer"] or "(nothing)", GREEN if sample["right"] else RED, 26)
            truth = [] if sample["right"] else [(f"true: {sample['truth']}", SOFT, 20)]
            asked = [(name, SOFT, 18), (sample["question"], INK, 22)]
            found.append((Image.open(file.parent / sample["picture"]), [*asked, said, *truth]))
    return tiles(found, 3, 128)


FAMILIES = {
    "LLaVA": [
        ("vision", "CLIP ViT"),
        ("connector", "MLP"),
        ("fusion", "splice"),
        ("language", "any causal LM"),
    ],
    "Flamingo": [
        ("vision", "CLIP ViT"),
        ("connector", "Perceiver Resampler"),
        ("fusion", "gated cross-attention"),
        ("language", "any causal LM, as it is"),
    ],
    "your own": [
        ("vision", "SigLIP, DINOv2, ..."),
        ("connector", "registered by you"),
        ("fusion", "either"),
        ("language", "Qwen, Llama, OPT, ..."),
    ],
}


def families() -> Image.Image:
    """The parts of each family in a row: one class, other parts."""
    left, height = 170, 104
    wide = (WIDTH - left - 3 * GAP) // 4
    sheet = Image.new("RGBA", (WIDTH, len(FAMILIES) * (height + GAP) - GAP), (0, 0, 0, 0))
    for row, (name, parts) in enumerate(FAMILIES.items()):
        y = row * (height + GAP)
        pen = card(sheet, (0, y, left - GAP, y + height))
        pen.text(((left - GAP) // 2, y + height // 2), name, INK, font(26), anchor="mm")
        for column, (part, kind) in enumerate(parts):
            x = left + column * (wide + GAP)
            card(sheet, (x, y, x + wide, y + height), COLOURS[part])
            pen.text((x + wide // 2, y + 34), part, SOFT, font(20), anchor="mm")
            pen.text((x + wide // 2, y + 66), kind, INK, font(22 if len(kind) < 20 else 20), anchor="mm")
            if column:
                pen.polygon([(x - GAP + 4, y + 44), (x - GAP + 4, y + 60), (x - 3, y + 52)], fill="#8a8890")
    return sheet


def save(picture: Image.Image, name: str) -> None:
    """As a png in full colour: soft backgrounds would show bands."""
    OUT.mkdir(parents=True, exist_ok=True)
    picture.save(OUT / name, optimize=True)
    print(f"{OUT / name}: {(OUT / name).stat().st_size / 1000:.0f} kB")


def main() -> None:
    save(scenes(), "scenes.png")
    save(families(), "families.png")
    wanted = [
        ("LLaVA", RUNS / "llava/results/after/vqa.json"),
        ("Flamingo", RUNS / "flamingo/results/after/captions.json"),
    ]
    there = [(name, file) for name, file in wanted if file.is_file()]
    if there:
        save(answers(there), "answers.png")
    for name, file in wanted:
        if not file.is_file():
            print(f"no answers of {name}: {file} is not there; `make quickstart` makes it")


if __name__ == "__main__":
    main()
