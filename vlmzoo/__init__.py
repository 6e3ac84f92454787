"""vlmzoo: Flamingo, BLIP, LLaVA and CLIP from shared parts, one trainer, plain Hub folders.

Importing this costs nothing beyond the standard library; transformers is imported by the first ``build`` or ``load``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmzoo.registry import available, register

if TYPE_CHECKING:
    from vlmzoo.models.base import ZooModel
    from vlmzoo.processing.processor import Processor

__version__ = "0.1.0"
__all__ = ["available", "build", "load", "processor_for", "register"]


def build(source: Any, **options: Any) -> ZooModel:
    """Compose a model from a preset's name, a YAML file or a mapping; see :func:`vlmzoo.compose.build`."""
    import vlmzoo.auto  # noqa: F401  (registers the Auto classes)
    from vlmzoo.compose import build as compose

    return compose(source, **options)


def load(source: Any, **options: Any) -> tuple[ZooModel, Processor]:
    """A trained model and its processor from a folder or the Hub; see :func:`vlmzoo.folders.load`."""
    import vlmzoo.auto  # noqa: F401
    from vlmzoo.folders import load as read

    return read(source, **options)


def processor_for(model: ZooModel, *args: Any, **options: Any) -> Processor:
    """The processor that fits a model; see :func:`vlmzoo.compose.processor_for`."""
    from vlmzoo.compose import processor_for as fit

    return fit(model, *args, **options)
