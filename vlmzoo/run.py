"""The wiring room: a run file becomes a model, streams, a trainer and tasks; folders become models again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlmzoo import distributed
from vlmzoo.compose import build, processor_for, resolve
from vlmzoo.config import (
    ConfigError,
    differences,
    dump_yaml,
    load_yaml,
    located,
    readable,
    together,
)
from vlmzoo.data.collate import Collate, LanguageCollate, PairsCollate
from vlmzoo.data.documents import DocumentCollate
from vlmzoo.data.features import cache_features, in_memory
from vlmzoo.data.group import order_of
from vlmzoo.data.mix import MicroBatches, append_quarantine, read_quarantine
from vlmzoo.data.sources import Source
from vlmzoo.evaluate.loop import Result, save_result, text_table
from vlmzoo.evaluate.progress import Progress
from vlmzoo.evaluate.report import note_start
from vlmzoo.evaluate.report import refresh as write_report
from vlmzoo.evaluate.tasks import check_tasks
from vlmzoo.folders import let_others_read, load
from vlmzoo.hub import adapter
from vlmzoo.hub.card import run_facts, write_card
from vlmzoo.imports import local_files
from vlmzoo.models.base import ZooModel, within
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.nn.language import can_pack
from vlmzoo.processing.processor import Processor, ProcessorOptions
from vlmzoo.processing.response_formats import format_text
from vlmzoo.run_file import EvaluateOptions, RunConfig, StreamOptions, read_run, read_tasks, resolved
from vlmzoo.training.checkpoint import newest
from vlmzoo.training.options import LearnTree
from vlmzoo.training.step import Stream
from vlmzoo.training.trainer import Trainer, log

__all__ = [  # the words of a run file are found here too
    "EvaluateOptions", "RunConfig", "collate_of", "evaluate", "load", "make_streams", "open_sources", "read_run",
    "read_tasks", "resolved", "starting_model", "train",
]  # fmt: skip
OWN_FILES = (  # what --fresh removes from a run's folder
    "checkpoints", "results", "log.jsonl", "quarantine.jsonl", "run.yaml", "environment.json", "report.html",
    "imports",
)  # fmt: skip


def starting_model(config: RunConfig, device: str | None = None) -> tuple[ZooModel, Processor]:
    """The model and processor that a run starts with.

    Args:
        device: where a model is made that does not go on from a folder; ``"meta"`` gives shapes only.

    Raises:
        ConfigError: names, sizes or folders that do not fit.
    """
    tree = dict(config.model)
    source = tree.pop("from", None)
    if source is None:
        options = config.processor or ProcessorOptions()
        pretrained = bool(tree.pop("pretrained", False))
        model = build(resolve(tree), pretrained=pretrained, device=device)
        return model, processor_for(
            model, options.tokenizer, template_name=options.template, image_fit=options.image_fit,
            max_frames=options.max_frames,
        )  # fmt: skip
    quantization = tree.pop("quantization", None)
    side = _new_side(tree, str(source), config.learn)
    if side is not None and quantization is not None:
        raise ConfigError(
            "model.vision.image_size: cannot change under quantization, whose run ends as adapters"
        )
    given = config.processor or ProcessorOptions()
    if "tokenizer" in given.model_fields_set:
        raise ConfigError(f"processor.tokenizer: a model that goes on from {source!r} brings its own")
    model, processor = load(source, quantization=quantization)
    if given.model_fields_set:
        name = given.template if "template" in given.model_fields_set else None
        processor = processor.changed(name, given.image_fit, given.max_frames)
    if side is not None and side != model.vision.image_size:
        model.vision.resize(side)
        widths = (
            {"image_tokens": model.image_tokens, "frame_tokens": model.frame_tokens} if isinstance(model, VisionLM) else {}
        )  # fmt: skip
        processor = processor.changed(image_size=side, **widths)
    model.config.starts = dict.fromkeys(model.parts(), str(source))
    return model, processor


def _new_side(changes: Mapping[str, Any], source: str, learn: LearnTree) -> int | None:
    """The size of pictures that a model goes on with, the only thing of it that may change; None keeps its own.

    Raises:
        ConfigError: other changes, or adapters, whose folder could not say it.
    """
    for name, change in changes.items():
        keys = [f"{name}.{key}" for key in change] if isinstance(change, Mapping) else [name]
        other = next((key for key in keys if key != "vision.image_size"), None)
        if other is not None:
            raise ConfigError(
                f"model.{other}: a model that goes on from {source!r} takes no change but vision.image_size"
            )
    if not changes:
        return None
    side = changes["vision"].get("image_size")
    if not isinstance(side, int) or isinstance(side, bool):
        raise ConfigError(f"model.vision.image_size: wanted a number of pixels, got {side!r}")
    adapted = next((name for name, how in learn.items() if how.lora is not None), None)
    if adapted is not None:
        raise ConfigError(f"model.vision.image_size: cannot change under adapters (learn.{adapted}.lora)")
    return side


def collate_of(
    stream: StreamOptions, name: str, objective: Any, model: ZooModel, processor: Processor
) -> Collate:
    """The collator that an objective's batches need.

    Args:
        name: of the stream, for messages. objective: its ``collate`` says which.

    Raises:
        ConfigError: an objective that does not say which batches it reads.
    """
    wanted = getattr(objective, "collate", None)
    if callable(wanted):
        return wanted(processor)
    if wanted in ("pairs", "captions"):
        return PairsCollate(processor, getattr(objective, "prompt", ""), supervised=wanted == "captions")
    if wanted != "language":
        raise ConfigError(
            f"streams.{name}.objective: {type(objective).__name__}.collate is {wanted!r}; wanted 'language', 'pairs', "
            "'captions' or a method that makes a collator from the processor"
        )
    pack_length = stream.pack_length
    if pack_length is not None and not _can_pack(model):
        log.warning(f"stream {name}: this model cannot be packed, samples are padded instead")
        pack_length = None
    words, longest = format_text(stream.format), within(stream.max_length, model)
    if stream.documents is None:
        return LanguageCollate(processor, longest, stream.template, pack_length, words)
    if words:
        raise ConfigError(f"streams.{name}.format: {stream.format!r}; documents ask no questions")
    if stream.documents.next and getattr(getattr(model, "fusion", None), "in_prompt", True):
        raise ConfigError(
            f"streams.{name}.documents.next: {stream.documents.next}; texts can look ahead only with gated fusion"
        )
    return DocumentCollate(processor, stream.documents, longest, stream.template, pack_length)


def _can_pack(model: ZooModel) -> bool:
    return isinstance(model, VisionLM) and model.fusion.in_prompt and can_pack(model.language)


def open_sources(config: RunConfig) -> dict[str, Source]:
    """The data of every stream, before the model takes its time.

    Raises:
        ConfigError: all that cannot be read, and a folder to go on from that is not there.
    """
    base = config.model.get("from")
    works = {name: options.data.open for name, options in config.streams.items()}
    found = together({"": lambda: base and readable(str(base), "model.from"), **works})
    return {name: found[name] for name in works}


def make_streams(
    config: RunConfig, model: ZooModel, processor: Processor, sources: Mapping[str, Source] | None = None
) -> dict[str, Stream]:
    """The run's streams for this process.

    Args:
        sources: of :func:`open_sources`, which is called if there are none.

    Raises:
        ConfigError: a batch smaller than the shares it is cut into, or data that cannot be read.
    """
    streams = {}
    sources = sources or open_sources(config)
    pieces = config.trainer.micro_batches * distributed.world_size()
    quarantine = Path(config.out) / "quarantine.jsonl"
    for name, options in config.streams.items():
        if options.batch_size < pieces:
            raise ConfigError(
                f"streams.{name}.batch_size: {options.batch_size} rows cannot be cut into {config.trainer.micro_batches} "
                f"micro-batches on {distributed.world_size()} processes"
            )
        source = sources[name]
        objective = _built(options.objective, model, f"streams.{name}")
        data = MicroBatches(
            source, collate_of(options, name, objective, model, processor),
            order_of(config.seed, name, source, options.batch_size, pieces, options.group),
            options.batch_size, config.trainer.micro_batches, distributed.rank(), distributed.world_size(), quarantine,
            in_memory(options.cache),
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
    """Run tasks; results are written under ``out`` by the main process. All are checked before the first runs.

    Finished batches are kept there too until every task is done: the same call goes on where a killed one stopped.
    """
    check_tasks(model, tasks)
    progress = Progress(out / "results" / when, model, processor) if out is not None and tasks else None
    found = {}
    for name, options in tasks.items():
        found[name] = options.build(name).run(model, processor, progress)
        if out is not None and distributed.is_main():
            save_result(out, when, found[name], str(out))
    if progress is not None:
        progress.remove(tasks)
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
    tree = resolved(config)
    if not fresh:
        _refuse_another_run(out, tree)
    sources = open_sources(config)
    torch.manual_seed(config.seed)
    model, processor = starting_model(config)
    if config.trainer.activation_checkpointing:
        model.checkpoint_activations()
    streams = make_streams(config, model, processor, sources)
    check_tasks(model, config.evaluate.tasks)

    def judge(when: str) -> dict[str, Result]:
        with trainer.accelerator.autocast():  # frozen parts may be in half precision, learning ones are not
            return evaluate(model, processor, config.evaluate.tasks, when, out)

    trainer = Trainer(
        model, streams, config.learn, config.optim, config.trainer, out, seed=config.seed, facts={"run": tree},
        evaluate=lambda step: _numbers(judge(f"step-{step}")),
        evaluate_every=config.evaluate.every,
    )  # fmt: skip
    with trainer.accelerator.autocast():
        for name, options in config.streams.items():
            cache_features(name, streams[name].data, options.cache, model)
    _take_folder(out, tree, fresh, streams)  # only now: whatever was wrong has left no trace
    if distributed.is_main():
        log.info("\n" + model.table())
        (out / "parts.json").write_text(json.dumps(model.part_table(), indent=1), encoding="utf-8")
    if config.evaluate.before and newest(out / "checkpoints") is None:
        _say(judge("before"), "before training")
    line = trainer.fit()
    if config.evaluate.after:
        _say(judge("after"), "after training")
    _finish(out, model, processor, config.model.get("from"))
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


def _take_folder(out: Path, tree: dict[str, Any], fresh: bool, streams: dict[str, Stream]) -> None:
    """Make the run's folder and write what is known before the first step."""
    if distributed.is_main():
        for name in OWN_FILES if fresh else ():
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.yaml").write_text(dump_yaml(tree), encoding="utf-8")
        for file in local_files(tree["imports"]):
            (out / "imports").mkdir(exist_ok=True)
            shutil.copyfile(file, out / "imports" / file.name)
        note_start(out, distributed.world_size(), _device_name())
        for name, stream in streams.items():
            append_quarantine(out / "quarantine.jsonl", stream.data.source.rejected, name)
    distributed.barrier()


def _device_name() -> str:
    """What the main process computes on, for people."""
    device = distributed.device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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


def _finish(out: Path, model: ZooModel, processor: Processor, base: str | None) -> None:
    """Save the model (of adapters on a saved model only what learnt), its processor and its card; say what was left
    out of the data."""
    if distributed.is_main():
        if base is not None and (model.config.lora or getattr(model, "is_quantized", False)):
            _save_adapter(out, model, base)
        else:
            for name in (adapter.FACTS, adapter.TENSORS):  # of an earlier run with adapters
                (out / name).unlink(missing_ok=True)
            model.save_pretrained(out)
        processor.save_pretrained(out)
        let_others_read(out)
        loading = f'from vlmzoo import load\n\nmodel, processor = load("{out.name}")'
        task = "image-text-to-text" if isinstance(model, VisionLM) else "zero-shot-image-classification"
        write_card(out, title=out.name, loading=loading, pipeline=task, **run_facts(out))
        bad = read_quarantine(out / "quarantine.jsonl")
        if bad:
            log.warning(f"{len(bad)} rows could not be used; they are listed in {out / 'quarantine.jsonl'}")
        page = write_report(out)
        log.info(f"saved {out}" + (f"; look at {page}" if page else ""))
    distributed.barrier()


def _save_adapter(out: Path, model: ZooModel, base: str) -> None:
    """What learnt, in this run or in the one whose adapters it went on with."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names |= {name for part in model.config.lora or {} for name in model.adapter_parameters(part)}
    folder = Path(located(base))
    if adapter.is_adapter(folder):
        names |= set(adapter.facts_of(folder)["tensors"])
        base = adapter.find_base(folder)
    adapter.save(model, out, base, names)
