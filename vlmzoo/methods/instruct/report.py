"""What came of a run: cost, yield, what was refused and why, and how the rule-made answers are balanced."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmzoo.evaluate.loop import text_table
from vlmzoo.methods.instruct.rules import Round

EXAMPLES = 3  # refused pieces shown for each reason
SHOWN = 100  # characters of one on the terminal


@dataclass
class Yield:
    """Of one kind: replies that came, records and rounds that were kept of them."""

    replies: int = 0
    records: int = 0
    rounds: int = 0


@dataclass
class Report:
    """Counts of a run, and what they come to.

    Attributes:
        pictures: of the source, within the limit. kinds: name to its yield. asked: requests sent in this run.
        retried: how many of them were second and further tries. failed: requests without an answer in the end.
        not_asked: requests left out because the run was stopped. tokens, tokens_now: (prompt, completion) of all replies
            that were used, and of those that came in this run. price: money for a million of each.
        models: replies by the model that gave them. passed_over: lines of the replies' file that hold none.
        refused: reason to the pieces refused for it; examples: (id, kind, shown) of some. answers: rule-made rounds by
            kind, form, yes or no (empty where it is neither) and how an absent category was chosen. letters: how often
            each is the answer. files: what was written.
    """

    pictures: int
    kinds: dict[str, Yield]
    asked: int = 0
    retried: int = 0
    failed: int = 0
    not_asked: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    tokens_now: list[int] = field(default_factory=lambda: [0, 0])
    price: tuple[float, float] | None = None
    models: Counter[str] = field(default_factory=Counter)
    passed_over: list[int] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(list))
    answers: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    files: dict[str, Path] = field(default_factory=dict)

    def refuse(self, name: str, kind: str, reason: str, shown: str) -> None:
        """Count a refused piece and keep the first ones as examples."""
        self.refused[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append((name, kind, shown))

    def keep(self, kind: str, rounds: Sequence[Round]) -> None:
        """Count a record."""
        self.kinds[kind].records += 1
        self.kinds[kind].rounds += len(rounds)
        for one in rounds if kind == "rules" else ():
            self.answers[(one.kind, one.form, _yes_no(one), one.negative)] += 1
            if one.form == "letter":
                self.letters[one.answer] += 1

    @property
    def complete(self) -> bool:
        """Whether every request has its answer."""
        return not self.failed and not self.not_asked

    @property
    def records(self) -> int:
        """Records written."""
        return sum(one.records for one in self.kinds.values())

    def cost(self, tokens: Sequence[int]) -> float | None:
        """Money for (prompt, completion) tokens; None without a price."""
        if self.price is None:
            return None
        return sum(number * price for number, price in zip(tokens, self.price, strict=True)) / 1e6

    def balance(self) -> list[dict[str, Any]]:
        """Yes and no of rule-made questions, by kind and by how an absent category was chosen."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for (kind, _, word, negative), number in self.answers.items():
            if word:
                found[kind][word] += number
                if negative:
                    found[f"{kind}, {negative}"][word] += number
        return [
            {
                "questions": kind,
                "yes": words["yes"],
                "no": words["no"],
                "yes_ratio": words["yes"] / words.total(),
            }
            for kind, words in sorted(found.items())
        ]

    def by_rule(self) -> list[dict[str, Any]]:
        """Rule-made rounds by kind and form."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for (kind, form, _, _), number in self.answers.items():
            found[kind][form if form in ("short", "letter", "sentence") else "own"] += number
        forms = [
            form
            for form in ("short", "letter", "sentence", "own")
            if any(row[form] for row in found.values())
        ]
        return [{"rule": kind, **{form: row[form] for form in forms}} for kind, row in found.items()]

    def tree(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "complete": self.complete,
            "pictures": self.pictures,
            "records": self.records,
            "kinds": {name: vars(one) for name, one in self.kinds.items()},
            "requests": {
                "sent": self.asked, "retries": self.retried, "failed": self.failed, "not_asked": self.not_asked,
            },
            "models": dict(self.models),
            "tokens": {
                "prompt": self.tokens[0], "completion": self.tokens[1],
                "prompt_this_run": self.tokens_now[0], "completion_this_run": self.tokens_now[1],
            },
            "cost": {
                "price_per_million": self.price, "all": self.cost(self.tokens), "this_run": self.cost(self.tokens_now)
            },
            "torn_lines": self.passed_over,
            "rejected": {
                reason: {
                    "count": number,
                    "examples": [
                        {"id": name, "kind": kind, "shown": shown} for name, kind, shown in self.examples[reason]
                    ],
                }
                for reason, number in self.refused.most_common()
            },
            "balance": self.balance(),
            "letters": dict(sorted(self.letters.items())),
            "rules": self.by_rule(),
            "files": {name: str(path) for name, path in self.files.items()},
        }  # fmt: skip

    def text(self) -> str:
        """For the terminal."""
        rows = [{"kind": name, **self._yield(name, one)} for name, one in self.kinds.items()]
        lines = [f"{self.records} records about {self.pictures} pictures", text_table(rows)]
        if self.asked or self.models:
            lines.append(self._requests())
        if self.answers:
            lines += ["", text_table(self.by_rule())]
        if self.balance():
            lines += ["", text_table(self.balance())]
        if self.letters:
            letters = (f"{letter} {number}" for letter, number in sorted(self.letters.items()))
            lines.append(f"letters: {', '.join(letters)}")
        if self.refused:
            lines += ["", "rejected:"]
        for reason, number in self.refused.most_common():
            name, kind, shown = self.examples[reason][0]
            line = " ".join(shown.split())
            lines.append(
                f"  {number} {reason}, the first {name} ({kind}): {line[:SHOWN]}{'...' * (len(line) > SHOWN)}"
            )
        if self.passed_over:
            lines.append(
                f"lines of the replies' file that hold none: {', '.join(map(str, self.passed_over))}"
            )
        if not self.complete:
            lines.append(
                f"not complete: {self.failed} failed, {self.not_asked} not asked; the same command goes on"
            )
        return "\n".join(lines)

    @staticmethod
    def _yield(name: str, one: Yield) -> dict[str, Any]:
        row = {"replies": one.replies, "records": one.records, "rounds": one.rounds}
        return {**row, "yield": one.records / one.replies if one.replies else ""}

    def _requests(self) -> str:
        prompt, completion = self.tokens
        line = f"{self.asked} requests in this run ({self.retried} retries); {prompt} + {completion} tokens in all"
        if not any(self.tokens):
            line += " (the server does not tell)"
        if self.price is not None:
            line += f"; cost {self.cost(self.tokens):.4f}, of this run {self.cost(self.tokens_now):.4f}"
        return (
            f"{line}; by {', '.join(f'{name}: {number}' for name, number in self.models.items()) or 'none'}"
        )


def _yes_no(one: Round) -> str:
    """The yes or no of a rule-made answer, in whatever form it is given; empty for other questions."""
    word = one.answer
    if one.form == "letter":
        options = dict(line.split(". ", 1) for line in one.question.splitlines()[1:-1])
        word = options[one.answer]
    first = word.split(",")[0].lower()
    return first if first in ("yes", "no") else ""
