"""Log-likelihoods of many texts after one prompt, which is read once (classification by likelihood; Flamingo, section 3).

The texts that may follow a row are packed after its prompt as a tree: what several begin with stands there once, each
token sees the prompt and the tokens before it in its own text, and a text's last token is scored but never run. A
language model that cannot do so (linear position biases, a sliding window that the prompt fills, recurrence) is given
the texts as rows of a batch, each after a copy of the prompt's cache. The cache itself is never changed.

Shapes: B rows, T prompt positions, S packed tokens a row, N texts a row in one pass, M tokens of the longest, V
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vlmzoo.nn import language as lm
from vlmzoo.types import Batch, full

Text = Sequence[int]
PACKED = 1024  # tokens of one pass over all rows: more only make the mask larger


@dataclass
class Tree:
    """Texts of one row by what they begin with.

    Attributes:
        tokens: ids of the nodes, parents before children. parents: the node before each, -1 for the prompt.
        paths: the nodes of each text.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, text: Text) -> None:
        """Put in one text more."""
        path: list[int] = []
        for token in text:
            key = (path[-1] if path else -1, int(token))
            if key not in self._known:
                self._known[key] = len(self.tokens)
                self.tokens.append(key[1])
                self.parents.append(key[0])
            path.append(self._known[key])
        self.paths.append(path)

    def inner(self) -> list[int]:
        """Nodes that something follows: those that must be run."""
        return sorted(set(self.parents) - {-1})


@dataclass(frozen=True)
class Prompt:
    """What a prompt leaves behind.

    Attributes:
        cache: keys and values, never changed. media: the pictures. mask: [B, T], 1 for what is no padding.
        first: log-probabilities of the token that follows, [B, V].
    """

    cache: Any
    media: Any
    mask: Tensor
    first: Tensor

    @classmethod
    def read(cls, model: Any, inputs: Batch) -> Prompt:
        """Run the prompts, [B, T] left-padded.

        Raises:
            ValueError: a row ends with padding, or the language model keeps no cache.
        """
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        if not bool(mask[:, -1].all()):
            raise ValueError("score needs left-padded prompts: a row ends with padding")
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        with lm.head_only_at(model.language, last):
            out = model(**inputs, use_cache=True)
        cache = getattr(out, lm.CACHE, None)
        if cache is None:
            raise ValueError(
                "score needs the cache of the language model, which keeps none (in training mode?)"
            )
        media = copy.deepcopy(cache.media)
        media.sealed = True
        return cls(cache, media, mask, full(out.logits[0]).log_softmax(dim=-1))

    def run(self, model: Any, ids: Tensor, mask: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """Log-probabilities [U, V] after the ``wanted`` positions of ids that follow the prompt.

        Args:
            ids: [B * N, S], N a row. mask: [B * N, T + S], or [B, 1, S, T + S]. positions, wanted: as ids.
        """
        copies = len(ids) // len(self.mask)
        cache = twin_of(self.cache)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        with lm.head_only_at(model.language, wanted):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                cache=cache,
                media=self.media,
                use_cache=True,
            )
        return full(out.logits[0]).log_softmax(dim=-1)


def twin_of(cache: Any) -> Any:
    """A cache that can grow while this one stays. Layers that grow by making new tensors share the old ones."""
    twin = copy.copy(cache)
    grows = (DynamicLayer, DynamicSlidingWindowLayer)
    twin.layers = [
        copy.copy(layer) if type(layer) in grows else copy.deepcopy(layer) for layer in cache.layers
    ]
    return twin


def score(model: Any, inputs: Batch, candidates: Sequence[Sequence[Text]]) -> list[list[Tensor]]:
    """Log-likelihood of every token of every candidate; see :meth:`vlmzoo.models.vision_lm.VisionLM.score`.

    Raises:
        ValueError: another number of lists than rows, or a text that is empty or holds the image id.
    """
    rows = len(inputs["input_ids"])
    if len(candidates) != rows:
        raise ValueError(f"{rows} prompts and {len(candidates)} lists of candidates")
    texts = [[[int(token) for token in text] for text in row] for row in candidates]
    for number, text in ((number, text) for number, row in enumerate(texts) for text in row):
        if not text or model.config.image_token_id in text:
            raise ValueError(
                f"row {number}: a candidate {'has no token' if not text else 'holds an image'}: {text}"
            )
    prompt = Prompt.read(model, inputs)
    longest = max((len(text) for row in texts for text in row), default=0)
    packs = fits(prompt.cache, longest) and packs_texts(model)
    return _packed(model, prompt, texts) if packs else _batched(model, prompt, texts)


def fits(cache: Any, more: int) -> bool:
    """Whether every layer keeps all it has read, ``more`` positions included."""
    for layer in cache.layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if layer.get_seq_length() + more > layer.sliding_window:
                return False
        elif type(layer) is not DynamicLayer:
            return False
    return True


def packs_texts(model: Any) -> bool:
    """Whether the language model reads packed texts as each alone; it is asked once."""
    way = (model.language.config.get_text_config()._attn_implementation, model.dtype)
    known = model.__dict__.setdefault("_packs_texts", {})
    if way not in known:
        known[way] = lm.takes_tree_masks(model.language)
    return known[way]


def _packed(model: Any, prompt: Prompt, texts: list[list[list[int]]]) -> list[list[Tensor]]:
    """All texts of a row in one pass, or as few as keep it within bounds."""
    room = max(PACKED // len(texts), 1)
    found: list[list[Tensor]] = [[torch.empty(0)] * len(row) for row in texts]
    groups = [list(_groups(row, room)) for row in texts]
    for number in range(max(map(len, groups), default=0)):
        part = [row[number] if number < len(row) else [] for row in groups]
        trees = [Tree() for _ in texts]
        for tree, row, chosen in zip(trees, texts, part, strict=True):
            for place in chosen:
                tree.add(row[place])
        for row, (values, chosen) in enumerate(zip(_pack(model, prompt, trees), part, strict=True)):
            for path, place in zip(trees[row].paths, chosen, strict=True):
                found[row][place] = values[path]
    return found


def _groups(texts: list[list[int]], room: int) -> Iterator[list[int]]:
    """Numbers of the texts by pass, those with the same beginning side by side; ``room`` tokens each, if one fits."""
    group: list[int] = []
    size = 0
    for place in sorted(range(len(texts)), key=texts.__getitem__):
        if group and size + len(texts[place]) > room:
            yield group
            group, size = [], 0
        group.append(place)
        size += len(texts[place]) - 1
    if group:
        yield group


def _pack(model: Any, prompt: Prompt, trees: list[Tree]) -> list[Tensor]:
    """Log-probability of each node's token, by row."""
    device = prompt.mask.device
    inner = [tree.inner() for tree in trees]
    slots = [{node: slot for slot, node in enumerate(nodes)} for nodes in inner]
    after: Tensor | None = None
    if any(inner):
        size = max(map(len, inner))
        ids = torch.zeros(len(trees), size, dtype=torch.long)
        depth = torch.zeros_like(ids)
        sees = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)  # [B, S, S]
        for row, (tree, nodes) in enumerate(zip(trees, inner, strict=True)):
            for slot, node in enumerate(nodes):
                ids[row, slot] = tree.tokens[node]
                if (before := tree.parents[node]) >= 0:
                    sees[row, slot] |= sees[row, slots[row][before]]
                    depth[row, slot] = depth[row, slots[row][before]] + 1
        real = torch.arange(size) < torch.tensor([len(nodes) for nodes in inner])[:, None]  # [B, S]
        mask = torch.cat([prompt.mask.bool()[:, None].expand(-1, size, -1), sees.to(device)], dim=-1)[:, None]
        positions = prompt.mask.sum(dim=1, keepdim=True) + depth.to(device)
        after = prompt.run(
            model, ids.to(device), lm.mask_for(model.language, mask), positions, real.to(device)
        )
    found, start = [], 0
    for row, tree in enumerate(trees):
        line = [slots[row][parent] + start if parent >= 0 else -1 for parent in tree.parents]
        found.append(_picked(prompt.first[row], after, line, tree.tokens))
        start += len(inner[row])
    return found


def _picked(first: Tensor, after: Tensor | None, line: list[int], tokens: list[int]) -> Tensor:
    """Of each token its value in its line of ``after`` [U, V], or of ``first`` [V] where that is -1; on the CPU."""
    at, ids = (torch.tensor(numbers, dtype=torch.long, device=first.device) for numbers in (line, tokens))
    values = first[ids]
    if after is not None:
        values = torch.where(at < 0, values, after[at.clamp_min(0), ids])
    return values.cpu()


def _batched(model: Any, prompt: Prompt, texts: list[list[list[int]]]) -> list[list[Tensor]]:
    """Texts as rows of a batch, the same number for every row."""
    rows, longest = len(texts), max((len(text) for row in texts for text in row), default=1)
    together = max(PACKED // (rows * longest), 1)
    found: list[list[Tensor]] = [[] for _ in texts]
    for begin in range(0, max(map(len, texts)), together):
        part = [row[begin : begin + together] for row in texts]
        many = max(map(len, part))
        filled = [[*row, *[[0]] * (many - len(row))] for row in part]
        for row, values in enumerate(_batch(model, prompt, filled)):
            found[row] += values[: len(part[row])]
    return found


def _batch(model: Any, prompt: Prompt, texts: list[list[list[int]]]) -> list[list[Tensor]]:
    device, many = prompt.mask.device, len(texts[0])
    flat = [text for row in texts for text in row]  # [B * N]
    size = max(len(text) for text in flat) - 1
    after, counts = None, [len(text) - 1 for text in flat]
    if size:
        ids = torch.tensor([[*text[:-1], *[0] * (size + 1 - len(text))] for text in flat], device=device)
        real = torch.arange(size, device=device) < torch.tensor(counts, device=device)[:, None]
        before = prompt.mask.repeat_interleave(many, dim=0)  # [B * N, T]
        mask = torch.cat([before, real.to(before.dtype)], dim=1)
        positions = before.sum(dim=1, keepdim=True) + torch.arange(size, device=device)
        after = prompt.run(model, ids, mask, positions, real)
    found, start = [], 0
    for number, text in enumerate(flat):
        line = [-1, *range(start, start + counts[number])]
        found.append(_picked(prompt.first[number // many], after, line, text))
        start += counts[number]
    return [found[row * many : (row + 1) * many] for row in range(len(texts))]
