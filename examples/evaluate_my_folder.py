"""Classify a folder of pictures without training: python examples/evaluate_my_folder.py [FOLDER]

FOLDER holds one folder of pictures a class; its name is the class. By default drawn scenes are written there first, two
thirds of them in styles that the encoder of the package has never seen. The same task in a run file is `vlmzoo eval MODEL FILE`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from vlmzoo import load
from vlmzoo.config import read_part
from vlmzoo.data.scenes import Scenes
from vlmzoo.evaluate.loop import save_result, text_table

OUT = Path("runs/examples/my_folder")


def draw_folder(folder: Path, pictures: int = 120) -> Path:
    """Single shapes of eight classes: folder/red circle/3.png."""
    source = Scenes(split="test", rows="labels", length=1000, size=64, style=("plain", "outline", "sketch"))
    names = sorted({row["truth"]["objects"][0]["name"] for row in source})[::8]
    kept = [row for row in source if row["truth"]["objects"][0]["name"] in names][:pictures]
    for number, row in enumerate(kept):
        where = folder / row["truth"]["objects"][0]["name"]
        where.mkdir(parents=True, exist_ok=True)
        row["images"][0]["image"].save(where / f"{number}.png")
    return folder


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else draw_folder(OUT / "pictures")
    task = read_part(
        "tasks",
        {
            "kind": "zero_shot",
            "data": {"kind": "imagefolder", "path": str(folder)},
            "templates": ["a picture of a {}.", "there is a {}."],
        },
    ).build("folder")
    result = task.run(*load("vlmzoo:clip-tiny"))
    numbers = result.metrics
    print(
        f"{result.n} pictures: {numbers['accuracy']:.2f} right (standard error {numbers['accuracy_stderr']:.2f}), "
        f"guessing would be {numbers['chance']:.2f}; mean per class {numbers['mean_per_class']:.2f}"
    )
    print(text_table(result.table))
    print("written to", save_result(OUT, "zero-shot", result))


if __name__ == "__main__":
    main()
