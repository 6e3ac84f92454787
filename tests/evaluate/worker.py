"""Started by a launcher: evaluates a saved model twice, the first time until its processes are killed.

Usage: worker.py MODEL OUT TASKS.json
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from vlmzoo import distributed
from vlmzoo.evaluate.progress import Partial
from vlmzoo.run import EvaluateOptions, evaluate, load

BATCHES = 1  # that each process finishes before it is killed


def main(folder: str, out: str, tasks: str) -> None:
    torch.set_num_threads(1)
    distributed.start()
    model, processor = load(folder)
    options = EvaluateOptions(tasks=json.loads(Path(tasks).read_text()))
    whole, added = Partial.add, []

    def killed(self: Any, part: str, batch: int, values: Any) -> None:
        whole(self, part, batch, values)
        added.append(batch)
        if len(added) == BATCHES:
            raise KeyboardInterrupt

    Partial.add = killed  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        evaluate(model, processor, options.tasks, "killed", Path(out))
    Partial.add = whole  # type: ignore[method-assign]
    distributed.barrier()
    evaluate(model, processor, options.tasks, "two", Path(out))
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
