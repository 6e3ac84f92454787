"""What gated blocks look at: the rows' pictures, which of them each text position sees, and keys and values kept.

A text position that sees one picture (Flamingo, section 2.1) needs scores to that picture's tokens alone. So how the
positions of one call meet the pictures is worked out once, for all blocks: a decoding step attends to one picture a
row, a long prompt chunk by chunk, and only what fits neither gets scores to all pictures and a mask.

Shapes: B rows, K beams or returned sequences a row (folded into the query axis), T text positions, J pictures a row
(padded), L visual tokens a picture, C their width, H heads, E head width, S positions of the picture seen most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from vlmzoo.nn.attention import KeysValues, attend


class View(Protocol):
    """How the positions of one call meet the pictures; the same for every block."""

    def look(self, queries: Tensor, kept: KeysValues, block: int) -> Tensor:
        """Attend.

        Args:
            queries: [B, H, K * T, E]. kept: keys and values of all pictures, each [B, H, J * L, E].
            block: number of the block that asks.

        Returns:
            [B, H, K * T, E], exactly 0 where a position sees no picture.
        """


@dataclass(frozen=True)
class Masked:
    """Scores to all pictures, masked."""

    mask: Tensor  # [B, K * T, J * L]

    def look(self, queries: Tensor, kept: KeysValues, block: int) -> Tensor:
        """As :meth:`View.look`."""
        return attend(queries, *kept, self.mask)


@dataclass(frozen=True)
class OnePicture:
    """All positions of a row see the same picture, or none: a decoding step, an answer after its prompt.

    Attributes:
        picture: [B], from 0; any where ``blind``. blind: [B], rows that see none, or None where all see one.
        own: [B, 1, L], the picture's own tokens where their number differs, or None. pictures: J.
        near: the picture's keys and values by block, once they were taken from those of all.
    """

    picture: Tensor
    blind: Tensor | None
    own: Tensor | None
    pictures: int
    near: dict[int, KeysValues] = field(default_factory=dict)

    def look(self, queries: Tensor, kept: KeysValues, block: int) -> Tensor:
        """As :meth:`View.look`."""
        if block not in self.near:
            self.near[block] = self._of_picture(kept[0]), self._of_picture(kept[1])
        seen = attend(queries, *self.near[block], self.own)
        return seen if self.blind is None else seen.masked_fill(self.blind[:, None, None, None], 0.0)

    def _of_picture(self, kept: Tensor) -> Tensor:
        if self.pictures == 1:
            return kept
        by_picture = rearrange(kept, "b h (j l) e -> b j h l e", j=self.pictures)
        return by_picture[torch.arange(len(kept), device=kept.device), self.picture]  # [B, H, L, E]


@dataclass(frozen=True)
class Chunks:
    """Every position sees one picture: positions are gathered by picture, so that scores to others are never made.

    Attributes:
        gather: for each picture the positions that see it, [B, J * S], filled up with any position.
        place: where each position stands among them, [B, K * T]. blind: [B, K * T], positions that see none.
        own: [B * J, 1, L], as in :class:`OnePicture`. pictures: J.
    """

    gather: Tensor
    place: Tensor
    blind: Tensor
    own: Tensor | None
    pictures: int

    def look(self, queries: Tensor, kept: KeysValues, block: int) -> Tensor:
        """As :meth:`View.look`."""
        by_picture = rearrange(_take(queries, self.gather), "b h (j s) e -> (b j) h s e", j=self.pictures)
        keys, values = (rearrange(one, "b h (j l) e -> (b j) h l e", j=self.pictures) for one in kept)
        seen = attend(by_picture, keys, values, self.own)
        seen = _take(rearrange(seen, "(b j) h s e -> b h (j s) e", j=self.pictures), self.place)
        return seen.masked_fill(self.blind[:, None, :, None], 0.0)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """Positions [B, M] of [B, H, N, E]: [B, H, M, E]."""
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


@dataclass
class Gaze:
    """What the gated blocks look at during one call of the language model, and from call to call while generating.

    Attributes:
        tokens: visual tokens [B, J, L, C].
        index: for each text position the picture it sees, [B * K, T], counted from 1; 0 or beyond the pictures sees
            nothing.
        lengths: how many of a picture's L tokens are its own, [B, J]; None where all are.
        keep: keys and values are kept in ``kept`` for the next call (generation), so that they are made once a
            picture and never again.
        fired: how many blocks ran, checked after the call.
    """

    tokens: Tensor
    index: Tensor
    lengths: Tensor | None = None
    keep: bool = False
    kept: dict[int, KeysValues] = field(default_factory=dict)
    fired: int = 0
    _views: dict[bool, View] = field(default_factory=dict)
    _last: OnePicture | None = None

    def turn(self, index: Tensor) -> None:
        """Go on with the next call's positions, [B * K, T]."""
        self.index = index
        self._views.clear()

    def view(self, all_previous: bool) -> View:
        """How this call's positions meet the pictures: each sees one, or ``all_previous`` up to its own."""
        if all_previous not in self._views:
            self._views[all_previous] = Masked(self.mask(True)) if all_previous else self._one_each()
        return self._views[all_previous]

    def mask(self, all_previous: bool) -> Tensor:
        """Which visual tokens each text position may look at, booleans [B, K * T, J * L]."""
        pictures = torch.arange(1, self.tokens.shape[1] + 1, device=self.index.device)  # [J]
        index = self._folded()[..., None]  # [B, K * T, 1]
        known = index <= self.tokens.shape[1]
        sees = (pictures <= index) & known if all_previous else pictures == index  # [B, K * T, J]
        sees = sees.repeat_interleave(self.tokens.shape[2], dim=-1)  # [B, K * T, J * L]
        own = self._own_tokens()
        return sees if own is None else sees & rearrange(own, "b j l -> b 1 (j l)")

    def _folded(self) -> Tensor:
        return rearrange(self.index, "(b k) t -> b (k t)", b=len(self.tokens))

    def _own_tokens(self) -> Tensor | None:
        if self.lengths is None:
            return None
        place = torch.arange(self.tokens.shape[2], device=self.lengths.device)  # [L]
        return place < self.lengths[..., None]  # [B, J, L]

    def _one_each(self) -> View:
        number = self.tokens.shape[1]
        seen = self._folded()  # [B, K * T]
        seen = seen.masked_fill(seen > number, 0)
        if bool((seen == seen[:, :1]).all()):
            return self._one_picture(seen[:, 0])
        counts = torch.stack([(seen == one).sum(dim=1) for one in range(number + 1)], dim=1)  # [B, 1 + J]
        most = int(counts[:, 1:].max())
        if (
            number == 1 or 2 * most > seen.shape[1]
        ):  # chunks of one picture and many small ones: padding is no gain
            return Masked(self.mask(False))
        return self._chunks(seen, counts, most)

    def _one_picture(self, seen: Tensor) -> OnePicture:
        picture = (seen - 1).clamp_min(0)  # [B]
        blind = seen == 0
        if self._last is not None and torch.equal(self._last.picture, picture):
            same = torch.zeros_like(blind) if self._last.blind is None else self._last.blind
            if torch.equal(same, blind):
                return self._last  # the last step's keys and values do
        own = self._own_tokens()
        own = None if own is None else own[torch.arange(len(picture), device=own.device), picture][:, None]
        found = OnePicture(picture, blind if bool(blind.any()) else None, own, self.tokens.shape[1])
        if self.keep:
            self._last = found
        return found

    def _chunks(self, seen: Tensor, counts: Tensor, most: int) -> Chunks:
        order = seen.argsort(
            dim=1, stable=True
        )  # [B, K * T], positions by picture, those that see none first
        starts = counts.cumsum(dim=1) - counts  # [B, 1 + J]
        within = torch.arange(most, device=seen.device)  # [S]
        wanted = (starts[:, 1:, None] + within).clamp_max(seen.shape[1] - 1)  # [B, J, S]
        rank = order.argsort(dim=1) - starts.gather(1, seen)  # [B, K * T], within the picture's chunk
        blind = seen == 0
        own = self._own_tokens()
        if own is not None:  # a picture that is padding looks like one token, and no position sees it
            own = rearrange(own, "b j l -> (b j) 1 l").clone()
            own[..., 0] = True
        return Chunks(
            gather=order.gather(1, rearrange(wanted, "b j s -> b (j s)")),
            place=((seen - 1) * most + rank).masked_fill(blind, 0),
            blind=blind,
            own=own,
            pictures=self.tokens.shape[1],
        )
