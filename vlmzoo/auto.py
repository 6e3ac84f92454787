"""Importing this registers the zoo's classes with transformers' Auto classes; ``build`` and ``load`` do it too."""

from __future__ import annotations

import vlmzoo.hub.auto  # noqa: F401
