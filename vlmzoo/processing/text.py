"""Text: conversations to segments, and segments to ids with labels, built together one segment at a time.

A template is a handful of strings; the same strings write the Jinja chat template of an exported folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from vlmzoo.config import ConfigError, nearest
from vlmzoo.types import IGNORE_INDEX, Part, RowError

IMAGE = "<image>"  # where a picture stands in a text
TINY_TOKENIZER = Path(__file__).parent.parent / "assets" / "tiny-tokenizer"
_ASSISTANT = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Segment:
    """A stretch of a prompt that is read at once: text, a picture, or a control token; supervised or not.

    ``own`` marks the template's own words: only there the name of a control token (``<|im_end|>``) means the token.
    ``frames`` is the length of a video; a picture is a video of one frame.
    """

    kind: Literal["text", "image", "bos", "eos"]
    text: str = ""
    supervised: bool = False
    own: bool = False
    frames: int = 1


@dataclass(frozen=True)
class Template:
    """How turns are written.

    Attributes:
        system: in the place of a system turn where the row brings none.
        around_system: what stands before and after a system turn. system_inside: it stands inside the first user's
            turn, after what opens that.
        user, answer: what stands before and after a turn's content; the answer's is supervised, its end token follows.
        open: what stands before the answer and is not supervised. close: what follows its end and is not either.
        begins: the begin token stands before every round, not only before the first.
        chunk: in a document, what ends a text before a picture and at the end, supervised (Flamingo's <EOC>).
        plain: LLaVA's first stage: the user's text is dropped, the answer follows the picture bare.
    """

    name: str
    system: str = ""
    around_system: tuple[str, str] = ("", " ")
    system_inside: bool = False
    user: tuple[str, str] = ("USER: ", " ")
    open: str = "ASSISTANT:"
    answer: tuple[str, str] = (" ", "")
    end: Literal["eos", "none"] = "eos"
    close: str = ""
    begins: bool = False
    chunk: str = ""
    plain: bool = False

    @property
    def controls(self) -> list[str]:
        """Control tokens in the template's own words, which a tokenizer must know as tokens."""
        return control_words(
            "".join(
                (
                    self.system,
                    *self.around_system,
                    *self.user,
                    self.open,
                    *self.answer,
                    self.close,
                    self.chunk,
                )
            )
        )

    @property
    def ending(self) -> str:
        """What an answer ends with where that is not the end token: words that stop generation."""
        return "" if self.end == "eos" else self.answer[1]

    def require_controls(self, tokenizer: Any) -> None:
        """Refuse a tokenizer that would spell the template's control tokens as plain text.

        Raises:
            ConfigError: naming the token that it lacks.
        """
        absent = [word for word in self.controls if word not in tokenizer.get_vocab()]
        if absent:
            raise ConfigError(
                f"template: {self.name} needs {absent[0]} as a token, which this tokenizer lacks"
            )

    def segments(self, parts: Sequence[Part], prompt: bool = False) -> list[Segment]:
        """The segments of a row's parts, the begin token first.

        Args:
            parts: in reading order. prompt: leave the last answer out and end where it would start.

        Raises:
            RowError: a turn order that cannot be written (a system turn in the middle).
        """
        turns = turns_of(parts)
        if prompt and turns:
            turns = without_answer(turns)
        told = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
        if any(role == "system" for role, _ in turns):
            raise RowError("a system turn stands after another turn")
        opening = self._opening(told, bare=bool(turns) and turns[0][0] == "text")
        if self.system_inside and told is not None and (not turns or turns[0][0] != "user"):
            raise RowError(f"template {self.name}: a system turn needs a user's turn after it")
        found = [Segment("bos"), *([] if self.system_inside else opening)]
        for number, (role, group) in enumerate(turns):
            if self.begins and role == "user" and number:
                found.append(Segment("bos"))
            found.extend(self._turn(role, group, opening if self.system_inside and not number else []))
        if prompt and turns and turns[-1][0] == "text":
            found.pop()  # the end token
        if prompt and self.open and turns and turns[-1][0] == "user":
            found.append(Segment("text", self.open, own=True))
        return found

    def _opening(self, told: list[Part] | None, bare: bool) -> list[Segment]:
        """The system turn: the row's, or the template's own, or (for a document) none."""
        before, after = (Segment("text", words, own=True) for words in self.around_system)
        if told is not None:
            return [before, *_content(told, supervised=False, newline=False), after]
        return [before, Segment("text", self.system, own=True), after] if self.system and not bare else []

    def _turn(self, role: str, group: list[Part], inside: list[Segment]) -> Iterator[Segment]:
        if role == "text":
            yield from self._chunks(group)
            yield Segment("eos", supervised=True)
        elif role == "user" and self.plain:
            yield from (Segment("image") for part in group if part["type"] != "text")
        elif role == "user":
            yield Segment("text", self.user[0], own=True)
            yield from inside
            yield from _content(group, supervised=False, newline=True)
            yield Segment("text", self.user[1], own=True)
        else:
            if self.open:
                yield Segment("text", self.open, own=True)
            yield Segment("text", self.answer[0], supervised=True, own=True)
            yield from _content(group, supervised=True, newline=False)
            if self.answer[1]:
                yield Segment("text", self.answer[1], supervised=True, own=True)
            if self.end == "eos":
                yield Segment("eos", supervised=True)
            if self.close:
                yield Segment("text", self.close, own=True)

    def _chunks(self, group: list[Part]) -> Iterator[Segment]:
        """A document's pictures and texts; every text that a picture or the end follows is ended by ``chunk``."""
        texts = [part["type"] == "text" and bool(part["text"]) for part in group]
        ends = [said and not after for said, after in zip(texts, [*texts[1:], False], strict=True)]
        for segment, last in zip(_content(group, supervised=True, newline=False), ends, strict=True):
            yield segment
            if last and self.chunk:
                yield Segment("text", self.chunk, supervised=True, own=True)

    def jinja(self, bos: str, eos: str) -> str:
        """The same template for transformers' ``apply_chat_template``, assistant turns marked for its label masks."""
        quote = jinja_string
        end = quote(eos) if self.end == "eos" else "''"
        content = (
            "{%- macro write(content, after, words) -%}{%- if content is string -%}{%- if words -%}{{- content -}}{%- endif -%}"
            "{%- else -%}{%- for item in content -%}{%- if item.type == 'image' -%}{{- '<image>' + after -}}"
            "{%- elif words -%}{{- item.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
        )
        before, behind = map(quote, self.around_system)
        told = f"{before} + write(messages[0].content, '', true) + {behind}"
        system = (
            f"{{%- if messages[0].role == 'system' -%}}{{%- set opening = {told} -%}}"
            f"{{%- else -%}}{{%- set opening = {f'{before} + {quote(self.system)} + {behind}' if self.system else quote('')} -%}}"
            "{%- endif -%}" + ("" if self.system_inside else "{{- opening -}}")
        )
        inside = (
            " + (opening if loop.index0 == (1 if messages[0].role == 'system' else 0) else '')"
            if self.system_inside
            else ""
        )
        again = (
            "{%- if loop.previtem is defined and loop.previtem.role != 'system' -%}"
            f"{{{{- {quote(bos)} -}}}}{{%- endif -%}}"
            if self.begins
            else ""
        )
        opened, closed = ("", "") if self.plain else self.user
        words = f"write(message.content, {quote('' if self.plain else chr(10))}, {'false' if self.plain else 'true'})"
        answer = (
            f"{quote(self.answer[0])} + write(message.content, '', true) + {quote(self.answer[1])} + {end}"
        )
        return (
            content + f"{{{{- {quote(bos)} -}}}}" + system + "{%- for message in messages -%}"
            "{%- if message.role == 'system' -%}{%- if not loop.first -%}"
            "{{- raise_exception('a system turn stands after another turn') -}}{%- endif -%}"
            "{%- elif message.role == 'user' -%}"
            f"{again}{{{{- {quote(opened)}{inside} + {words} + {quote(closed)} -}}}}"
            f"{{%- else -%}}{{{{- {quote(self.open)} -}}}}{{%- generation -%}}{{{{- {answer} -}}}}{{%- endgeneration -%}}"
            f"{{{{- {quote(self.close)} -}}}}{{%- endif -%}}{{%- endfor -%}}"
            f"{{%- if add_generation_prompt -%}}{{{{- {quote(self.open)} -}}}}{{%- endif -%}}"
        )  # fmt: skip


def control_words(words: str) -> list[str]:
    """The names of control tokens among a template's words, each once."""
    return sorted(set(re.findall(r"<\|\w+\|>", words)))


def jinja_string(text: str) -> str:
    """A text as Jinja writes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _content(group: list[Part], supervised: bool, newline: bool) -> Iterator[Segment]:
    for part in group:
        if part["type"] == "text":
            yield Segment("text", part["text"] or "", supervised)
        else:
            yield Segment("image")
            if newline:
                yield Segment("text", "\n")


def turns_of(parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Parts in a row of one role together, with that role."""
    return [(role, list(group)) for role, group in groupby(parts, key=lambda part: part["role"])]


def opened(segments: Sequence[Segment]) -> list[Segment]:
    """A document's segments without what closes it, so that its last text can be gone on with."""
    found = list(segments)
    if found and found[-1].kind == "eos":
        found.pop()
    if found and found[-1].own and found[-1].supervised:
        found.pop()  # the end of the last chunk
    return found


def without_answer(turns: list[tuple[str, list[Part]]]) -> list[tuple[str, list[Part]]]:
    """Turns without a last assistant turn, or without the last text of a document."""
    role, group = turns[-1]
    if role == "text":
        kept = len(group)
        while kept and group[kept - 1]["type"] == "text":
            kept -= 1
        return [*turns[:-1], (role, group[:kept])]
    return turns[:-1] if role == "assistant" else turns


TEMPLATES = {
    one.name: one
    for one in (
        Template("vicuna_v1", system=_ASSISTANT.format("user")),
        Template("llava_v1", system=_ASSISTANT.format("human")),
        Template("short"),
        Template("flamingo", chunk="<|endofchunk|>"),
        Template("continue", user=("", ""), open="", answer=(" ", "")),
        Template("plain", open="", answer=("", "\n"), end="none", plain=True),
        Template(
            "llava_llama_2", system=_LLAVA_LLAMA_2, around_system=("<<SYS>>\n", "\n<</SYS>>\n\n"), system_inside=True,
            user=("[INST] ", " [/INST]"), open="", answer=(" ", " "), begins=True,
        ),
        Template(
            "mistral_instruct", around_system=("<<SYS>>\n", "\n<</SYS>>\n\n"), system_inside=True,
            user=("[INST] ", " [/INST]"), open="", answer=(" ", " "),
        ),
        Template(
            "chatml", around_system=("<|im_start|>system\n", "<|im_end|>\n"),
            user=("<|im_start|>user\n", "<|im_end|>\n"), open="<|im_start|>assistant\n", answer=("", "<|im_end|>"),
            end="none", close="\n",
        ),
    )
}  # fmt: skip
TOKENIZER = (
    "tokenizer"  # the name of the template that a tokenizer brings along; a .jinja file is named by its path
)


def is_jinja(name: str) -> bool:
    """Whether a template's name stands for a Jinja chat template: ``tokenizer``, or a path that ends in .jinja."""
    return name == TOKENIZER or name.endswith(".jinja")


def template(name: str) -> Template:
    """A template of :data:`TEMPLATES` by name.

    Raises:
        ConfigError: no such template, with the nearest.
    """
    if name not in TEMPLATES:
        raise ConfigError(
            f"template: no template {name!r}; {nearest(name, [*TEMPLATES, TOKENIZER])} (or a path to a .jinja file)"
        )
    return TEMPLATES[name]


ANCHOR = ":"  # a character to read a text after, where the one before it is not known


class SegmentTokenizer:
    """Ids and labels from segments; text never becomes a control token, whatever it says.

    Args:
        tokenizer: of transformers, fast. image_token_id: written ``image_tokens`` times for one picture.
        frame_tokens: how many times more for every further frame of a video.
        around_image: an id on both sides of every picture, once between neighbours (Idefics).
    """

    CACHE = 1 << 16  # texts; questions repeat, and tokenising is most of a tiny model's data time

    def __init__(
        self,
        tokenizer: Any,
        image_token_id: int,
        image_tokens: int,
        frame_tokens: int = 0,
        around_image: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.around_image = [] if around_image is None else [around_image]
        self.image_token_id = image_token_id
        self.image_tokens = image_tokens
        self.frame_tokens = frame_tokens
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.controls = {str(token): number for number, token in added.items() if token.special}
        longest_first = sorted(
            (token for token in added.values() if token.special), key=lambda one: -len(str(one))
        )
        patterns = [r"\s*" * one.lstrip + re.escape(str(one)) + r"\s*" * one.rstrip for one in longest_first]
        self._control = re.compile(f"({'|'.join(patterns) or '(?!)'})")
        self._cache: dict[tuple[str, str], list[int]] = {}  # (character before or "", text) to ids
        self._own: dict[str, list[str]] = {}  # the template's words to texts and control tokens in turn
        self._marks_start = self._ids("a") != self._after(ANCHOR, "a")
        mark = next(iter(self.controls), "")
        whole = tokenizer(mark + "a", add_special_tokens=False)["input_ids"]
        self._marks_sections = whole[len(whole) - len(self._ids("a")) :] == self._ids("a")

    def text_ids(self, text: str, before: str | None = None) -> list[int]:
        """Ids of plain text: a literal ``<image>`` or ``</s>`` in it stays text.

        Many tokenizers mark the start of a text (sentencepiece's ``\u2581``); inside one text there is no such mark.

        Args:
            before: the text that these words go on from, "" after a picture or a control token, None at the start.
        """
        starts = before is None or not self._marks_start or (not before and self._marks_sections)
        key = ("" if starts else before[-1:] or ANCHOR, text)  # type: ignore[index]
        ids = self._cache.get(key)
        if ids is None:
            ids = self._after(*key) if key[0] else self._ids(text)
            if len(self._cache) < self.CACHE:
                self._cache[key] = ids
        return ids

    def width(self, frames: int = 1) -> int:
        """Ids that a picture (of one frame) or video takes."""
        return self.image_tokens + self.frame_tokens * (frames - 1)

    def split(self, words: str) -> list[str]:
        """A template's own words as texts and names of control tokens in turn; a text (perhaps empty) comes first."""
        if words not in self._own:
            pieces = self._control.split(words)
            self._own[words] = [piece.strip() if i % 2 else piece for i, piece in enumerate(pieces)]
        return self._own[words]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _after(self, anchor: str, text: str) -> list[int]:
        base, both = self._ids(anchor), self._ids(anchor + text)
        return both[len(base) :] if both[: len(base)] == base else self._ids(text)

    def encode(
        self, segments: Sequence[Segment], max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of equal length, -100 where not supervised.

        Neighbouring texts of one kind are read together, and where supervision changes a text goes on from the one
        before: the ids are those of the whole string, unless a token would reach over such a change.

        Raises:
            RowError: ``max_length`` would cut through or leave out a picture.
        """
        ids: list[int] = []
        labels: list[int] = []
        for piece, supervised, kind in self._pieces(segments):
            if max_length is not None and len(ids) + len(piece) > max_length:
                if kind == "image":
                    raise RowError(f"max_length {max_length} cuts through a picture of {len(piece)} tokens")
                piece = piece[: max_length - len(ids)]
            ids.extend(piece)
            labels.extend(piece if supervised else [IGNORE_INDEX] * len(piece))
        return ids, labels

    def _pieces(self, segments: Sequence[Segment]) -> Iterator[tuple[list[int], bool, str]]:
        before: str | None = None
        for (kind, supervised), group in groupby(segments, key=lambda s: (s.kind, s.supervised)):
            members = list(group)
            if kind == "text":
                ids, before = self._joined_ids(members, before)
                yield ids, supervised, kind
            elif kind == "image":
                for number, member in enumerate(members):
                    ids = [self.image_token_id] * self.width(member.frames)
                    yield [*([] if number else self.around_image), *ids, *self.around_image], False, kind
                before = ""
            else:
                token = self.tokenizer.bos_token_id if kind == "bos" else self.tokenizer.eos_token_id
                yield ([token] * len(members) if token is not None else []), supervised, kind
                before = before if token is None else ""

    def _joined_ids(self, members: Sequence[Segment], before: str | None) -> tuple[list[int], str | None]:
        """Neighbouring texts read together, cut only at control tokens that the template itself writes.

        Returns:
            Their ids, and what the next text goes on from (see :meth:`text_ids`).
        """
        runs = [""]  # texts and control tokens in turn
        for segment in members:
            pieces = [segment.text]
            if segment.own:
                pieces = self.split(segment.text)
            runs[-1] += pieces[0]
            runs += pieces[1:]
        ids: list[int] = []
        for number, run in enumerate(runs):
            if number % 2:
                ids.append(self.controls[run])
                before = ""
            elif run:
                ids += self.text_ids(run, before)
                before = run
        return ids, before
