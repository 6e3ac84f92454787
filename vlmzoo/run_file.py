"""What a run file says: the typed tree, its reading, and its writing back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from vlmzoo.config import Config, ConfigError, load_yaml, nearest, override, part_of, read
from vlmzoo.data.documents import DocumentOptions
from vlmzoo.data.features import CacheOptions, in_memory
from vlmzoo.imports import import_parts
from vlmzoo.processing.processor import ProcessorOptions
from vlmzoo.processing.response_formats import Format
from vlmzoo.training.options import LEFT_OUT, LearnTree, OptimOptions, TrainerOptions, as_learn


class StreamOptions(Config):
    """One stream.

    Attributes:
        batch_size: rows of one optimiser step, over all processes and micro-batches.
        weight: lambda_m. weights: of the objective's named terms.
        max_length: longest sample in tokens, at the most the model's positions. template: the processor's own if None.
        pack_length: length of packed rows; None pads. Only for spliced models whose language model keeps packed
            texts apart (asked once at the start).
        group: rows of one step are alike: all with pictures or all without (``modality``, LLaVA's recipe), or of like
            ``length`` in words. For padded batches; packed ones need neither.
        cache: keep encoded rows in memory, for small data seen many times; or ``{features: FOLDER}``: what the frozen
            tower makes of every picture is kept there, and training reads it in the place of pictures.
        format: what form of answer is asked for, on a line after each row's first question: short_answer,
            option_letter, unanswerable, one_sentence, region_description, region_box (the published words), none,
            or words of your own.
        documents: for interleaved documents: windows, pictures kept, previous or next.
    """

    data: part_of("datasets")  # type: ignore[valid-type]
    objective: part_of("objectives")  # type: ignore[valid-type]
    batch_size: PositiveInt
    weight: PositiveFloat = 1.0
    weights: dict[str, float] = Field(default_factory=dict)
    max_length: PositiveInt | None = None
    template: str | None = None
    pack_length: PositiveInt | None = None
    group: Literal["modality", "length"] | None = None
    cache: bool | CacheOptions = False
    format: Format = "none"
    documents: DocumentOptions | None = None

    @model_validator(mode="after")
    def _cached_stays(self) -> StreamOptions:
        if in_memory(self.cache) and self.documents is not None and self.documents.draws:
            raise ValueError(
                "cache keeps what the first visit drew; documents.window and .next draw anew at each"
            )
        return self


class EvaluateOptions(Config):
    """Tasks and when they run: before training, every ``every`` steps (0: not), after training."""

    tasks: Annotated[dict[str, part_of("tasks")], LEFT_OUT] = Field(default_factory=dict)  # type: ignore[valid-type]
    before: bool = False
    every: int = 0
    after: bool = True


class RunConfig(Config):
    """A whole run.

    Attributes:
        imports: Python files (from the current folder) or modules of your own, imported before the rest is read; what
            they register is known. A copy of the files is kept in the run's folder.
        model: ``{preset: name, part: {...}}``, or ``{from: folder}`` to go on from a saved model and its processor, of
            which only ``vision: {image_size: side}`` may change; ``quantization: nf4`` loads its language model in few bits.
        learn: what trains and how fast; everything unnamed is frozen.
        out: the run's folder; the trained model is saved there. seed: of weights, order and dropout.
    """

    imports: list[str] = Field(default_factory=list)
    model: dict[str, Any]
    processor: ProcessorOptions | None = None
    learn: LearnTree
    streams: Annotated[dict[str, StreamOptions], LEFT_OUT]
    optim: OptimOptions
    trainer: TrainerOptions = TrainerOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    out: str
    seed: int = 0

    @field_validator("streams")
    @classmethod
    def _some_stream(cls, streams: dict[str, StreamOptions]) -> dict[str, StreamOptions]:
        if not streams:
            raise ValueError("names no stream, so there is nothing to train on")
        return streams


def read_run(source: str | Path | Mapping[str, Any], assignments: list[str] | None = None) -> RunConfig:
    """The run in a YAML file, or in a mapping of the same form, dotted assignments applied.

    Raises:
        ConfigError: with the path of the mistake, the value and the nearest valid thing.
    """
    tree = dict(source) if isinstance(source, Mapping) else load_yaml(source)
    if isinstance(
        tree.get("learn"), Mapping
    ):  # so that learn.language.lora.r=8 can be laid over language: 1e-3
        tree["learn"] = {key: as_learn(value) for key, value in tree["learn"].items()}
    tree = override(tree, assignments or [])
    import_parts(tree.get("imports", []))
    return read(RunConfig, tree)


def read_tasks(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tasks of a run file's tree, which may be a section ``evaluate: {tasks: ...}`` alone.

    Args:
        name: of the file, for messages.

    Raises:
        ConfigError: with the path of the mistake; no such section, or no task in it.
    """
    if "evaluate" not in tree:
        close = nearest("evaluate", tree)
        raise ConfigError(f"{name}: no section 'evaluate'" + ("; " + close if "did you" in close else ""))
    import_parts(tree.get("imports", []))
    tasks = read(EvaluateOptions, tree["evaluate"], "evaluate").tasks
    if not tasks:
        raise ConfigError(f"{name}: no evaluate.tasks")
    return tasks


def resolved(config: RunConfig) -> dict[str, Any]:
    """Every field of a run as plain json, from which the same run can be started again.

    Of the processor of a model that goes on from a folder only what was asked for is said: the rest is the folder's.
    """
    tree = config.model_dump(mode="json")
    if config.processor is not None and "from" in config.model:
        tree["processor"] = config.processor.model_dump(mode="json", exclude_unset=True)
    return tree
