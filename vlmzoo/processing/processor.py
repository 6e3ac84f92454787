"""The Processor: pictures and text to tensors, for training rows and for generation, saved beside a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from vlmzoo.config import Config
from vlmzoo.processing.image import ImageTransform, frames_of, open_image
from vlmzoo.processing.jinja import JinjaTemplate, chat_of
from vlmzoo.processing.text import IMAGE, Segment, SegmentTokenizer, Template, opened
from vlmzoo.types import IGNORE_INDEX, Row, RowError


class ProcessorOptions(Config):
    """Text and picture processing; a model that goes on from a folder brings a tokenizer, the rest can be changed.

    Attributes:
        tokenizer: ``tiny`` (embedded), a Hub id or a folder. template: as :class:`Processor`'s.
        image_fit: crop, pad or squash; by the tower if None.
        max_frames: frames of a video that are used, evenly spaced with both ends kept; None uses all.
    """

    tokenizer: str = "tiny"
    template: str = "short"
    image_fit: Literal["crop", "pad", "squash"] | None = None
    max_frames: PositiveInt | None = None


class Processor(ProcessorMixin):
    """Tokenizer, picture transform and chat template of a model.

    Args:
        image_processor: a stock transformers image processor (its PIL class); ``ImageTransform`` does its arithmetic.
        tokenizer: of transformers. chat_template: Jinja; that of ``template`` if None.
        image_tokens: ids for one ``<image>`` in a prompt (1 for gated fusion, 0 for a dual encoder).
        frame_tokens: ids more for each further frame of a video (0 where a video takes as many as a picture).
        max_frames: frames of a video that are used, evenly spaced with both ends kept; None uses all.
        template: how turns are written: a name of ``vlmzoo.processing.text.TEMPLATES``, ``tokenizer`` for the chat
            template that the tokenizer brings along, or a path to a .jinja file.
        around_image: a token that stands on both sides of every picture in a prompt (Idefics), None for none.
        max_length: longest text of a dual encoder, in tokens; padding always goes to it if ``pad_to_max``.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_tokens: int = 0,
        template: str = "short",
        max_length: int | None = None,
        pad_to_max: bool = False,
        frame_tokens: int = 0,
        max_frames: int | None = None,
        around_image: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.around_image = around_image
        self.image_tokens = image_tokens
        self.frame_tokens = frame_tokens
        self.max_frames = max_frames
        self.template = template
        self.max_length = max_length
        self.pad_to_max = pad_to_max
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        own = chat_of(template, tokenizer, chat_template)
        self._chats = {template: own}
        jinja = own.jinja(tokenizer.bos_token or "", tokenizer.eos_token or "")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or jinja)
        self.transform = ImageTransform.of(image_processor)
        around = None if around_image is None else tokenizer.convert_tokens_to_ids(around_image)
        self.segments = SegmentTokenizer(tokenizer, self.image_token_id, image_tokens, frame_tokens, around)

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds: the stock block and the plain numbers."""
        tree = super().to_dict()
        for name in ("transform", "segments", "image_token", "image_token_id", "_chats"):
            tree.pop(name, None)
        return tree

    def changed(
        self,
        template_name: str | None = None,
        image_fit: str | None = None,
        max_frames: int | None = None,
        image_size: int | None = None,
        image_tokens: int | None = None,
        frame_tokens: int | None = None,
    ) -> Processor:
        """The same processor with something else about it; None keeps its own.

        Args:
            template_name: how turns are written. image_fit: crop, pad or squash. max_frames: bound on frames.
            image_size: side of pictures in pixels, with which image_tokens and frame_tokens, the ids of a picture and of
                each further frame, may change.

        Raises:
            ConfigError: no such template, or one whose control tokens the tokenizer lacks.
        """
        name = template_name or self.template
        self.chat_of(name).require_controls(self.tokenizer)
        fit, size = image_fit or self.transform.fit, image_size or self.transform.size
        transform = replace(self.transform, fit=fit, size=size)  # type: ignore[arg-type]
        return Processor(
            transform.stock(),
            self.tokenizer,
            chat_template=self.chat_template if name == self.template else None,
            image_tokens=self.image_tokens if image_tokens is None else image_tokens,
            template=name,
            max_length=self.max_length,
            pad_to_max=self.pad_to_max,
            frame_tokens=self.frame_tokens if frame_tokens is None else frame_tokens,
            max_frames=max_frames or self.max_frames,
            around_image=self.around_image,
        )

    @property
    def chat(self) -> Template | JinjaTemplate:
        """The template in use."""
        return self.chat_of()

    def chat_of(self, name: str | None = None) -> Template | JinjaTemplate:
        """A template by name, the one in use by default.

        Raises:
            ConfigError: no such template, or one that cannot be trained on.
        """
        name = name or self.template
        if name not in self._chats:
            self._chats[name] = chat_of(name, self.tokenizer)
        return self._chats[name]

    # --- training --------------------------------------------------------------------------------------------

    def pictures(self, row: Row, root: Any = None) -> list[Tensor]:
        """The row's pictures, each [3, S, S], and videos, each [F, 3, S, S], in reading order.

        Raises:
            RowError: a picture that cannot be read, a video that is no list of frames, or places and pictures that
                differ in number.
        """
        made = []
        for kind, entries in self.media_of(row):
            frames = [self.transform(open_image(entry, root)) for entry in entries]
            made.append(torch.stack(frames) if kind == "video" else frames[0])
        return made

    def media_of(self, row: Row) -> list[tuple[str, list[Mapping[str, Any]]]]:
        """``image`` with its entry, or ``video`` with those of its frames that are used, in reading order.

        Raises:
            RowError: a video that is no list of frames, or places and pictures that differ in number.
        """
        kinds = [part["type"] for part in row["parts"] if part["type"] != "text"]
        if len(kinds) != len(row["images"]):
            raise RowError(f"{len(kinds)} places for pictures in the text, {len(row['images'])} pictures")
        return [
            (kind, list(frames_of(entry, self.max_frames)) if kind == "video" else [entry])
            for kind, entry in zip(kinds, row["images"], strict=True)
        ]

    def segments_of(self, row: Row, name: str | None = None, prompt: bool = False) -> list[Segment]:
        """The row's segments under template ``name`` (the processor's own by default), videos with their lengths.

        Args:
            prompt: leave the last answer out.

        Raises:
            RowError: a turn order that cannot be written, a video that is no list of frames.
        """
        segments = self.chat_of(name).segments(row["parts"], prompt=prompt)
        kinds = [part["type"] for part in row["parts"] if part["type"] != "text"]
        if "video" not in kinds:
            return segments
        lengths = iter(
            [
                len(frames_of(entry, self.max_frames)) if kind == "video" else 1
                for kind, entry in zip(kinds, row["images"], strict=False)
            ]
        )
        return [
            replace(segment, frames=next(lengths, 1)) if segment.kind == "image" else segment
            for segment in segments
        ]

    def supervised(
        self, row: Row, max_length: int | None = None, name: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of a row under template ``name`` (the processor's own by default).

        Raises:
            RowError: nothing is supervised (within ``max_length``), or a picture would be cut.
        """
        ids, labels = self.segments.encode(self.segments_of(row, name), max_length)
        if all(label == IGNORE_INDEX for label in labels[1:]):
            raise RowError(
                "nothing to learn: no supervised token" + (f" within {max_length}" if max_length else "")
            )
        return ids, labels

    def caption_ids(self, text: str) -> list[int]:
        """A text for a dual encoder: begin token, ids, end token, cut to ``max_length`` with the end token kept."""
        ids = self.segments.text_ids(text)
        ends = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]
        room = (self.max_length or len(ids) + 2) - sum(end is not None for end in ends)
        return [
            *([ends[0]] if ends[0] is not None else []),
            *ids[:room],
            *([ends[1]] if ends[1] is not None else []),
        ]

    # --- inference -------------------------------------------------------------------------------------------

    def prompts(
        self, rows: Sequence[Row], root: Any = None, name: str | None = None, whole: bool = False
    ) -> dict[str, Tensor]:
        """Left-padded prompts of rows, ending where the assistant is to speak, with their pictures.

        Args:
            whole: rows are documents to be gone on with where they end; otherwise what stands after the last
                question, or after the last picture of a document, is the answer and left out.

        Raises:
            RowError: a picture that cannot be read, or that stands in the answer that is left out.
        """
        encoded, pictures = [], []
        for row in rows:
            encoded.append(self.prompt_ids(row, name, whole))
            pictures.extend(self.pictures(row, root))
        batch = self.pad(encoded, side="left")
        return {**batch, **join_pictures(pictures)}

    def prompt_ids(self, row: Row, name: str | None = None, whole: bool = False) -> list[int]:
        """Ids of one row's prompt; see :meth:`prompts`."""
        segments = self.segments_of(row, name, prompt=not whole)
        segments = opened(segments) if whole else segments
        places = sum(segment.kind == "image" for segment in segments)
        if places != len(row["images"]):
            raise RowError(f"{places} places for pictures in the prompt, {len(row['images'])} pictures")
        return self.segments.encode(segments)[0]

    def pad(
        self, sequences: Sequence[Sequence[int]], side: str = "right", length: int | None = None
    ) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, [B, T], from lists of ids."""
        longest = length or max(len(ids) for ids in sequences)
        fill = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id
        )
        ids = torch.full((len(sequences), longest), fill or 0)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            where = slice(longest - len(sequence), longest) if side == "left" else slice(0, len(sequence))
            ids[row, where] = torch.tensor(sequence)
            mask[row, where] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts for a dual encoder, right-padded [B, T]."""
        length = self.max_length if self.pad_to_max else None
        return self.pad([self.caption_ids(text) for text in texts], length=length)

    def endings(self, name: str | None = None, document: bool = False) -> dict[str, Any]:
        """Arguments of transformers' ``generate`` that end an answer where the template ends one."""
        fill, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        chat = self.chat_of(name)
        text, *controls = self.segments.split(chat.chunk if document else chat.ending)
        ends = [end] if end is not None else []
        if controls and not text.strip():
            text, control = "", self.segments.controls[controls[0]]
            ends.extend([control] if control not in ends else [])
        words = {"stop_strings": [text], "tokenizer": self.tokenizer} if text else {}
        return {"eos_token_id": ends or None, "pad_token_id": end if fill is None else fill, **words}

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """transformers' calling convention: ``<image>`` in ``text`` marks the places of ``images``.

        Args:
            images: a PIL picture, a list of them, or a list of lists (one a text).
            text: one text or several. Texts are left-padded for generation.

        Returns:
            ``input_ids``, ``attention_mask`` and ``pixel_values``, those that were asked for (and with
            ``return_offsets_mapping`` where tokens and pictures stand in the text, for transformers' label masks).

        Raises:
            ValueError: a text whose places and pictures differ in number, or a picture given by name (a path or
                a URL would be opened; use ``vlmzoo.processing.image.open_image``).
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        nested = _nest(images, texts)
        if texts and self.image_tokens and len(nested) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(nested)} lists of pictures")
        data: dict[str, Tensor] = {}
        places: dict[str, Any] = {}
        if texts and self.image_tokens:
            for number, (one, pictures) in enumerate(zip(texts, nested, strict=True)):
                if one.count(IMAGE) != len(pictures):
                    raise ValueError(
                        f"text {number} has {one.count(IMAGE)} {IMAGE} places and {len(pictures)} pictures"
                    )
            around = self.around_image or ""
            place = around + IMAGE * self.image_tokens + around
            expanded = [one.replace(IMAGE, place).replace(around + around, around) for one in texts]
            where = bool(kwargs.get("return_offsets_mapping"))  # asked for label masks
            special = kwargs.get("add_special_tokens", False)
            encoded = self.tokenizer(expanded, add_special_tokens=special, return_offsets_mapping=where)
            data.update(self.pad(encoded["input_ids"], side="left"))
            if where:
                longest = data["input_ids"].shape[1]
                rows = encoded["offset_mapping"]
                places["offset_mapping"] = [[(0, 0)] * (longest - len(row)) + row for row in rows]
                places["text_replacement_offsets"] = list(map(self._expansions, texts, expanded))
        elif texts:
            data.update(self.texts(texts))
        flat = [picture for pictures in nested for picture in pictures]
        if flat:
            data["pixel_values"] = torch.stack([self.transform(open_image({"image": one})) for one in flat])
        batch = BatchFeature(data, tensor_type=return_tensors)
        batch.update(places)
        return batch

    def _expansions(self, text: str, expanded: str) -> list[dict[str, tuple[int, int]]]:
        """Where every ``<image>`` of a text stands, before and after it is written ``image_tokens`` times."""
        before, after = re.finditer(IMAGE, text), re.finditer(IMAGE * self.image_tokens, expanded)
        return [{"span": old.span(), "new_span": new.span()} for old, new in zip(before, after, strict=True)]

    def decode(self, ids: Any, **kwargs: Any) -> str:
        """Text of ids, control tokens left out unless asked for."""
        kwargs.setdefault("skip_special_tokens", True)
        return self.tokenizer.decode(ids, **kwargs)

    def answers(self, prompt: Mapping[str, Tensor], generated: Tensor) -> list[str]:
        """What ``generate`` added to each prompt, stripped."""
        start = prompt["input_ids"].shape[1]
        return [self.decode(row[start:]).strip() for row in generated]


def join_pictures(pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a model takes of pictures [3, S, S] and videos [F, 3, S, S]; nothing if there are none.

    Returns:
        ``pixel_values``: [I, 3, S, S], or [I, F, 3, S, S] for videos of one length. Where lengths differ (a picture
        counts as 1), all frames one after the other, [sum of F, 3, S, S], and ``frames``, [I]: how many each has.
    """
    if not pictures:
        return {}
    if len({picture.shape for picture in pictures}) == 1:
        return {"pixel_values": torch.stack(list(pictures))}
    videos = [picture if picture.ndim == 4 else picture[None] for picture in pictures]
    return {"pixel_values": torch.cat(videos), "frames": torch.tensor([len(video) for video in videos])}


def join_features(features: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a model takes in place of :func:`join_pictures` once its tower has run; nothing if there are none.

    Args:
        features: [1, N, D] of a picture, [F, N, D] of a video.

    Returns:
        ``image_features``: [I, F, N, D]. Where lengths differ, [sum of F, 1, N, D], and ``frames``, [I].
    """
    if not features:
        return {}
    if len({one.shape for one in features}) == 1:
        return {"image_features": torch.stack(list(features))}
    frames = torch.tensor([len(one) for one in features])
    return {"image_features": torch.cat(list(features))[:, None], "frames": frames}


def _nest(images: Any, texts: Sequence[str]) -> list[list[Image.Image]]:
    """Pictures by text: a flat list is dealt out by the number of places each text has."""
    if images is None:
        return [[] for _ in texts]
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if images and isinstance(images[0], (list, tuple)):
        nested = [list(group) for group in images]
    elif texts and any(IMAGE in text for text in texts):
        counts = [text.count(IMAGE) for text in texts]
        if sum(counts) != len(images):
            raise ValueError(f"{sum(counts)} {IMAGE} places (by text: {counts}) and {len(images)} pictures")
        remaining = iter(images)
        nested = [[next(remaining) for _ in range(count)] for count in counts]
    else:
        nested = [[image] for image in images]
    named = next((one for group in nested for one in group if not isinstance(one, Image.Image)), None)
    if named is not None:
        raise ValueError(f"wanted PIL pictures, got {type(named).__name__} {str(named)[:80]!r}")
    return nested
