"""Started by a launcher: the gradients of a run file's first step, written by the main process.

Usage: worker.py OUT.pt CONFIG [a.b=c ...]
"""

from __future__ import annotations

import sys

import torch

from vlmzoo import distributed
from vlmzoo.run import make_streams, read_run, starting_model
from vlmzoo.training.trainer import Trainer


def main(target: str, config: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run = read_run(config, list(overrides))
    distributed.start()
    torch.manual_seed(run.seed)
    model, processor = starting_model(run)
    model.double()
    streams = make_streams(run, model, processor)
    trainer = Trainer(model, streams, run.learn, run.optim, run.trainer, run.out, seed=run.seed)
    micro = next(trainer._batches(0))
    losses, _ = trainer.backward(0, micro)
    if distributed.is_main():
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save({"gradients": grads, "losses": losses, "world": distributed.world_size()}, target)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
