"""The wiring room: a run file becomes a model, streams, a trainer and tasks; folders become models again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from transformers import PreTrainedConfig

from vlmzoo import distributed
from vlmzoo.compose import CLASSES, build, is_zoo_folder, processor_for, resolve
from vlmzoo.config import (
    Config,
    ConfigError,
    differences,
    dump_yaml,
    load_yaml,
    located,
    override,
    part_of,
    read,
)
from vlmzoo.data.collate import Collate, LanguageCollate, PairsCollate
from vlmzoo.data.mix import MicroBatches, Order, append_quarantine, read_quarantine
from vlmzoo.evaluate.loop import Result, save_result, text_table
from vlmzoo.evaluate.report import note_start
from vlmzoo.evaluate.report import refresh as write_report
from vlmzoo.evaluate.tasks import check_tasks
from vlmzoo.hub import llava
from vlmzoo.hub.card import run_facts, write_card
from vlmzoo.models.base import ZooModel
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.nn.language import keeps_segments_apart
from vlmzoo.processing.processor import Processor
from vlmzoo.training.checkpoint import newest
from vlmzoo.training.options import LearnTree, OptimOptions, TrainerOptions
from vlmzoo.training.step import Stream
from vlmzoo.training.trainer import Trainer, log


class ProcessorOptions(Config):
    """Text and picture processing.

    Attributes:
        tokenizer: ``tiny`` (embedded), a Hub id or a folder. template: how turns are written.
        image_fit: crop, pad or squash; by the tower if None.
    """

    tokenizer: str = "tiny"
    template: str = "short"
    image_fit: str | None = None


class StreamOptions(Config):
    """One stream.

    Attributes:
        batch_size: rows of one optimiser step, over all processes and micro-batches.
        weight: lambda_m. weights: of the objective's named terms.
        max_length: longest sample in tokens. template: the processor's own if None.
        pack_length: length of packed rows; None pads. Only for spliced models whose language model keeps packed
            texts apart (asked once at the start).
        cache: keep encoded rows in memory, for small data seen many times.
    """

    data: part_of("datasets")  # type: ignore[valid-type]
    objective: part_of("objectives")  # type: ignore[valid-type]
    batch_size: PositiveInt
    weight: PositiveFloat = 1.0
    weights: dict[str, float] = Field(default_factory=dict)
    max_length: PositiveInt | None = None
    template: str | None = None
    pack_length: PositiveInt | None = None
    cache: bool = False


class EvaluateOptions(Config):
    """Tasks and when they run: before training, every ``every`` steps (0: not), after training."""

    tasks: dict[str, part_of("tasks")] = Field(default_factory=dict)  # type: ignore[valid-type]
    before: bool = False
    every: int = 0
    after: bool = True


class RunConfig(Config):
    """A whole run.

    Attributes:
        model: ``{preset: name, part: {...}}``, or ``{from: folder}`` to go on from a saved model and its processor.
        learn: what trains and how fast; everything unnamed is frozen.
        out: the run's folder; the trained model is saved there. seed: of weights, order and dropout.
    """

    model: dict[str, Any]
    processor: ProcessorOptions | None = None
    learn: LearnTree
    streams: dict[str, StreamOptions]
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


def read_run(path: str | Path, assignments: list[str] | None = None) -> RunConfig:
    """The run in a YAML file, dotted assignments applied.

    Raises:
        ConfigError: with the path of the mistake, the value and the nearest valid thing.
    """
    return read(RunConfig, override(load_yaml(path), assignments or []))


def starting_model(config: RunConfig) -> tuple[ZooModel, Processor]:
    """The model and processor that a run starts with.

    Raises:
        ConfigError: names, sizes or folders that do not fit.
    """
    tree = dict(config.model)
    source = tree.pop("from", None)
    if source is None:
        options = config.processor or ProcessorOptions()
        pretrained = bool(tree.pop("pretrained", False))
        model = build(resolve(tree), pretrained=pretrained)
        return model, processor_for(
            model, options.tokenizer, template_name=options.template, image_fit=options.image_fit
        )
    if tree:
        raise ConfigError(f"model.{next(iter(tree))}: a model that goes on from {source!r} takes no changes")
    if config.processor is not None:
        raise ConfigError(f"processor: a model that goes on from {source!r} brings its own")
    model, processor = load(source)
    model.config.starts = dict.fromkeys(model.parts(), str(source))
    return model, processor


def collate_of(
    stream: StreamOptions, name: str, objective: Any, model: ZooModel, processor: Processor
) -> Collate:
    """The collator that an objective's batches need."""
    if objective.collate == "pairs":
        return PairsCollate(processor)
    pack_length = stream.pack_length
    if pack_length is not None and not _can_pack(model):
        log.warning(f"stream {name}: this model cannot be packed, samples are padded instead")
        pack_length = None
    return LanguageCollate(processor, stream.max_length, stream.template, pack_length)


def _can_pack(model: ZooModel) -> bool:
    return isinstance(model, VisionLM) and model.fusion.in_prompt and keeps_segments_apart(model.language)


def make_streams(config: RunConfig, model: ZooModel, processor: Processor) -> dict[str, Stream]:
    """The run's streams for this process.

    Raises:
        ConfigError: a batch smaller than the shares it is cut into, or data that cannot be read.
    """
    streams = {}
    pieces = config.trainer.micro_batches * distributed.world_size()
    quarantine = Path(config.out) / "quarantine.jsonl"
    for name, options in config.streams.items():
        if options.batch_size < pieces:
            raise ConfigError(
                f"streams.{name}.batch_size: {options.batch_size} rows cannot be cut into {config.trainer.micro_batches} "
                f"micro-batches on {distributed.world_size()} processes"
            )
        source = options.data.open()
        objective = _built(options.objective, model, f"streams.{name}")
        data = MicroBatches(
            source, collate_of(options, name, objective, model, processor), Order(config.seed, name, len(source)),
            options.batch_size, config.trainer.micro_batches, distributed.rank(), distributed.world_size(), quarantine, options.cache,
        )  # fmt: skip
        streams[name] = Stream(name, data, objective, options.weight, options.weights)
    return streams


def _built(options: Any, model: ZooModel, where: str) -> Any:
    try:
        return options.build(model)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from None


def evaluate(
    model: ZooModel, processor: Processor, tasks: dict[str, Any], when: str, out: Path | None
) -> dict[str, Result]:
    """Run tasks; results are written under ``out`` by the main process. All are checked before the first runs."""
    check_tasks(model, tasks)
    found = {}
    for name, options in tasks.items():
        found[name] = options.build(name).run(model, processor)
        if out is not None and distributed.is_main():
            save_result(out, when, found[name], str(out))
    return found


def train(config: RunConfig, fresh: bool = False) -> dict[str, Any]:
    """A run from start to end, going on from its newest checkpoint if it has one.

    Args:
        fresh: start over: checkpoints, log and results in the run's folder are removed first.

    Returns:
        The last log line of training.

    Raises:
        ConfigError: mistakes in the run file, or a folder that holds a run of another config.
    """
    distributed.start()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    out = Path(config.out)
    tree = config.model_dump(mode="json")
    if not fresh:
        _refuse_another_run(out, tree)
    torch.manual_seed(config.seed)
    model, processor = starting_model(config)
    if config.trainer.activation_checkpointing:
        model.checkpoint_activations()
    streams = make_streams(config, model, processor)
    check_tasks(model, config.evaluate.tasks)

    def judge(when: str) -> dict[str, Result]:
        with trainer.accelerator.autocast():  # frozen parts may be in half precision, learning ones are not
            return evaluate(model, processor, config.evaluate.tasks, when, out)

    trainer = Trainer(
        model, streams, config.learn, config.optim, config.trainer, out, seed=config.seed, facts={"run": tree},
        evaluate=lambda step: _numbers(judge(f"step-{step}")),
        evaluate_every=config.evaluate.every,
    )  # fmt: skip
    _take_folder(out, tree, fresh, streams)  # only now: whatever was wrong has left no trace
    if distributed.is_main():
        log.info("\n" + model.table())
        (out / "parts.json").write_text(json.dumps(model.part_table(), indent=1), encoding="utf-8")
    if config.evaluate.before and newest(out / "checkpoints") is None:
        _say(judge("before"), "before training")
    line = trainer.fit()
    if config.evaluate.after:
        _say(judge("after"), "after training")
    _finish(out, model, processor)
    distributed.stop()
    return line


def _refuse_another_run(out: Path, tree: dict[str, Any]) -> None:
    """Raises ConfigError if the folder holds checkpoints of a run with another config."""
    if (out / "run.yaml").is_file() and newest(out / "checkpoints") is not None:
        changes = differences(load_yaml(out / "run.yaml"), tree)
        if changes:
            raise ConfigError(
                f"out: {out} holds checkpoints of a run with another config ({'; '.join(changes[:5])}); "
                "name another folder with out=..., or start over with --fresh"
            )


OWN_FILES = (
    "checkpoints",
    "results",
    "log.jsonl",
    "quarantine.jsonl",
    "run.yaml",
    "environment.json",
    "report.html",
)


def _take_folder(out: Path, tree: dict[str, Any], fresh: bool, streams: dict[str, Stream]) -> None:
    """Make the run's folder and write what is known before the first step."""
    if distributed.is_main():
        for name in OWN_FILES if fresh else ():
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.yaml").write_text(dump_yaml(tree), encoding="utf-8")
        note_start(out, distributed.world_size(), _device_name())
        for name, stream in streams.items():
            append_quarantine(out / "quarantine.jsonl", stream.data.source.rejected, name)
    distributed.barrier()


def _device_name() -> str:
    """What the main process computes on, for people."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


def _numbers(found: dict[str, Result]) -> dict[str, float]:
    return {
        f"{task}/{name}": value for task, result in found.items() for name, value in result.metrics.items()
    }


def _say(found: dict[str, Result], when: str) -> None:
    for name, result in found.items():
        numbers = ", ".join(
            f"{key} {value:.3f}" for key, value in result.metrics.items() if not key.endswith("_stderr")
        )
        log.info(f"{name} {when} ({result.n} rows): {numbers}")
        if result.table:
            log.info("\n" + text_table(result.table))


def _finish(out: Path, model: ZooModel, processor: Processor) -> None:
    """Save the model, its processor and its card; say what was left out of the data."""
    if distributed.is_main():
        model.save_pretrained(out)
        processor.save_pretrained(out)
        _let_others_read(out)
        loading = f'from vlmzoo import load\n\nmodel, processor = load("{out.name}")'
        task = "image-text-to-text" if isinstance(model, VisionLM) else "zero-shot-image-classification"
        write_card(out, title=out.name, loading=loading, pipeline=task, **run_facts(out))
        bad = read_quarantine(out / "quarantine.jsonl")
        if bad:
            log.warning(f"{len(bad)} rows could not be used; they are listed in {out / 'quarantine.jsonl'}")
        page = write_report(out)
        log.info(f"saved {out}" + (f"; look at {page}" if page else ""))
    distributed.barrier()


def _let_others_read(folder: Path) -> None:
    """safetensors writes files that only their owner may read; servers and colleagues are somebody else."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


# --- folders to models -------------------------------------------------------------------------------------------


def load(source: str | Path, **options: Any) -> tuple[ZooModel, Processor]:
    """A model and its processor from a folder or a Hub id, whatever public layout it has.

    Args:
        source: saved by this package, or a stock ``llava`` folder. options: for transformers' ``from_pretrained``
            (dtype, device_map, ...), for our own layout.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ConfigError: nothing there, or a layout that is not known.
    """
    folder = _local(source)
    if is_zoo_folder(folder):
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        cls, _ = next(pair for pair in CLASSES.values() if pair[1].model_type == tree["model_type"])
        return cls.from_pretrained(folder, **options), Processor.from_pretrained(folder)
    kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if kind == "llava":
        try:
            return llava.read(folder)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"load: {source}: {error}") from None
    raise ConfigError(f"load: {source} holds a {kind!r} model; known layouts: vlmzoo, stock llava")


def _local(source: str | Path) -> Path:
    folder = Path(located(source))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"load: {str(source)!r} holds no config.json (is the run finished?)")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(
            snapshot_download(
                str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
            )
        )
    except (
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"load: no folder {str(source)!r}, and the Hub does not give it: {reason}"
        ) from None


def export(
    source: str | Path, target: str | Path, layout: str = "transformers", force: bool = False
) -> float:
    """Write a model in a public layout, read it back with the other side and compare logits.

    Args:
        layout: ``transformers`` (stock classes). force: write into a folder that is not empty.

    Returns:
        The largest difference of logits on a test prompt.

    Raises:
        ConfigError: the other side cannot express the model (with the reason), an occupied folder, or logits that
            differ after reading back.
    """
    if layout != "transformers":
        raise ConfigError(f"--to: no layout {layout!r}; there are: transformers")
    target = Path(target)
    if target.exists() and any(target.iterdir()) and not force:
        raise ConfigError(f"export: {target} is not empty")
    model, processor = load(source)
    reason = llava.why_not(model)
    if reason:
        raise ConfigError(f"export: {source}: {reason}")
    building = target.parent / f".{target.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        difference = _exported(model, processor, building, Path(source), target.name)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return difference


def _exported(model: ZooModel, processor: Processor, folder: Path, source: Path, name: str) -> float:
    assert isinstance(model, VisionLM)
    llava.export(model, processor, folder)
    _let_others_read(folder)
    difference = llava.largest_difference(model, folder, probe(model, processor))
    if difference > 1e-3:
        raise ConfigError(
            f"export: logits differ by {difference:.2e} after reading back; nothing was written"
        )
    loading = (
        f"from transformers import AutoModelForImageTextToText, AutoProcessor\n\nmodel = AutoModelForImageTextToText"
        f'.from_pretrained("{name}")\nprocessor = AutoProcessor.from_pretrained("{name}")'
    )
    facts = run_facts(source) if source.is_dir() else {}
    write_card(folder, title=name, loading=loading, library="transformers", **facts)
    return difference


def probe(model: ZooModel, processor: Processor) -> dict[str, torch.Tensor]:
    """A prompt with a noise picture, for comparisons."""
    generator = torch.Generator().manual_seed(0)
    side = model.vision.image_size
    noise = (torch.rand(side, side, 3, generator=generator) * 255).byte().numpy()
    row = {
        "images": [{"image": Image.fromarray(noise)}],
        "parts": [
            {"role": "user", "type": "image", "text": None},
            {"role": "user", "type": "text", "text": "What is this?"},
        ],
        "id": "probe",
    }
    return processor.prompts([row])  # type: ignore[list-item]
