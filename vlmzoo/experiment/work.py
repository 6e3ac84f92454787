"""Running what is planned: each run is the plain command ``vlmzoo train`` in a process of its own.

Several workers, of one command or of several beside each other, take runs by a lock on the run's folder, which the
system gives free when its holder dies. A run that ended well leaves ``finished.json`` and is passed over from then on;
one that did not leaves ``failed.json``, holds up nothing but what needs it, and is tried again by the next command.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vlmzoo.config import dump_yaml
from vlmzoo.evaluate.report import write_whole
from vlmzoo.experiment.plan import Planned
from vlmzoo.training.checkpoint import newest
from vlmzoo.training.trainer import REQUEUE

log = logging.getLogger(__name__)
CONFIG, OUTPUT, LOCK = "planned.yaml", "output.log", "claim.lock"
FINISHED, FAILED = "finished.json", "failed.json"
PAUSE = 0.5  # seconds between looks at runs that others are at
STOPPED = (REQUEUE, -signal.SIGTERM)


def is_finished(run: Planned) -> bool:
    """Whether a run ended well, at some time."""
    return (run.folder / FINISHED).is_file()


def failure_of(run: Planned, since: float = 0.0) -> str | None:
    """Why a run, or one that it needs, failed (at or after a time, if given); None if none did."""
    for one in run.chain():
        file = one.folder / FAILED
        if not is_finished(one) and file.is_file():
            told = json.loads(file.read_text(encoding="utf-8"))
            if told["time"] >= since:
                return f"{one.folder.name}: {told['error']}"
    return None


class Workers:
    """Runs a plan with some workers side by side.

    Args:
        runs: in an order in which they can run. workers: at most so many at a time.
        launch: the command before ``-m vlmzoo.train``, such as ``accelerate launch --num_processes 8``; this Python
            alone if empty.
    """

    def __init__(self, runs: Sequence[Planned], workers: int = 1, launch: str = "") -> None:
        self.runs, self.workers = list(runs), workers
        self.command = [*(shlex.split(launch) or [sys.executable]), "-m", "vlmzoo.train"]
        self._since = time.time()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stop = threading.Event()

    def work(self) -> None:
        """Come to an end of every run: finished or failed.

        Raises:
            SystemExit: with the requeue code, once this process was told to stop; what is running was told to stop too.
        """
        previous = _on_sigterm(self._stop)
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                try:
                    ends = [pool.submit(self._worker) for _ in range(self.workers)]
                    while not all(end.done() for end in ends):
                        self._stop.wait(PAUSE)
                        if self._stop.is_set():
                            break
                finally:
                    self._stop.set()
                    for child in list(self._children):
                        child.terminate()
            for end in ends:
                end.result()
        finally:
            _put_back(previous)
        if not all(self._is_settled(run) for run in self.runs):
            raise SystemExit(REQUEUE)

    def _is_settled(self, run: Planned) -> bool:
        return is_finished(run) or failure_of(run, self._since) is not None

    def _worker(self) -> None:
        while not self._stop.is_set():
            waiting = [run for run in self.runs if not self._is_settled(run)]
            if not waiting:
                return
            if not any(self._tried(run) for run in waiting if all(map(is_finished, run.needs))):
                self._stop.wait(PAUSE)

    def _tried(self, run: Planned) -> bool:
        """Whether this worker could take a run, which then has come to an end."""
        with _claimed(run.folder) as lock:
            if lock is not None and not self._is_settled(run):
                self._train(run, lock)
            return lock is not None

    def _train(self, run: Planned, lock: IO[str]) -> None:
        for name in (FAILED, FINISHED):
            (run.folder / name).unlink(missing_ok=True)
        write_whole(run.folder / CONFIG, dump_yaml(run.tree))
        fresh = [] if newest(run.folder / "checkpoints") else ["--fresh"]
        number = [one.folder for one in self.runs].index(run.folder) + 1
        log.info(f"[{number}/{len(self.runs)}] {run.folder}")
        began = time.time()
        with (run.folder / OUTPUT).open("ab") as out:
            # the run holds the lock too, lest it be started twice should this process be killed; a session of its own
            # keeps the terminal's Ctrl-C from it, which would lose what SIGTERM saves
            child = subprocess.Popen(
                [*self.command, str(run.folder / CONFIG), *fresh],
                stdout=out, stderr=out, pass_fds=(lock.fileno(),), start_new_session=True,
            )  # fmt: skip
            self._children.add(child)
            if self._stop.is_set():  # the stop came between the look and the start
                child.terminate()
            code = child.wait()
            self._children.discard(child)
        if code == 0:
            self._note(run, FINISHED, seconds=round(time.time() - began, 1))
        elif code in STOPPED or self._stop.is_set():
            self._stop.set()
        else:
            told = _last_words(run.folder / OUTPUT) or "said nothing"
            self._note(run, FAILED, error=f"{told} (exit code {code})", code=code)
            log.warning(f"{run.folder} failed: {told} (exit code {code}); the others go on")

    @staticmethod
    def _note(run: Planned, name: str, **facts: Any) -> None:
        write_whole(run.folder / name, json.dumps({"time": time.time(), **facts}) + "\n")


@contextmanager
def _claimed(folder: Path) -> Iterator[IO[str] | None]:
    """The folder's lock, ours for the time of the block; None if another worker has it."""
    import fcntl  # not on Windows, where the rest of the package is of use

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield file


def _last_words(output: Path) -> str:
    """The last line of a run's output that is none of a progress bar's."""
    text = output.read_bytes()[-20_000:].decode("utf-8", errors="replace")
    lines = [line.rpartition("\r")[2].strip() for line in text.split("\n")]
    return next((line.removeprefix("vlmzoo: ")[:300] for line in reversed(lines) if line), "")


def _on_sigterm(stop: threading.Event) -> Any:
    """Let SIGTERM set the event; what stood in its place before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, lambda *_: stop.set())


def _put_back(previous: Any) -> None:
    if previous is not None:
        signal.signal(signal.SIGTERM, previous)
