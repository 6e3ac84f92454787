"""What a model said, as json lines with the ids of the rows: written beside every result, and scored again without it.

A line is ``{"question_id", "text"}`` (also ``prompt``, and ``part`` where a task asks several times), as the answer
files of LLaVA's evaluation have it; submissions to EvalAI (``question_id`` or ``image``, and ``answer``) are read too.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, nearest_file
from vlmzoo.data.sources.records import read_records
from vlmzoo.types import Row

log = logging.getLogger(__name__)
FILE = "predictions.jsonl"
WHOLE = "answers"  # the part of a task that asks once
ID_KEYS, TEXT_KEYS = ("question_id", "id", "image"), ("text", "answer", "prediction")


def prediction(row: Row, text: str, prompt: str, part: str = WHOLE) -> dict[str, Any]:
    """A line about one answer."""
    more = {} if part == WHOLE else {"part": part}
    return {"question_id": row["id"], "prompt": prompt, "text": text, **more}


class Predictions:
    """Answers that were given before, or elsewhere.

    They belong to rows by id, never by order. Where a file names its rows otherwise (``truth["aliases"]``: MME's
    picture, say, which has two questions), the question must stand in the answer's ``prompt``.

    Args:
        path: jsonl, or a json list, of the lines above.

    Raises:
        ConfigError: no such file, or a line that is no answer.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"answers: no file {str(path)!r}; {nearest_file(self.path, '*.json*')}")
        broken: list[tuple[str, str]] = []
        self._said: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for number, record in read_records(str(path), broken):
            name, text = _first(record, ID_KEYS), _first(record, TEXT_KEYS)
            if name is None or not isinstance(text, str):
                wanted = f"wanted {' or '.join(ID_KEYS)}, and {' or '.join(TEXT_KEYS)}"
                raise ConfigError(f"{path}: record {number} is no answer ({wanted}): {str(record)[:200]}")
            said = (str(record.get("prompt") or ""), text)
            if said not in (held := self._said[str(record.get("part") or WHOLE), str(name)]):
                held.append(said)
        if broken:
            raise ConfigError(f"{path}: {broken[0][0]}: {broken[0][1]}")
        if not self._said:
            raise ConfigError(f"{path}: holds no answer")

    def answers(self, rows: Sequence[Row], questions: Sequence[str], part: str = WHOLE) -> list[str]:
        """One answer a row; answers to other rows are counted in the log.

        Args:
            questions: of the rows, as their prompts hold them. part: of the task.

        Raises:
            ConfigError: rows without an answer, or with several.
        """
        sharing = Counter(alias for row in rows for alias in _aliases(row))
        taken: set[str] = set()
        found = []
        missing: list[str] = []
        for row, question in zip(rows, questions, strict=True):
            name = next((name for name in (row["id"], *_aliases(row)) if (part, name) in self._said), None)
            fitting = self._said.get((part, name or ""), [])
            if len(fitting) > 1 or (name != row["id"] and sharing[name or ""] > 1):
                fitting = [said for said in fitting if _plain(question) in _plain(said[0])]
            if len(fitting) > 1:
                raise ConfigError(f"{self.path}: {len(fitting)} answers to {row['id']!r}: {fitting[:2]}")
            if not fitting:
                missing.append(row["id"])
            else:
                taken.add(str(name))
                found.append(fitting[0][1])
        self._tell(missing, len(rows), taken, part)
        return found

    def _tell(self, missing: Sequence[str], rows: int, taken: set[str], part: str) -> None:
        names = [name for own, name in self._said if own == part]
        if missing:
            kept = f"it holds {len(names)}, such as {names[0]!r}" if names else "it holds none of this part"
            raise ConfigError(
                f"{self.path}: {len(missing)} of {rows} rows have no answer ({part}), the first {missing[0]!r}; {kept}"
            )
        left = [name for name in names if name not in taken]
        if left:
            log.warning(f"{self.path}: {len(left)} answers belong to no row, the first {left[0]!r}")


def _first(record: Any, keys: Iterable[str]) -> Any:
    if not isinstance(record, Mapping):
        return None
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _aliases(row: Row) -> Sequence[str]:
    return (row.get("truth") or {}).get("aliases") or ()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
