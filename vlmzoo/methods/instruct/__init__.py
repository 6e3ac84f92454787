"""Instruction data from captions and boxes ("Visual Instruction Tuning", section 3): by a text model, or by rules."""

from vlmzoo.methods.instruct.generate import Instruct, write_instruct
from vlmzoo.methods.instruct.records import Annotated, Records, Thing, read_annotated
from vlmzoo.methods.instruct.rules import Round, Rules, write_rounds

__all__ = [
    "Annotated", "Instruct", "Records", "Round", "Rules", "Thing", "read_annotated", "write_instruct", "write_rounds",
]  # fmt: skip
