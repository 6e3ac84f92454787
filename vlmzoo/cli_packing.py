"""``vlmzoo packing``: how much of a batch is padding; ``cli.py`` takes it in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmzoo.cli_parts import Overrides, quiet


def packing(
    config: Annotated[
        Path | None,
        typer.Argument(help="A run file, for its own data; without one a model of LLaVA's 665k mix only"),
    ] = None,
    overrides: Overrides = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Rows of a device's batch; repeatable. 16 and 128 by default"),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Devices that take a step together")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="At most so many rows of each")] = 16384,
    as_json: Annotated[bool, typer.Option("--json", help="Print json in the place of tables")] = False,
) -> None:
    """Show how many positions are padding in padded and packed batches, and what they cost.

    Waste is the share of positions that are padding; of a step, the share where all devices wait for the fullest. FLOPs
    are those of the language model's layers over the rows' own, each row alone.
    """
    found = {}
    for name, lengths, costs, lines in _subjects(config, overrides, rows):
        from vlmzoo.methods.packing import waste_table

        table = waste_table(lengths, costs, batch or [16, 128], ranks=ranks)
        tokens = lengths.tokens
        about = {
            "rows": len(tokens),
            "mean": float(tokens.mean()),
            "longest": int(tokens.max()),
            "notes": lines,
        }
        found[name] = {**about, "ranks": ranks, "table": table}
    typer.echo(json.dumps(found, indent=1) if as_json else "\n\n".join(_text(*one) for one in found.items()))


def _subjects(
    config: Path | None, overrides: list[str] | None, rows: int
) -> Iterator[tuple[str, Any, Any, list[str]]]:
    """Name, lengths, costs and remarks of everything that is measured."""
    quiet()
    from vlmzoo.compose import build
    from vlmzoo.methods.flops import Costs
    from vlmzoo.methods.packing import lengths_of, model_of_mix

    if config is not None:
        model, streams = _streams(config, overrides)
        for name, data in streams.items():
            lengths, refused = lengths_of(data.source, data.collate, rows)
            notes = [f"{refused} rows cannot be used"] if refused else []
            yield f"stream {name}", lengths, Costs.of_language(model.language), notes
    notes = [
        "the conversations a data set has are published, the lengths are assumed (vlmzoo/methods/packing.py);",
        "costs are those of llava-1.5-7b",
    ]
    yield (
        "model of the 665k mix",
        model_of_mix(rows),
        Costs.of_language(build("llava-1.5-7b", device="meta").language),
        notes,
    )


def _streams(config: Path, overrides: list[str] | None) -> tuple[Any, dict[str, Any]]:
    """The model of a run file, in shape only where it goes on from no folder, and the data of its streams of turns."""
    from vlmzoo.config import ConfigError
    from vlmzoo.data.collate import LanguageCollate
    from vlmzoo.run import make_streams, read_run, starting_model

    run = read_run(config, overrides)
    unpacked = {name: one.model_copy(update={"pack_length": None}) for name, one in run.streams.items()}
    model, processor = starting_model(run, "meta")
    made = make_streams(run.model_copy(update={"streams": unpacked}), model, processor)
    found = {name: one.data for name, one in made.items() if type(one.data.collate) is LanguageCollate}
    if not found:
        raise ConfigError(f"{config}: streams {', '.join(made)} have no conversations or captions to pack")
    return model, found


def _text(name: str, found: dict[str, Any]) -> str:
    from vlmzoo.evaluate.loop import text_table

    lines = [
        {
            "rows a batch": row["batch"],
            "layout": row["layout"],
            "waste": f"{row['waste']:.1%}",
            f"of a step on {found['ranks']}": f"{row['waste_step']:.1%}",
            "FLOPs": f"{row['flops']:.2f}x",
        }
        for row in found["table"]
    ]
    head = (
        f"{name}: {found['rows']} rows of {found['mean']:.0f} tokens on average, at most {found['longest']}"
    )
    return "\n".join([head, *found["notes"], text_table(lines)])
