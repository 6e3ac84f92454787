"""What the benchmarks share: two sides timed in turn, and the peak memory of each in a process of its own."""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every side, measured A B A B after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            start = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(peer: Sequence[float], ours: Sequence[float]) -> str:
    """How many times faster ours is: of the medians, and the least and most of any round."""
    each = [a / b for a, b in zip(peer, ours, strict=True)]
    middle = statistics.median(peer) / statistics.median(ours)
    return f"{middle:.2f}x ({min(each):.2f} to {max(each):.2f} over {len(each)} rounds)"


def peak_elsewhere(script: str, *arguments: str) -> float:
    """The number that ``script`` prints last, run with ``arguments`` in a process of its own."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak_above(work: Callable[[], Any], times: int = 2) -> float:
    """Peak memory of this process above what it holds before ``work``, MiB (Linux); once before to warm up."""
    work()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but kept would hide what comes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    for _ in range(times):
        work()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A line of this process's memory report, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
