"""A conversation about pictures: pictures and questions in, answers out as they are made. No terminal, no page.

History is kept in the parts of a canonical row, so that what a model reads here is what it reads in training.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vlmzoo.config import Config, nearest_file
from vlmzoo.evaluate.loop import evaluating
from vlmzoo.models.base import within
from vlmzoo.processing.image import open_image
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import IMAGE, is_jinja, template
from vlmzoo.types import Part, Row, RowError, Sees, move, require_verb

DOCUMENT = "document"  # beside the names of templates: one text that the model goes on with
Hear = Callable[[str], None]  # is given the answer so far, whenever it has grown


class ChatOptions(Config):
    """How a model answers.

    Attributes:
        max_new_tokens: longest answer. num_beams: 1 for none; answers made with beams come whole.
        temperature: of sampling; 0 answers greedily. top_p: sample among the likeliest words of this total probability.
        seed: the n-th answer of a conversation is drawn with seed + n; None draws anew each time.
        template: how the conversation is written: as in :class:`vlmzoo.processing.processor.Processor`, the processor's
            own if None, or ``document``: pictures and texts in a row, which the model goes on with (Flamingo).
    """

    max_new_tokens: PositiveInt = 64
    num_beams: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: NonNegativeInt | None = None
    template: str | None = None

    @field_validator("template")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name not in (None, DOCUMENT) and not is_jinja(name):
            template(name)
        return name

    def sampling(self) -> dict[str, Any]:
        """Arguments of transformers' generate."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"num_beams": self.num_beams, **(drawn if self.temperature else {"do_sample": False})}


@dataclass
class Picture:
    """A picture of a conversation; the tower sees it once.

    Attributes:
        image: RGB. pixels: [3, S, S]. path: its file, if it came from one.
        features: [1, 1, N, D], or None before the first question about it.
    """

    image: Image.Image
    pixels: Tensor
    path: str | None = None
    features: Tensor | None = None


@dataclass
class Exchange:
    """A question, the pictures shown with it, and the answer."""

    pictures: list[Picture]
    question: str
    answer: str = ""


class Conversation:
    """Questions about pictures, one after the other; every answer is made from the whole history.

    The history never loses its oldest turns by itself: the pictures stand there. What does not fit the model's
    positions is refused, and ``undo`` or ``clear`` make room; an answer gets what room is left.

    Args:
        model: one that Speaks. processor: its own. options: how to answer.
        lock: held while the model runs; conversations with one model in several threads share one.
        asker: who is named if the model does not speak.

    Attributes:
        exchanges: the history. waiting: pictures that belong to the next question.
        ended: how the last answer ended: ``whole``, ``cut`` (at max_new_tokens or the last position), ``stopped``.

    Raises:
        VerbError: a model without the verb Speaks.
    """

    def __init__(
        self, model: Any, processor: Processor, options: ChatOptions | None = None,
        lock: threading.Lock | None = None, asker: str = "a conversation",
    ) -> None:  # fmt: skip
        require_verb(model, "Speaks", asker)
        self.model, self.processor = model, processor
        self.options = options or ChatOptions()
        self.lock = lock or threading.Lock()
        self.exchanges: list[Exchange] = []
        self.waiting: list[Picture] = []
        self.ended = "whole"
        self._answers = 0
        self._stop = threading.Event()

    # --- turns -----------------------------------------------------------------------------------------------

    def show(self, picture: str | Path | Image.Image) -> None:
        """Show a picture file, or a picture, with the next question.

        Raises:
            RowError: it cannot be read (nothing is ever fetched).
        """
        path = None
        if isinstance(picture, Image.Image):
            image = open_image({"image": picture})
        else:
            path = os.path.expanduser(picture)
            if "://" not in path and not Path(path).exists():
                raise RowError(f"image file {path!r} does not exist; {nearest_file(Path(path), '[!.]*')}")
            image = open_image({"path": path})
        self.waiting.append(Picture(image, self.processor.transform(image), path))

    def ask(self, question: str = "", hear: Hear | None = None) -> str:
        """The answer to a question about the pictures so far.

        Ctrl-C, or :meth:`stop` from another thread, ends the answer early; what there is of it is kept.

        Args:
            question: may be empty where a picture waits. hear: called with the answer so far, the whole answer last.

        Returns:
            The answer, stripped; in a document what was added, its leading space kept.

        Raises:
            RowError: nothing to answer, or no room left in the model's positions. The conversation is unchanged.
        """
        exchange = Exchange(list(self.waiting), question)
        self._check(exchange)
        self._stop.clear()
        with self.lock, evaluating(self.model), self._seeded():
            exchange.answer = self._answer(exchange, hear)
        self._answers += 1
        self.tell(question, exchange.answer)
        return exchange.answer

    def tell(self, question: str, answer: str) -> None:
        """Put an exchange into the history as if the model had answered so (a demonstration)."""
        self.exchanges.append(Exchange(self.waiting, question, answer))
        self.waiting = []

    def stream(self, question: str = "", again: bool = False) -> Iterator[str]:
        """The answer so far, each time it has grown; closing the iterator stops it.

        Args:
            again: :meth:`retry` instead of a new question.

        Raises:
            RowError: as :meth:`ask`, when the iterator is first advanced.
        """
        work = self.retry if again else partial(self.ask, question)
        heard: SimpleQueue[Any] = SimpleQueue()

        def run() -> None:
            try:
                work(heard.put)
                heard.put(None)
            except BaseException as error:  # told in the thread that listens
                heard.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (item := heard.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.stop()
            thread.join()

    def retry(self, hear: Hear | None = None) -> str:
        """Answer the last question anew (the same words if greedy).

        Raises:
            RowError: there is none.
        """
        history, kept = list(self.exchanges), self.waiting
        self.waiting = []  # those belong to the next question, not to this one
        try:
            return self.ask(self.undo().question, hear)
        except BaseException:
            self.exchanges = history
            raise
        finally:
            self.waiting = kept

    def undo(self) -> Exchange:
        """Take the last exchange back; its pictures wait for the next question.

        Raises:
            RowError: there is none.
        """
        if not self.exchanges:
            raise RowError("nothing has been asked yet")
        last = self.exchanges.pop()
        self.waiting = [*last.pictures, *self.waiting]
        return last

    def clear(self) -> None:
        """Forget everything, pictures included."""
        self.exchanges, self.waiting, self._answers = [], [], 0

    def stop(self) -> None:
        """End the answer that is being made after its present token."""
        self._stop.set()

    # --- what the model reads --------------------------------------------------------------------------------

    @property
    def note(self) -> str:
        """What whoever asks should know about the template in use; empty for ordinary turns."""
        if self._document:
            return (
                "The model goes on with a document: your words stand before its own; a picture alone will do."
            )
        if self._plain:
            return (
                f"Template {self._name!r} reads pictures only: every answer is a caption of what was shown."
            )
        return ""

    @property
    def _document(self) -> bool:
        return self.options.template == DOCUMENT

    @property
    def _plain(self) -> bool:
        return not self._document and self.processor.chat_of(self._name).plain

    @property
    def _name(self) -> str:
        own = self._document or self.options.template is None
        return self.processor.template if own else self.options.template  # type: ignore[return-value]

    def row(self, *more: Exchange) -> Row:
        """The history, and ``more`` after it, as a canonical row; an answer that is still empty is left out last."""
        exchanges = [*self.exchanges, *more]
        user, assistant = ("text", "text") if self._document else ("user", "assistant")
        parts: list[Part] = []
        for exchange in exchanges:
            parts += [{"role": user, "type": "image", "text": None} for _ in exchange.pictures]  # type: ignore[misc]
            said = [(user, exchange.question)] if exchange.question else []
            if exchange.answer or exchange not in more:
                said.append((assistant, exchange.answer))
            parts += [{"role": role, "type": "text", "text": text} for role, text in said]  # type: ignore[misc]
        images = [{"image": picture.image} for exchange in exchanges for picture in exchange.pictures]
        return {"images": images, "parts": parts, "label": None, "id": "chat", "source": "chat", "truth": {}}

    def _check(self, exchange: Exchange) -> None:
        if not exchange.question and not exchange.pictures:
            raise RowError("nothing to answer: no question and no picture")
        if self._plain and not exchange.pictures:
            raise RowError(f"template {self._name!r} reads pictures only: show one with every question")

    def _inputs(self, exchange: Exchange) -> dict[str, Tensor]:
        ids = self.processor.prompt_ids(self.row(exchange), self._name, self._document)
        batch = self.processor.pad([ids])
        pictures = [picture for one in [*self.exchanges, exchange] for picture in one.pictures]
        if pictures:
            batch |= self._seen(pictures)
        return move(batch, self.model.device)

    def _seen(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        if not isinstance(self.model, Sees):
            return {"pixel_values": torch.stack([picture.pixels for picture in pictures])}
        for picture in pictures:
            if picture.features is None:
                picture.features = self.model.encode_pictures(picture.pixels[None].to(self.model.device))
        return {"image_features": torch.cat([picture.features for picture in pictures])}  # type: ignore[misc]

    # --- answers ---------------------------------------------------------------------------------------------

    def _answer(self, exchange: Exchange, hear: Hear | None) -> str:
        inputs = self._inputs(exchange)
        start = inputs["input_ids"].shape[1]
        length = min(self.options.max_new_tokens, self._room(start))
        listener = _Listener(self._text, hear)
        streamed = {"streamer": listener} if self.options.num_beams == 1 else {}
        stopping = StoppingCriteriaList([_Stopped(self._stop)])
        ends = self.processor.endings(self._name, self._document)
        try:
            out = self.model.generate(
                **inputs, max_new_tokens=length, stopping_criteria=stopping, **self.options.sampling(), **ends, **streamed
            )  # fmt: skip
            ids = out[0, start:].tolist()
        except KeyboardInterrupt:
            self.stop()
            ids = listener.ids
        finished = bool(ids) and ids[-1] in (ends["eos_token_id"] or ())
        cut = "cut" if len(ids) >= length and not finished else "whole"
        self.ended = "stopped" if self._stop.is_set() and not finished else cut
        answer = self._text(ids)
        if hear is not None:
            hear(answer)
        return answer

    def _text(self, ids: Sequence[int]) -> str:
        text = self.processor.decode(ids)
        return text.rstrip() if self._document else text.strip()

    def _room(self, used: int) -> int:
        """Positions left for an answer."""
        positions = within(None, self.model)
        if positions is None:
            return self.options.max_new_tokens
        if used >= positions:
            raise RowError(
                f"the conversation has grown to {used} tokens and the model has {positions} positions, so there is no "
                "room for an answer; undo a turn or clear the conversation"
            )
        return positions - used

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Random numbers of the options' seed inside; those of the program go on unchanged outside."""
        if self.options.seed is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed + self._answers)
            yield

    # --- keeping ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the conversation as a LLaVA json of one record, its pictures as PNG files beside it.

        Returns:
            The json file, which ``data: {kind: llava}`` reads.

        Raises:
            RowError: nothing said yet, or a text with a literal ``<image>``, which that layout takes for a place.
            OSError: the file cannot be written.
        """
        file = Path(path).expanduser()
        turns, names = [], []
        for exchange in self.exchanges:
            if IMAGE in exchange.question + exchange.answer:
                raise RowError(f"LLaVA's json cannot hold a literal {IMAGE} in a text; nothing was written")
            places = f"{IMAGE}\n" * len(exchange.pictures)
            turns.append({"from": "human", "value": places + exchange.question})
            turns.append({"from": "gpt", "value": exchange.answer.strip()})
            names += [
                f"{file.stem}-{len(names) + number + 1}.png" for number in range(len(exchange.pictures))
            ]
        if not turns:
            raise RowError("nothing has been asked yet; nothing was written")
        pictures = [picture for exchange in self.exchanges for picture in exchange.pictures]
        file.parent.mkdir(parents=True, exist_ok=True)
        for name, picture in zip(names, pictures, strict=True):
            picture.image.save(file.parent / name)
        record = {"id": file.stem, **({"image": names} if names else {}), "conversations": turns}
        file.write_text(json.dumps([record], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return file


@dataclass
class _Listener(BaseStreamer):
    """Collects the ids of an answer, and passes its text on while it grows."""

    text: Callable[[Sequence[int]], str]
    hear: Hear | None
    ids: list[int] = field(default_factory=list)
    said: str = ""
    prompt_seen: bool = False

    def put(self, value: Tensor) -> None:
        if not self.prompt_seen:  # generate hands over the prompt first
            self.prompt_seen = True
            return
        self.ids.extend(value.flatten().tolist())
        text = self.text(self.ids).rstrip("\ufffd")  # a character whose bytes have not all come
        if self.hear is not None and text != self.said:
            self.said = text
            self.hear(text)

    def end(self) -> None:
        pass


@dataclass
class _Stopped(StoppingCriteria):
    """Every row ends once the event is set."""

    event: threading.Event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
