"""Started by a launcher: three steps on each of two processes, whole and in micro-batches; the main process writes.

Usage: pairs_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.objectives.pairs_model import blip, outcome, trainer_of
from vlmzoo import distributed


def main(folder: str) -> None:
    torch.set_num_threads(1)
    distributed.start()
    out = Path(folder)
    found = {f"all {micro}": outcome(trainer_of(out / "run", blip(), micro)) for micro in (1, 2)}
    found["local 1"] = outcome(trainer_of(out / "run", blip(gather="local"), steps=1))
    if distributed.is_main():
        torch.save({**found, "world": distributed.world_size()}, out / "found.pt")
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
