"""Picture file to tensor against stock transformers: time as a ratio, in one process, A B A B; pixels compared first.

Usage: python benchmarks/image_pipeline.py [--rounds 7] [--size 224]
"""

from __future__ import annotations

import argparse
import io
import statistics
import time

import numpy as np
import torch
from PIL import Image

from vlmzoo.processing.image import ImageTransform, open_image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def jpeg(width: int, height: int) -> bytes:
    """A smooth picture with some noise, as a JPEG file."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (height // 40, width // 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transform = ImageTransform(options.size, "crop", MEAN, STD)
    stock = transform.stock()
    for width, height in ((640, 480), (1920, 1440)):
        data = jpeg(width, height)

        def ours(data: bytes = data) -> torch.Tensor:
            return transform(open_image({"bytes": data}))

        def peer(data: bytes = data) -> torch.Tensor:
            return stock(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"][0]

        assert torch.allclose(ours(), peer(), atol=1e-5)
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(options.rounds):
            for name, work in (("peer", peer), ("ours", ours)):
                start = time.process_time()
                work()
                seconds[name].append(time.process_time() - start)
        a, b = statistics.median(seconds["peer"]), statistics.median(seconds["ours"])
        print(
            f"{width} x {height} to {options.size}: stock {a * 1e3:.1f} ms, ours {b * 1e3:.1f} ms: {a / b:.2f}x faster, same pixels"
        )


if __name__ == "__main__":
    main()
