"""``vlmzoo eval`` and ``vlmzoo rescore``: tasks on a model, and on answers; ``cli.py`` takes them in."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmzoo.cli_parts import Overrides, TaskFile, quiet
from vlmzoo.config import load_yaml, override


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a saved model or a Hub id")],
    config: TaskFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; the model's folder by default")] = None,
    when: Annotated[str, typer.Option(help="Name of this evaluation among the results")] = "eval",
) -> None:
    """Run the tasks of a run file on a model and show their tables.

    Stopped, it goes on when the same command is given again. On several processes: accelerate launch -m vlmzoo eval ...
    """
    tasks = _tasks(config, overrides)

    from vlmzoo import distributed
    from vlmzoo.run import evaluate as run_tasks
    from vlmzoo.run import load

    folder = out or (Path(model) if Path(model).is_dir() else None)
    loaded, processor = load(model)
    distributed.start()
    if folder is not None:
        kept = f"results go to {folder / 'results' / when}; stopped, the same command goes on after finished batches"
        logging.getLogger(__name__).info(kept)
    found = run_tasks(loaded.to(distributed.device()), processor, tasks, when, folder)
    if distributed.is_main():
        _show(found, folder, when)
    distributed.stop()


def rescore(
    config: TaskFile,
    task: Annotated[str, typer.Argument(help="Name of the task there that the answers belong to")],
    answers: Annotated[Path, typer.Argument(help="Json lines of question_id and text; predictions.jsonl")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; nowhere by default")] = None,
    when: Annotated[str, typer.Option(help="Name of this evaluation among the results")] = "rescored",
) -> None:
    """Score answers that were given before, or by another program, by a task of a run file; needs no model."""
    tasks = _tasks(config, overrides)

    from vlmzoo.evaluate.rescoring import rescore as score

    _show({task: score(tasks, task, answers, when, out)}, out, when)


def _tasks(config: Path, overrides: list[str] | None) -> dict[str, Any]:
    tree = override(load_yaml(config), overrides or [])  # mistakes are told before torch is imported
    quiet()

    from vlmzoo.run import read_tasks

    return read_tasks(tree, str(config))


def _show(found: dict[str, Any], folder: Path | None, when: str) -> None:
    from vlmzoo.evaluate.loop import result_text
    from vlmzoo.evaluate.report import refresh

    for result in found.values():
        typer.echo("\n" + result_text(result))
    if folder is not None:
        page = refresh(folder)
        typer.echo(f"\nwritten to {folder / 'results' / when}" + (f"; look at {page}" if page else ""))
