"""The one trainer: streams, a model and an optimiser in; steps, a log and checkpoints out.

It knows no model, no objective and no data set: streams give micro-batches by number, objectives give named sums.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from vlmzoo import distributed
from vlmzoo.training import checkpoint
from vlmzoo.training.contract import ContractReport, FreezeContract
from vlmzoo.training.optim import apply_learn, make_optimizer, optimizer_groups, set_rates
from vlmzoo.training.options import LearnTree, OptimOptions, TrainerOptions
from vlmzoo.training.step import Factors, Step, Stream, cached_pulls, factors_of, global_counts
from vlmzoo.types import AcrossBatch, Batch, RunError, move

log = logging.getLogger(__name__)
REQUEUE = 75  # exit code of a run that was told to stop and can go on from its checkpoint (EX_TEMPFAIL)
Micro = list[dict[str, Batch]]


class Interrupted(SystemExit):
    """The run was told to stop (SIGTERM) and saved a checkpoint; exits with the requeue code."""

    def __init__(self, step: int) -> None:
        super().__init__(REQUEUE)
        self.step = step


class Trainer:
    """Trains a model on streams.

    Args:
        model: offers the verbs that the objectives ask for.
        streams: by name. learn: what trains and how fast. optim, options: see ``vlmzoo.training.options``.
        out: folder for ``log.jsonl`` and ``checkpoints/``.
        seed: of order and dropout. facts: plain json stored with every checkpoint (the run's config).
        evaluate: called with the step every ``evaluate_every`` steps; gives numbers for the log.

    Raises:
        ConfigError: ``learn`` names nothing. TypeError: an objective wants a verb that the model lacks.
        RunError: the launcher started processes that do not know of each other.
    """

    def __init__(
        self,
        model: nn.Module,
        streams: Mapping[str, Stream],
        learn: LearnTree,
        optim: OptimOptions,
        options: TrainerOptions,
        out: str | Path,
        *,
        seed: int = 0,
        facts: dict[str, Any] | None = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        evaluate_every: int = 0,
    ) -> None:
        self.options, self.optim, self.seed = options, optim, seed
        self.out, self.facts = Path(out), facts or {}
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        unused = options.schedule == "round_robin" and len(streams) > 1
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            log_with=options.trackers or None,
            project_dir=str(self.out),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        distributed.check_launch(self.accelerator)
        self.streams = dict(streams)
        found = apply_learn(model, learn)
        if options.precision == "bf16" and hasattr(model, "plan_dtypes"):
            model.plan_dtypes(torch.bfloat16)
        self.model = model
        self.contract: FreezeContract | None = None
        self.contract_report: ContractReport | None = None
        self._found = found
        module = Step(model, self.streams)
        optimizer = make_optimizer(optimizer_groups(model, found, learn, optim.weight_decay), optim)
        self.step_module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.learning = [p for p in model.parameters() if p.requires_grad]
        self.bad_steps = self.bad_in_a_row = 0
        self._stop = False

    # --- the loop --------------------------------------------------------------------------------------------

    def fit(self, resume: bool = True) -> dict[str, Any]:
        """Train to the configured number of steps, from the newest complete checkpoint if there is one.

        Returns:
            The last log line.

        Raises:
            Interrupted: SIGTERM came; a checkpoint was saved.
            RunError: too many non-finite steps in a row, or the freeze contract is broken.
        """
        start = self._resume() if resume else 0
        if start == 0:
            self._dry_run_save()
        self.model.train()
        self.contract = FreezeContract(self.model, self._found) if start == 0 else None
        previous = signal.signal(signal.SIGTERM, self._on_sigterm) if _in_main_thread() else None
        self._start_trackers()
        line: dict[str, Any] = {}
        bar = tqdm(
            total=self.optim.steps, initial=start, desc=self.out.name, disable=not distributed.is_main(),
            mininterval=0.5 if sys.stderr.isatty() else 10, file=sys.stderr, dynamic_ncols=True,
        )  # fmt: skip
        batches = self._batches(start)
        self._clock = time.perf_counter()
        try:
            for step in range(start, self.optim.steps):
                line = self.train_step(step, next(batches))
                self._after(step + 1, line, bar)
        finally:
            bar.close()
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
            for tracker in (
                self.accelerator.trackers
            ):  # end_training would also dissolve the group, which is still needed
                tracker.finish()
        return line

    def _after(self, done: int, line: dict[str, Any], bar: Any) -> None:
        """Everything between two steps: contract, log, evaluation, checkpoint, stopping."""
        last = done == self.optim.steps
        if self.contract is not None and (done >= self.options.contract_steps or last):
            self.contract_report = self.contract.check()
            self._log_contract(self.contract_report)
            self.contract = None
        if done % self.options.log_every == 0 or last or done == 1:
            bar.set_postfix_str(f"loss {line['loss']:.4f}", refresh=False)
            self._log({**line, "seconds": round(time.perf_counter() - self._clock, 3)})
        bar.update(1)
        if self.evaluate and self.evaluate_every and (done % self.evaluate_every == 0 and not last):
            self._log({"step": done, "evaluate": self.evaluate(done)})
            self.model.train()
        stop = line.get("stop", False)
        if last or stop or (self.options.save_every and done % self.options.save_every == 0):
            self.save(done)
        if stop and not last:
            raise Interrupted(done)

    def train_step(self, step: int, micro: Micro) -> dict[str, Any]:
        """One optimiser step on this rank's micro-batches; returns its log line."""
        factor = set_rates(self.optimizer, step, self.optim)
        losses, stop = self.backward(step, micro)
        if self.contract is not None:
            self.contract.see_gradients()
        bound = math.inf if self.optim.clip is None else self.optim.clip
        norm = float(self.accelerator.clip_grad_norm_(self.learning, bound))
        if math.isfinite(norm):
            self.optimizer.step()
            self.bad_in_a_row = 0
            for name in micro[0]:
                after = getattr(self.streams[name].objective, "after_step", None)
                if after is not None:
                    after(self.model)
        else:
            self._skip(step, losses)
        self.optimizer.zero_grad(set_to_none=True)
        line = {
            "step": step + 1,
            "loss": sum(losses.values()),
            **losses,
            "grad_norm": norm,
            "lr_factor": factor,
        }
        return {**line, "bad_steps": self.bad_steps, **({"stop": True} if stop else {})}

    def backward(self, step: int, micro: Micro) -> tuple[dict[str, float], bool]:
        """Gradients of a whole step, whatever it is split into.

        Returns:
            Each term's weighted mean over all ranks and micro-batches, and whether any rank was asked to stop.
        """
        device, world = self.accelerator.device, distributed.world_size()
        micro = [move(batches, device) for batches in micro]
        counts, stop = global_counts(self.streams, micro, device, self._stop)
        factors = factors_of(self.streams, counts)
        sums: dict[tuple[str, str], Tensor] = {}
        pulls = self._pulls(step, micro, factors, sums)
        for number, batches in enumerate(micro):
            last = number == len(micro) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.step_module):
                self._seed(step, number)
                with self.accelerator.autocast():
                    own = {name: pull[number] for name, pull in pulls.items()}
                    loss, terms = self.step_module(batches, factors, own)
                self.accelerator.backward(loss * world)  # DDP takes the mean over ranks
            for name, found in terms.items():
                for key, value in found.items():
                    sums[name, key] = sums.get((name, key), 0.0) + value
        return self._weighted_means(sums, factors), stop

    def _pulls(
        self, step: int, micro: Micro, factors: Factors, sums: dict
    ) -> dict[str, list[dict[str, Tensor]]]:
        """Cached gradients of the streams whose loss looks across micro-batches; ``micro`` gets what those need."""
        pulls = {}
        for name in micro[0] if len(micro) > 1 else ():
            objective = self.streams[name].objective
            if not isinstance(objective, AcrossBatch):
                continue
            with self.accelerator.autocast():
                pulls[name], found, prepared = cached_pulls(
                    objective, self.model, [batches[name] for batches in micro], factors[name],
                    lambda number: self._seed(step, number),
                )  # fmt: skip
            sums.update({(name, key): value for key, value in found.items()})
            for batches, own in zip(micro, prepared, strict=True):
                batches[name] = own
        return pulls

    def _weighted_means(self, sums: Mapping[tuple[str, str], Tensor], factors: Factors) -> dict[str, float]:
        if not sums:
            return {}
        vector = sum_over = torch.stack([value.double() for value in sums.values()])
        sum_over = distributed.sum_over_ranks(vector)
        return {
            f"{name}/{key}": float(value) * factors[name][key]
            for (name, key), value in zip(sums, sum_over.tolist(), strict=True)
        }

    def _skip(self, step: int, losses: Mapping[str, float]) -> None:
        """A non-finite step: no update on any rank (gradients were averaged, so all ranks see it)."""
        self.bad_steps += 1
        self.bad_in_a_row += 1
        blame = [name for name, value in losses.items() if not math.isfinite(value)] or ["the gradient only"]
        log.warning(
            f"step {step + 1}: not finite ({', '.join(blame)}), skipped ({self.bad_in_a_row} in a row)"
        )
        if self.bad_in_a_row >= self.options.max_bad_steps:
            raise RunError(
                f"{self.bad_in_a_row} steps in a row were not finite, the last at step {step + 1} ({', '.join(blame)}); "
                "nothing of them was applied or saved"
            )

    # --- data ------------------------------------------------------------------------------------------------

    def _batches(self, start: int) -> Iterator[Micro]:
        """Micro-batches of every step from ``start`` on."""
        pieces, names = self.options.micro_batches, list(self.streams)
        robin = self.options.schedule == "round_robin"
        loaders = {}
        for place, name in enumerate(names):
            first = (start - place + len(names) - 1) // len(names) if robin else start
            stop = self.optim.steps * pieces
            loaders[name] = iter(self.streams[name].data.loader(first * pieces, stop, self.options.workers))
        for step in range(start, self.optim.steps):
            active = [names[step % len(names)]] if robin else names
            yield [{name: next(loaders[name]) for name in active} for _ in range(pieces)]

    def _seed(self, step: int, number: int) -> None:
        """Dropout depends on (seed, step, micro-batch, rank) only, so a resumed run draws the same."""
        torch.manual_seed(hash((self.seed, step, number, distributed.rank())) % (1 << 63))

    # --- checkpoints -----------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps (main process)."""
        distributed.barrier()
        if distributed.is_main():
            root = self.out / "checkpoints"
            checkpoint.save(root, step, self._tensors(), self._state(), self.facts)
            checkpoint.prune(root, self.options.keep)
        distributed.barrier()

    def _tensors(self) -> dict[str, Tensor]:
        """The model's weights, each storage once (tied heads come back by tying); of a quantised model what learns."""
        if self._spared():
            return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        seen: set[tuple[int, tuple[int, ...]]] = set()
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            mark = (tensor.data_ptr(), tuple(tensor.shape))
            if mark not in seen or tensor.numel() == 0:
                tensors[name] = tensor
                seen.add(mark)
        return tensors

    def _spared(self) -> set[str]:
        """Weights that come from where the model came from: those of a quantised model that do not learn."""
        if not getattr(self.model, "is_quantized", False):
            return set()
        learning = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return set(self.model.state_dict()) - learning

    def _state(self) -> dict[str, Any]:
        objectives = {
            name: stream.objective.state_dict()
            for name, stream in self.streams.items()
            if hasattr(stream.objective, "state_dict")
        }
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return {"optimizer": inner.state_dict(), "objectives": objectives, "bad_steps": self.bad_steps}

    def _resume(self) -> int:
        """Load the newest complete checkpoint; the step to go on from."""
        folder = checkpoint.newest(self.out / "checkpoints", lambda line: log.warning(line))
        if folder is None:
            return 0
        tensors, state, facts = checkpoint.load(folder)
        missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        absent = set(missing) - set(getattr(self.model, "all_tied_weights_keys", None) or {}) - self._spared()
        if unexpected or absent:
            raise RunError(f"{folder} is of another model: {sorted({*unexpected, *absent})[:5]}")
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        inner.load_state_dict(state["optimizer"])
        for name, own in state["objectives"].items():
            self.streams[name].objective.load_state_dict(own)  # type: ignore[attr-defined]
        self.bad_steps = state["bad_steps"]
        log.info(f"resumed from {folder}")
        self._cut_log(facts["step"])
        return int(facts["step"])

    def _cut_log(self, step: int) -> None:
        """Drop log lines that a killed run wrote after its last checkpoint; they will come again, equal."""
        file = self.out / "log.jsonl"
        if distributed.is_main() and file.is_file():
            lines = [
                json.loads(line)
                for line in file.read_text(encoding="utf-8").splitlines()
                if line.endswith("}")
            ]
            kept = [line for line in lines if line.get("step", 0) <= step]
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def _dry_run_save(self) -> None:
        """Find out now, not after hours, that a checkpoint cannot be written."""
        if distributed.is_main():
            root = self.out / "checkpoints" / ".dry-run"
            checkpoint.save(root, 0, self._tensors(), self._state(), self.facts)
            checkpoint.prune(root, 0)
            root.rmdir()

    # --- log -------------------------------------------------------------------------------------------------

    def _start_trackers(self) -> None:
        if self.options.trackers:
            self.accelerator.init_trackers(self.out.name)

    def _log(self, line: dict[str, Any]) -> None:
        if distributed.is_main():
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        if self.options.trackers:
            numbers = {**line, **line.get("evaluate", {})}
            self.accelerator.log(
                {k: v for k, v in numbers.items() if isinstance(v, (int, float))}, step=line["step"]
            )

    def _log_contract(self, report: ContractReport) -> None:
        moved = ", ".join(f"{key} {count}/{total}" for key, (count, total) in report.learning.items())
        log.info(f"learning: {moved}; frozen and unmoved: {report.frozen} tensors")
        if report.no_gradient:
            log.warning(
                f"no gradient so far: {', '.join(report.no_gradient[:5])} ({len(report.no_gradient)} tensors)"
            )
        self._log(
            {
                "step": 0,
                "learning": report.learning,
                "no_gradient": report.no_gradient,
                "frozen": report.frozen,
            }
        )

    def _on_sigterm(self, number: int, frame: Any) -> None:
        self._stop = True


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
