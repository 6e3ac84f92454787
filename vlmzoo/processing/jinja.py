"""Chat templates that are programs: any Jinja template of a tokenizer, read for what of it is supervised.

A Jinja template says how a conversation is written, not which of its characters are an answer, nor whose words they are.
Both are found by writing the conversation with a mark in the place of every text: what lies between the marks are the
template's own words, and an answer starts where the generation prompt of the turns before it ends. A template is taken
only if it is incremental: every conversation begins with what its first turns alone would be. Only then is what is
trained what is served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from vlmzoo.config import ConfigError, nearest_file
from vlmzoo.processing.text import (
    IMAGE,
    TEMPLATES,
    TOKENIZER,
    Segment,
    Template,
    control_words,
    is_jinja,
    jinja_string,
    template,
    turns_of,
    without_answer,
)
from vlmzoo.types import Part, RowError

WRAPPED = "{#- vlmzoo: contents may be texts or lists, answers are marked for label masks -#}"
Turns = list[tuple[str, list[Part]]]
Message = dict[str, Any]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private use: no template strips, cuts or translates it
_CODES = {
    "Y": "2024",
    "y": "24",
    "m": "07",
    "B": "July",
    "b": "Jul",
    "d": "26",
    "A": "Friday",
    "a": "Fri",
    "H": "12",
    "M": "00",
}
_CLOCK = (  # what is trained must not change at midnight: the day is the one that Llama 3 falls back to
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f" | replace('%{code}', '{value}')" for code, value in _CODES.items())
    + " -}}{%- endmacro %}"
)


class JinjaTemplate:
    """A Jinja chat template, with the same methods as :class:`vlmzoo.processing.text.Template`.

    Args:
        source: Jinja, in the dialect of transformers. tokenizer: whose control tokens it writes.
        name: for messages: ``tokenizer``, or the file it was read from.

    Attributes:
        source: the template as it is exported: contents may be texts or lists, and answers are marked for label masks.
        ending: what an answer ends with: a control token, or words that stop generation.

    Raises:
        ConfigError: a template that cannot be trained on: not incremental, without an end of the answer, failing.
    """

    KEPT = 4096  # shapes of conversations whose pieces are remembered
    plain = False
    chunk = ""

    def __init__(self, source: str, tokenizer: Any, name: str = TOKENIZER) -> None:
        self.name = name
        self._variables = dict(tokenizer.special_tokens_map)
        tokens = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._token = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
        self._original = (_CLOCK if "strftime_now" in source and WRAPPED not in source else "") + source
        self._known: dict[Any, list[tuple[str, bool]]] = {}
        try:
            self._lists, self._images = self._contents()
            self._tail = self._last_words()
            self._trims = {role: self._trimmed(role) for role in ("user", "assistant")}
            close = self._close()
            self.source = source if WRAPPED in source else self._wrapped(close)
            for rounds in (1, 2):
                self.ending = self._verify(rounds)
        except RowError as error:
            raise ConfigError(str(error)) from None

    # --- what other rooms ask of a template ------------------------------------------------------------------

    @property
    def controls(self) -> list[str]:
        """Control tokens in the template's own words, which a tokenizer must know as tokens."""
        return control_words(self._write(_asked(1)))

    def require_controls(self, tokenizer: Any) -> None:
        """As :meth:`vlmzoo.processing.text.Template.require_controls`."""
        Template.require_controls(self, tokenizer)  # type: ignore[arg-type]

    def jinja(self, bos: str, eos: str) -> str:
        """The template for an exported folder; begin and end tokens are its own business."""
        return self.source

    def segments(self, parts: Sequence[Part], prompt: bool = False) -> list[Segment]:
        """The segments of a row's parts.

        Documents (parts of the role ``text``) are no conversation: they are written as by every other template.

        Args:
            parts: in reading order. prompt: leave the last answer out and end with the generation prompt.

        Raises:
            RowError: what the template refuses (a system turn, two turns of one role), changes or leaves out.
        """
        turns = turns_of(parts)
        turns = without_answer(turns) if prompt and turns else turns
        if not turns or any(role == "text" for role, _ in turns):
            return TEMPLATES["short"].segments(parts, prompt)
        texts = self._texts(turns)
        found = self._segments(self._pieces(turns, prompt), texts)
        said = [part["text"] or "" if part["type"] == "text" else "" for _, group in turns for part in group]
        words = "".join(IMAGE if segment.kind == "image" else segment.text for segment in found)
        if words != self._write(_messages(turns, said), prompt):
            raise self._error("it changes what a turn says, so that cannot be told from its own words")
        return found

    # --- a conversation in pieces ----------------------------------------------------------------------------

    def _pieces(self, turns: Turns, prompt: bool) -> list[tuple[str, bool]]:
        """The template's own words and marks in turn, each supervised or not; the same for all rows of one shape."""
        shape = prompt, tuple((role, *(part["type"] == "text" for part in group)) for role, group in turns)
        if shape not in self._known:
            marks = [_mark(i) for i in range(sum(len(group) for _, group in turns))]
            if len(self._known) >= self.KEPT:
                self._known.clear()
            self._known[shape] = _cut(*self._answers(_messages(turns, marks), prompt))
        return self._known[shape]

    def _segments(self, pieces: Sequence[tuple[str, bool]], texts: Sequence[str | None]) -> list[Segment]:
        found: list[Segment] = []
        met: list[int] = []
        for words, supervised in pieces:
            mark = _MARK.fullmatch(words)
            if mark:
                met.append(int(mark[1]))
                found.append(Segment("text", texts[met[-1]] or "", supervised))
                continue
            for number, run in enumerate(words.split(IMAGE)):
                found.extend([Segment("image")] if number else [])
                found.extend([Segment("text", run, supervised, own=True)] if run else [])
        wanted = [i for i, text in enumerate(texts) if text is not None]
        places, pictures = sum(segment.kind == "image" for segment in found), texts.count(None)
        if met != wanted or places != pictures:
            raise self._error(
                f"of {len(wanted)} texts and {pictures} pictures it writes {len(met)} and {places}, or in another order"
            )
        return found

    def _texts(self, turns: Turns) -> list[str | None]:
        """What each part says once it is written, None for pictures: some templates trim what a turn says."""
        found: list[str | None] = []
        for role, group in turns:
            texts = [part["text"] or "" if part["type"] == "text" else None for part in group]
            first, between, last = self._trims["assistant" if role == "assistant" else "user"]
            for number, text in enumerate(texts):
                if text is not None and (between if number else first):
                    texts[number] = text = text.lstrip()
                if text is not None and (between if number + 1 < len(texts) else last):
                    texts[number] = text.rstrip()
            found += texts
        return found

    # --- what the template takes and writes -----------------------------------------------------------------

    def _contents(self) -> tuple[bool, bool]:
        """Whether it is given lists and not texts, and whether a picture in a list becomes ``<image>``."""
        said, reason = _mark(0), ""
        contents = [
            said,
            [{"type": "text", "text": said}],
            [{"type": "image"}, {"type": "text", "text": said}],
        ]
        found = []
        for content in contents:
            try:
                words = self._render(self._original, [{"role": "user", "content": content}])[0]
            except RowError as error:
                words, reason = "", reason or str(error)
            found.append("" if "'type'" in words or words.count(said) != 1 else words)
        text, items, picture = found
        if not text and not items:
            raise RowError(reason) if reason else self._error("it does not write what a user says")
        images = bool(items) and picture.count(IMAGE) == 1
        return images or not text, images

    def _close(self) -> int:
        """Characters behind the end of an answer that are not part of it: its end is its first control token, or all that
        follows it where there is none."""
        _, mark, behind = self._write(_asked(1)).partition(_mark(1))
        if not mark or not behind:
            raise self._error("it writes no end after an answer, so a model could not learn to stop")
        own = behind[: len(behind) - self._tail] or behind
        token = self._token.search(own)
        return len(behind) - (token.end() if token else len(own))

    def _last_words(self) -> int:
        """Characters that stand once, behind the whole conversation (some templates put an end token there)."""
        short, long = self._write(_asked(1)), self._write(_asked(2))
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(short, long, strict=False))
        common = sum(1 for _ in equal)
        inside = (
            token.start() for token in self._token.finditer(short) if token.start() < common < token.end()
        )
        common = next(inside, common)  # two control tokens may begin alike
        return len(short) - common if long.endswith(short[common:]) and _mark(1) in short[:common] else 0

    def _trimmed(self, role: str) -> tuple[bool, bool, bool]:
        """Whether it takes whitespace away before a turn's first text, between two of them, and after the last."""
        turns = {"user": _message("user", "a"), "assistant": _message("assistant", "b")}
        turns[role]["content"] = [{"type": "text", "text": f"\t{_mark(number)}\t"} for number in (0, 1)]
        words = self._write([turns["user"], turns["assistant"]])
        kept = [(f"\t{_mark(number)}" in words, f"{_mark(number)}\t" in words) for number in (0, 1)]
        return not kept[0][0], not (kept[0][1] and kept[1][0]), not kept[1][1]

    def _wrapped(self, close: int) -> str:
        """The original inside a template that takes texts and lists and marks the answers, if it does not itself.

        Args:
            close: characters behind the end of an answer that are not supervised.
        """
        break_ = "('\\n' if message.role == 'user' else '')"
        picture = "item" if self._images else f"{{'type': 'text', 'text': {jinja_string(IMAGE)} + {break_}}}"
        content = "zoo.items" if self._lists else "zoo.items | map(attribute='text') | join('')"
        start = (
            f"{WRAPPED}{{%- set zoo = namespace(turns=[], items=[], done='') -%}}{{%- for message in messages -%}}"
            "{%- set zoo.items = [] -%}"
            "{%- for item in ([{'type': 'text', 'text': message.content}] if message.content is string else message.content) -%}"
            f"{{%- set zoo.items = zoo.items + [item if item.type == 'text' else {picture}] -%}}{{%- endfor -%}}"
            f"{{%- set zoo.turns = zoo.turns + [dict(message, content={content})] -%}}{{%- endfor -%}}"
        )  # fmt: skip
        original = self._original.removesuffix("\n")
        if _GENERATION.search(original):
            return start + "{%- set messages = zoo.turns %}" + original
        done = f"whole[:(whole | length) - {self._tail}]"
        refuse = jinja_string("a longer conversation does not begin with the shorter one")
        checked = (
            "{%- if not (head.startswith(zoo.done) and whole.startswith(head)) -%}"
            f"{{{{- raise_exception({refuse}) -}}}}{{%- endif -%}}"
        )
        return (
            start + "{%- macro zoo_write(messages, add_generation_prompt) %}" + original + "{% endmacro -%}"
            "{%- for message in zoo.turns -%}{%- if message.role == 'assistant' -%}"
            "{%- set head = zoo_write(zoo.turns[:loop.index0], true) -%}"
            "{%- set whole = zoo_write(zoo.turns[:loop.index], false) -%}"
            f"{checked}{{%- set answer = whole[head | length:(whole | length) - {close}] -%}}"
            "{{- head[zoo.done | length:] -}}{%- generation -%}{{- answer -}}{%- endgeneration -%}"
            f"{{%- set zoo.done = {done} -%}}{{{{- zoo.done[(head | length) + (answer | length):] -}}}}"
            "{%- endif -%}{%- endfor -%}"
            "{%- set head = zoo.done -%}{%- set whole = zoo_write(zoo.turns, add_generation_prompt | default(false)) -%}"
            f"{checked}{{{{- whole[zoo.done | length:] -}}}}"
        )  # fmt: skip

    def _verify(self, rounds: int) -> str:
        """What ends an answer; raises RowError unless a conversation of so many rounds is incremental, with its answers
        supervised up to that end."""
        messages = _asked(rounds)
        whole = self._write(messages)
        for stop in range(1, 2 * rounds, 2):
            head, done = self._write(messages[:stop], True), self._write(messages[: stop + 1])
            done = done[: len(done) - self._tail]
            if not (done.startswith(head) and whole.startswith(done) and len(done) > len(head)):
                raise self._error(
                    "a longer conversation does not begin with the shorter one (earlier answers are written in another "
                    "way, or the generation prompt is not), so a model would not be asked as it was trained; name "
                    "chatml or another template, or a .jinja file of your own"
                )
        words, spans = self._answers(messages)
        if words != whole:
            raise self._error("it writes something else when its answers are marked")
        pieces = _cut(words, spans)
        questions = {_mark(number) for number in range(0, 2 * rounds, 2)}
        asked = any(supervised and piece in questions for piece, supervised in pieces)
        last = max(i for i, (piece, _) in enumerate(pieces) if piece == _mark(2 * rounds - 1))
        if asked or not all(supervised for _, supervised in pieces[last : last + 2]):
            raise self._error(
                "its {% generation %} blocks must hold the answers with what ends them, and nothing of the questions"
            )
        return pieces[last + 1][0]

    def _write(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """What the original template makes of messages whose contents are lists."""
        given = []
        for message in messages:
            items = message["content"]
            if not self._images:
                after = "\n" if message["role"] == "user" else ""
                items = [
                    item if item["type"] == "text" else {"type": "text", "text": IMAGE + after}
                    for item in items
                ]
            content = items if self._lists else "".join(item["text"] for item in items)
            given.append({**message, "content": content})
        return self._render(self._original, given, prompt)[0]

    def _answers(
        self, messages: Sequence[Message], prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The same by the exported template, with first and last character of what is supervised."""
        return self._render(self.source, messages, prompt)

    def _render(
        self, source: str, messages: Sequence[Message], prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            words, spans = render_jinja_template(
                [list(messages)], chat_template=source, add_generation_prompt=prompt,
                return_assistant_tokens_mask=bool(_GENERATION.search(source)), **self._variables,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise self._error(" ".join(str(error).split())[:300] or type(error).__name__) from None
        return words[0], spans[0] if spans else []

    def _error(self, reason: str) -> RowError:
        return RowError(f"template {self.name}: {reason}")


def chat_of(name: str, tokenizer: Any, source: str | None = None) -> Template | JinjaTemplate:
    """The template of a name: of ``TEMPLATES``, ``tokenizer`` for the tokenizer's own, or a path to a .jinja file.

    Args:
        source: the Jinja text itself, where it is known already (of a saved processor).

    Raises:
        ConfigError: no such template or file, a tokenizer without one, or one that cannot be trained on.
    """
    if not is_jinja(name):
        return template(name)
    if source is None and name != TOKENIZER:
        if not Path(name).is_file():
            raise ConfigError(f"template: no file {name!r}; {nearest_file(Path(name), '*.jinja')}")
        source = Path(name).read_text(encoding="utf-8")
    source = source or getattr(tokenizer, "chat_template", None)
    source = source.get("default") if isinstance(source, Mapping) else source
    if not source:
        raise ConfigError(
            f"template: this tokenizer brings no chat template; name one of {', '.join(TEMPLATES)}"
        )
    return JinjaTemplate(source, tokenizer, name)


def _mark(number: int) -> str:
    return f"\ue000{number}\ue001"


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _asked(rounds: int) -> list[Message]:
    """A conversation of marks: questions have even numbers, answers odd ones."""
    return [_message("assistant" if i % 2 else "user", _mark(i)) for i in range(2 * rounds)]


def _messages(turns: Turns, texts: Sequence[str]) -> list[Message]:
    """Turns as transformers writes them, with one of ``texts`` for each part (a picture's is not used)."""
    remaining = iter(texts)
    return [
        {
            "role": role,
            "content": [
                {"type": "text", "text": text} if part["type"] == "text" else {"type": "image"}
                for part, text in zip(group, remaining, strict=False)
            ],
        }
        for role, group in turns
    ]


def _cut(words: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Words cut at marks and at the ends of supervised spans; every piece is supervised or not."""
    ends = {0, len(words), *(end for span in spans for end in span)}
    ends |= {end for mark in _MARK.finditer(words) for end in mark.span()}
    places = sorted(ends)
    return [
        (words[start:stop], any(first <= start and stop <= last for first, last in spans))
        for start, stop in pairwise(places)
    ]
