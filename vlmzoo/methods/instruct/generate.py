"""Captions and boxes in, a file of LLaVA conversations out; what was paid for is never paid for twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.layouts.base import JsonList, json_line
from vlmzoo.data.sources.shapes import PLACE
from vlmzoo.endpoint import Endpoint, EndpointError, Reply, ReplyLog, request_key
from vlmzoo.methods.instruct.negatives import Absent
from vlmzoo.methods.instruct.prompts import PROMPTS, Kind, Prompt
from vlmzoo.methods.instruct.records import Annotated, Records
from vlmzoo.methods.instruct.replies import CountCheck, Filters, Judged, Refused, judge
from vlmzoo.methods.instruct.report import Report, Yield
from vlmzoo.methods.instruct.rules import Round, Rules, write_rounds
from vlmzoo.types import RowError

AnyKind = Literal["conversation", "detail", "reasoning", "rules"]
Progress = Callable[[int, int], None]


class Instruct(Config):
    """What to write about pictures.

    Attributes:
        kinds: ``rules`` needs no model; ``conversation``, ``detail`` and ``reasoning`` are asked of the endpoint.
        endpoint: a chat model. prompts: in place of the shipped ones, by kind.
        rules: how questions are made from boxes. filters: what is refused of a model's replies.
        price: money for a million prompt and a million completion tokens. budget: no further request is begun once all
            replies have cost so much. limit: only the first pictures.
    """

    kinds: tuple[AnyKind, ...] = ("rules",)
    endpoint: Endpoint | None = None
    prompts: dict[Kind, Prompt] = {}
    rules: Rules = Rules()
    filters: Filters = Filters()
    price: tuple[float, float] | None = None
    budget: float | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Instruct:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds names none, or one twice: {', '.join(self.kinds)}")
        if self.asked and self.endpoint is None:
            raise ValueError(
                f"{', '.join(self.asked)}: asked of a model, and no endpoint is named; rules needs none"
            )
        if self.budget is not None and self.price is None:
            raise ValueError("a budget needs a price")
        return self

    @property
    def asked(self) -> tuple[Kind, ...]:
        """The kinds that a model writes."""
        return tuple(kind for kind in self.kinds if kind != "rules")

    def prompt(self, kind: Kind) -> Prompt:
        """What is said for a kind."""
        return self.prompts.get(kind, PROMPTS[kind])


def write_instruct(
    records: Records,
    out: str | os.PathLike[str],
    options: Instruct,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Write LLaVA json about pictures, beside it what was refused (``.rejected.jsonl``) and a report (``.report.json``).

    Replies of a model go to ``.replies.jsonl`` as they come, and a later run asks only for those that are not there. The
    files appear whole, also when the run is stopped: they then hold what there is so far.

    Args:
        records: the pictures. out: the json file. options: what to write. progress: called with (done, in all) of requests, or
            of pictures where none is asked. stop: once set no further request is begun.

    Raises:
        ConfigError: ``out`` is no ``.json``, or a file that no run of this wrote; another process writes these replies.
        EndpointError: the endpoint refuses every request, or fails too often in a row; what was answered is kept.
    """
    out = Path(out)
    files = {
        "data": out,
        "rejected": out.with_suffix(".rejected.jsonl"),
        "report": out.with_suffix(".report.json"),
        **({"replies": out.with_suffix(".replies.jsonl")} if options.asked else {}),
    }
    if out.suffix != ".json":
        raise ConfigError(f"{out}: a file that ends with .json is wanted")
    if out.is_dir() or (out.exists() and not files["report"].exists()):
        raise ConfigError(f"{out} exists, and no {files['report'].name} is beside it; nothing was written")
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = records.pictures[: options.limit]
    kinds: dict[str, Yield] = {kind: Yield() for kind in options.kinds}
    report = Report(len(pictures), kinds, price=options.price, files=files)
    with ReplyLog(files["replies"]) if options.asked else nullcontext() as log:
        failures: dict[str, str] = {}
        if log is not None:
            report.passed_over = list(log.passed_over)
            failures = _ask(pictures, options, log, report, progress, stop or threading.Event())
        _write(records, pictures, options, log, failures, report, None if options.asked else progress)
    return report


# --- asking ------------------------------------------------------------------------------------------------------


def _ask(
    pictures: Sequence[Annotated],
    options: Instruct,
    log: ReplyLog,
    report: Report,
    progress: Progress | None,
    stop: threading.Event,
) -> dict[str, str]:
    """Ask for every reply that is not in the log; returns what went wrong with single requests, by key."""
    assert options.endpoint is not None
    missing: list[tuple[Annotated, Kind]] = []
    spent = [0, 0]
    for picture in pictures:
        for kind in options.asked:
            if (key := _key(picture, kind, options)) in log:
                _add(spent, log[key])
            else:
                missing.append((picture, kind))
    requests = ((pair, options.prompt(pair[1]).messages(pair[0])) for pair in missing)

    def stop_at_budget() -> None:
        if options.budget is not None and (report.cost(spent) or 0) >= options.budget:
            stop.set()

    stop_at_budget()
    failures: dict[str, str] = {}
    with options.endpoint.open() as client:
        try:
            for done, ((picture, kind), reply) in enumerate(client.chat_all(requests, stop), 1):
                key = _key(picture, kind, options)
                if isinstance(reply, Reply):
                    log.add(key, reply, id=picture.id, kind=kind, model=options.endpoint.model)
                    _add(spent, reply)
                    _add(report.tokens_now, reply)
                else:
                    failures[key] = str(reply)
                stop_at_budget()
                if progress is not None:
                    progress(done, len(missing))
        except EndpointError as error:
            kept = f"{len(log)} replies are kept in {log.path}, and the same command goes on after them"
            raise EndpointError(f"{error}; {kept}", error.status, lasting=True) from None
        report.asked, report.retried = client.requests, client.retried
    return failures


def _key(picture: Annotated, kind: Kind, options: Instruct) -> str:
    return request_key(picture.id, kind, options.prompt(kind).messages(picture))


def _add(tokens: list[int], reply: Reply) -> None:
    tokens[0] += reply.prompt_tokens
    tokens[1] += reply.completion_tokens


# --- writing -----------------------------------------------------------------------------------------------------


def _write(
    records: Records,
    pictures: Sequence[Annotated],
    options: Instruct,
    log: ReplyLog | None,
    failures: Mapping[str, str],
    report: Report,
    progress: Progress | None,
) -> None:
    """All files from what is known now: a pure function of source, options and replies."""
    writer = _Writer(options, log, failures, report, Absent(records.pictures))
    with (
        _whole(report.files["data"]) as data,  # takes its name last, so the report is always beside it
        _whole(report.files["report"]) as summary,
        _whole(report.files["rejected"]) as rejected,
        ExitStack() as after,
    ):
        items = JsonList(data.with_name(f"{data.name}.items"))
        after.callback(items.remove)
        lines = after.enter_context(rejected.open("w", encoding="utf-8"))

        def refuse(name: str, kind: str, refused: Refused) -> None:
            report.refuse(name, kind, refused.reason, refused.shown)
            lines.write(json_line({"id": name, "kind": kind, **asdict(refused)}))

        for name, reason in records.rejected:
            refuse(name, "source", Refused("source record", reason))
        for number, picture in enumerate(pictures, 1):
            for kind in options.kinds:
                judged = writer.by_rules(picture) if kind == "rules" else writer.by_model(picture, kind)
                if judged.rounds:
                    items.add(_record(picture, kind, judged.rounds))
                    report.keep(kind, judged.rounds)
                for refused in judged.refused:
                    refuse(picture.id, kind, refused)
            if progress is not None:
                progress(number, len(pictures))
        with data.open("w", encoding="utf-8") as file:
            items.copy_into(file)
        tree = {**report.tree(), "options": options.model_dump(mode="json")}
        summary.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Writer:
    """The rounds of a picture, from rules or from the replies there are."""

    def __init__(
        self,
        options: Instruct,
        log: ReplyLog | None,
        failures: Mapping[str, str],
        report: Report,
        absent: Absent,
    ) -> None:
        self.options, self.log, self.failures = options, log, failures
        self.report, self.absent = report, absent
        self.counts = CountCheck(absent.categories)

    def by_rules(self, picture: Annotated) -> Judged:
        try:
            rounds = write_rounds(picture, self.options.rules, self.absent)
        except RowError as error:
            return Judged([], [Refused("size unknown", str(error))])
        nothing = Refused("nothing to ask", f"no rule of {', '.join(self.options.rules.kinds)} applies")
        return Judged(rounds, [] if rounds else [nothing])

    def by_model(self, picture: Annotated, kind: Kind) -> Judged:
        assert self.log is not None
        key = _key(picture, kind, self.options)
        if key in self.failures:
            self.report.failed += 1
            return Judged([], [Refused("request", self.failures[key])])
        if key not in self.log:
            self.report.not_asked += 1
            return Judged()
        reply = self.log[key]
        self.report.models[str(self.log.record(key).get("model"))] += 1
        self.report.kinds[kind].replies += 1
        _add(self.report.tokens, reply)
        return judge(reply, self.options.prompt(kind), kind, picture, self.options.filters, self.counts)


def _record(picture: Annotated, kind: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """LLaVA's record: the picture's place in the first human turn only."""
    turns = []
    for number, one in enumerate(rounds):
        question = one.question if number else f"{PLACE}\n{one.question}"
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": one.answer}]
    return {"id": f"{picture.id}_{kind}", "image": picture.image, "conversations": turns}


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to fill that takes the name ``path`` at the end."""
    building = path.with_name(f".{path.name}.building")
    try:
        yield building
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
