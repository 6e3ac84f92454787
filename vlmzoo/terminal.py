"""The loop of ``vlmzoo chat``: lines in, answers out, words with a slash as commands. Prints nothing itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from vlmzoo.chat import ChatOptions, Conversation
from vlmzoo.config import ConfigError, nearest, parse_yaml, read
from vlmzoo.types import RowError

MISTAKES = (RowError, ConfigError, OSError)
Command = Callable[[str], None]


class Terminal:
    """A conversation line by line.

    Args:
        conversation: it may have pictures waiting.
        line: gives the next line, raises EOFError at the end.
        write: takes what belongs to answers (standard output). tell: takes lines about the chat (standard error).
        live: a person is there: answers are written while they grow. If not, each answer is one line, an empty one
            for a question that failed.
    """

    def __init__(
        self, conversation: Conversation, line: Callable[[], str], write: Callable[[str], None],
        tell: Callable[[str], None], live: bool,
    ) -> None:  # fmt: skip
        self.conversation, self.live = conversation, live
        self.line, self.write, self.tell = line, write, tell
        self.failures = 0
        self.open = True
        self._written = ""
        self._saved: Path | None = None
        self.commands: dict[str, tuple[Command, str, str]] = {
            "image": (self._image, "PATH ...", "show pictures with the next question"),
            "retry": (self._retry, "", "answer the last question anew"),
            "undo": (self._undo, "", "take the last question back; its pictures wait for the next one"),
            "clear": (self._clear, "", "forget everything, pictures included"),
            "shot": (self._shot, "[QUESTION =>] ANSWER", "give the answer yourself, as a demonstration"),
            "set": (self._set, "[NAME VALUE]", "how to answer, for example /set temperature 0.7"),
            "save": (self._save, "FILE", "write the conversation as LLaVA json, pictures beside it"),
            "help": (self._help, "", "this list"),
            "quit": (self._quit, "", "leave, as Ctrl-D does; Ctrl-C stops an answer"),
        }

    def run(self) -> int:
        """Until the lines end or ``/quit``; a mistake is told and the chat goes on.

        Returns:
            How many lines failed.
        """
        if self.conversation.note:
            self.tell(self.conversation.note)
        while self.open:
            try:
                line = self.line().strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                self.tell("\n/quit or Ctrl-D leaves")
                continue
            try:
                self._take(line)
            except KeyboardInterrupt:
                self.tell("stopped before the answer began")
            except MISTAKES as error:
                self.failures += 1
                self.tell(str(error))
                if not self.live and not _is_command(line):
                    self.write("\n")
        return self.failures

    def _take(self, line: str) -> None:
        if _is_command(line):
            name, _, rest = line[1:].partition(" ")
            if name not in self.commands:
                close = nearest(name, [f"/{known}" for known in self.commands])
                raise ConfigError(f"no command /{name}; {close} (//{name} asks it)")
            self.commands[name][0](rest.strip())
            return
        question = line[1:] if line.startswith("//") else line
        if question or (self.conversation.note and self.conversation.waiting):  # a picture alone will do
            self._answered(lambda: self.conversation.ask(question, self._hear))

    def _answered(self, ask: Callable[[], str]) -> None:
        self._written = ""
        answer = ask()
        self.write("\n" if self.live else " ".join(answer.split()) + "\n")
        if self.conversation.ended != "whole":
            limit = "/set max_new_tokens N allows more" if self.conversation.ended == "cut" else ""
            self.tell(f"({self.conversation.ended}{'; ' * bool(limit)}{limit})")

    def _hear(self, answer: str) -> None:
        if not self.live:
            return
        if not answer.startswith(self._written):  # a tokenizer that tidies what it has said
            self.write("\n")
            self._written = ""
        new, self._written = answer[len(self._written) :], answer
        self.write(new)

    # --- commands --------------------------------------------------------------------------------------------

    def _image(self, rest: str) -> None:
        if not rest:
            raise ConfigError("/image needs the path of a picture")
        waiting = list(self.conversation.waiting)
        try:
            for path in _paths(rest):
                self.conversation.show(path)
        except MISTAKES:
            self.conversation.waiting = waiting  # all of them or none
            raise
        self.tell(f"{_pictures(len(self.conversation.waiting))} with the next question")

    def _retry(self, rest: str) -> None:
        self._answered(lambda: self.conversation.retry(self._hear))

    def _undo(self, rest: str) -> None:
        taken = self.conversation.undo()
        self.tell(f"taken back: {taken.question!r}; {_pictures(len(self.conversation.waiting))} waiting")

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        self.tell("cleared, pictures included")

    def _shot(self, rest: str) -> None:
        question, arrow, answer = rest.partition("=>")
        if not arrow:
            question, answer = "", rest
        if not answer.strip() or not (question.strip() or self.conversation.waiting):
            raise ConfigError("/shot needs an answer, and a question or a picture that it answers")
        self.conversation.tell(question.strip(), answer.strip())

    def _set(self, rest: str) -> None:
        old = self.conversation.options.model_dump()
        if rest:
            name, _, value = rest.partition(" ")
            new = {**old, name: parse_yaml(value, f"/set {name}") if value.strip() else None}
            self.conversation.options = read(ChatOptions, new, "/set")
        for name, value in self.conversation.options.model_dump().items():
            if not rest or value != old[name]:
                self.tell(f"{name} {'none' if value is None else value}")

    def _save(self, rest: str) -> None:
        if not rest:
            raise ConfigError("/save needs the name of a file")
        file = Path(os.path.expanduser(rest))
        if file.exists() and file != self._saved:
            raise ConfigError(f"/save: {file} exists; nothing was written")
        self._saved = self.conversation.save(file)
        self.tell(f"saved {file}")

    def _help(self, rest: str) -> None:
        width = max(len(f"/{name} {takes}") for name, (_, takes, _) in self.commands.items())
        for name, (_, takes, about) in self.commands.items():
            self.tell(f"{f'/{name} {takes}'.ljust(width)}  {about}")

    def _quit(self, rest: str) -> None:
        self.open = False


def _is_command(line: str) -> bool:
    return line.startswith("/") and not line.startswith("//")


def _paths(rest: str) -> list[str]:
    """One path with spaces in it, or several by the rules of a shell (as files dropped on a terminal are written)."""
    try:
        several = shlex.split(rest)
    except ValueError:  # a lone quote
        several = []
    if not several or Path(os.path.expanduser(rest)).exists():
        return [rest]
    return several if Path(os.path.expanduser(several[0])).exists() else [rest]


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"
