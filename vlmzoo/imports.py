"""Parts of the user's own: files and modules that are imported before a config is read, so that its names are known."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, nearest_file

PREFIX = "vlmzoo_imported_"  # before the name of a file's module, so that it hides no other


def import_parts(sources: Any, where: str = "imports") -> None:
    """Import what the user names; what it registers is known from then on. What is imported already is left alone.

    Args:
        sources: paths of Python files (relative ones from the current folder), or names of importable modules.
            Nothing is fetched, and nothing that a downloaded folder names is imported.

    Raises:
        ConfigError: no such file or module, or an error in it, with its line.
    """
    if not isinstance(sources, (list, tuple)) or not all(isinstance(source, str) for source in sources):
        raise ConfigError(f"{where}: wanted a list of files or modules, got {sources!r}")
    for source in sources:
        if source.endswith(".py"):
            _import_file(Path(source), where)
        else:
            _import_module(source, where)


def local_files(sources: Iterable[str]) -> list[Path]:
    """The files among what is to be imported."""
    return [Path(source) for source in sources if source.endswith(".py")]


def _import_file(path: Path, where: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{where}: no file {str(path)!r}; {nearest_file(path, '*.py')}")
    name, path = PREFIX + path.stem, path.resolve()
    known = sys.modules.get(name)
    if known is not None:
        if known.__file__ != str(path):
            raise ConfigError(f"{where}: {path} and {known.__file__} have one name; rename one of them")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickles and data classes look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{where}: {_told(error, path)}") from error


def _import_module(name: str, where: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: {name}: {error}") from error
        raise ConfigError(f"{where}: no module {name!r}; a file is written with its .py") from None
    except Exception as error:
        raise ConfigError(f"{where}: {_told(error, Path(name))}") from error


def _told(error: Exception, path: Path) -> str:
    """An error in the user's code in one line: file, line, kind, message."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
