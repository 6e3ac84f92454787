"""Stands in for `python -m vlmzoo.train PLANNED [--fresh]` in tests: writes what a run leaves, learns nothing.

The score is `optim.steps` per cent, plus one per cent for every seed and for a stage to start from; steps of 13 fail,
steps of 14 wait until they are told to stop.
"""

import json
import signal
import sys
import time
from pathlib import Path

from vlmzoo.config import load_yaml

file = Path(sys.argv[3])
assert sys.argv[1:3] == ["-m", "vlmzoo.train"]
tree = load_yaml(file)
out, steps = Path(tree["out"]), tree["optim"]["steps"]
assert out == file.parent
base = tree["model"].get("from")
if base and not (Path(base) / "model").is_file():
    sys.exit(f"vlmzoo: no model in {base}")
with (out.parent / "calls.txt").open("a") as calls:
    calls.write(f"{out.name} {' '.join(sys.argv[4:])}\n")
if steps == 13:
    print("progress\rvlmzoo: out of luck", file=sys.stderr)
    sys.exit(2)
if steps == 14:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (out / "waiting").touch()
    time.sleep(60)
time.sleep(0.2)
right = min(100, steps + tree["seed"] + bool(base))
target = out / "results" / "after"
target.mkdir(parents=True, exist_ok=True)
rows = [{"id": i, "answer": "a", "values": {"accuracy": float(i < right)}} for i in range(100)]
(target / "vqa.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
metrics = {"accuracy": right / 100, "accuracy_stderr": 0.05, "loss": 1 - right / 100}
metrics |= {"accuracy_shots_1": right / 200, "accuracy_shots_4": right / 100, "chance": 0.25}
(target / "vqa.json").write_text(json.dumps({"task": "vqa", "metrics": metrics, "n": 100}))
part = {"part": "connector", "kind": "mlp", "parameters": 1200, "learning": 200, "starts from": "random"}
(out / "parts.json").write_text(json.dumps([part]))
(out / "model").touch()
