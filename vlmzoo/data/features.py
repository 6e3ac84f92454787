"""Features of a frozen tower on disk: every picture of a stream passes the tower once, before training.

One folder holds a subfolder for each fingerprint (tower weights, their dtype, the picture transform), so features of
another tower or another processing are never read. Its shards are safetensors files, read through memory maps. A
picture is known by its content; rows that show the same one share its features.

Shapes: K pictures of a shard, N tokens, D width, F frames, S side of a picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmzoo import distributed
from vlmzoo.config import Config, ConfigError
from vlmzoo.data.sources import Source
from vlmzoo.processing.image import local_file, open_image
from vlmzoo.processing.processor import Processor
from vlmzoo.types import Row, RowError, Sees

log = logging.getLogger(__name__)
SHARD_BYTES = 1 << 28
BATCH = 32  # pictures that pass the tower together
Encode = Callable[[Tensor], Tensor]  # [K, 3, S, S] to [K, 1, N, D]


class CacheOptions(Config):
    """``cache: {features: FOLDER}``.

    Attributes:
        features: folder for the features of the frozen tower; several runs and streams may share it. memory: keep
            encoded rows in memory too.
    """

    features: str
    memory: bool = False


def fingerprint(tower: nn.Module, transform: Any, dtype: torch.dtype) -> str:
    """A name for what turns a picture into features: weights and config of the tower, picture transform, dtype."""
    digest = hashlib.blake2b(digest_size=12)
    config = getattr(tower, "config", None)
    digest.update(f"{asdict(transform)} {dtype} {'' if config is None else config.to_json_string()}".encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def picture_key(entry: Mapping[str, Any], root: Any = None) -> str:
    """The name of a picture's content: its encoded bytes, or the pixels of an opened one.

    Raises:
        RowError: no such file.
    """
    digest = hashlib.blake2b(digest_size=16)
    if entry.get("image") is not None:
        picture = entry["image"]
        digest.update(f"{picture.mode} {picture.size} ".encode() + picture.tobytes())
    elif entry.get("bytes") is not None:
        digest.update(entry["bytes"])
    else:
        try:
            digest.update(local_file(str(entry.get("path") or ""), root).read_bytes())
        except (OSError, ValueError) as error:
            raise RowError(f"image {str(entry.get('path'))[:200]!r} cannot be read: {error}") from None
    return digest.hexdigest()


class FeatureCache:
    """Features by picture, on disk.

    Args:
        folder: shared by all fingerprints. name: of :func:`fingerprint`. processor: makes the tower's input.
    """

    def __init__(self, folder: str | Path, name: str, processor: Processor) -> None:
        self.root = Path(folder)
        self.folder = self.root / name
        self.processor = processor
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}

    # --- reading ---------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read which pictures the shards hold; how many there are."""
        self._places, self._open = {}, {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as shard:
                    keys = json.loads(shard.metadata()["keys"])
            except (SafetensorError, OSError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{file} is no shard of features ({error}); remove it, it is made again"
                ) from None
            self._places.update({key: (file, number) for number, key in enumerate(keys)})
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Tensor:
        """Features of one picture, [N, D]."""
        file, number = self._places[key]
        if file not in self._open:
            self._open[file] = safe_open(file, "pt")  # a memory map, opened in the process that reads
        return self._open[file].get_slice("features")[number]

    def pictures(self, row: Row, root: Any = None) -> list[Tensor]:
        """Features in the place of :meth:`Processor.pictures`: [1, N, D] of a picture, [F, N, D] of a video.

        Raises:
            RowError: what the processor says of the row, or a picture that came after the features were made.
        """
        found = []
        for _, entries in self.processor.media_of(row):
            keys = [picture_key(one, root) for one in entries]
            missing = next((one for one, key in zip(entries, keys, strict=True) if key not in self), None)
            if missing is not None:
                self.processor.transform(open_image(missing, root))  # tells why it was left out
                raise RowError("a picture changed after its features were cached")
            found.append(torch.stack([self[key] for key in keys]))
        return found

    # --- filling ---------------------------------------------------------------------------------------------

    def fill(self, source: Source, encode: Encode) -> None:
        """Make what is missing of a source's pictures; a killed call goes on where it stopped.

        Each process makes those of its share of the rows, in files of its own, and reads them all afterwards.

        Args:
            encode: pictures [K, 3, S, S] to features [K, 1, N, D].

        Raises:
            ConfigError: not enough room on the disk (told before anything is written, or where it filled up meanwhile).
        """
        self.refresh()
        keys: list[str] = []
        made: list[Tensor] = []
        share = range(distributed.rank(), len(source), distributed.world_size())
        for number, (names, batch) in enumerate(self._batches(source, share)):
            features = encode(batch)[:, 0].cpu()  # [K, N, D]
            if not number:
                self._announce(features[0].nbytes, len(source))
            keys.extend(names)
            made.append(features)
            if sum(one.nbytes for one in made) >= SHARD_BYTES:
                self._write(keys, made)
                keys, made = [], []
        if keys:
            self._write(keys, made)
        distributed.barrier()
        self.refresh()

    def _announce(self, size: int, rows: int) -> None:
        others = [folder.name for folder in self.root.glob("*/") if folder != self.folder]
        if others and not self._places:
            log.warning(
                f"{self.root} holds features of another tower, dtype or picture processing ({', '.join(others)}), "
                "which are left alone; this run's are made"
            )
        total = size * rows
        log.info(
            f"caching features of the frozen tower in {self.folder}: {size / 2**20:.2f} MiB a picture, about "
            f"{total / 2**30:.2f} GiB for {rows} rows of one picture; {len(self._places)} pictures are there"
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = total - size * len(self._places), shutil.disk_usage(self.folder).free
        if needed > free:
            raise ConfigError(
                f"cache.features: {self.folder} needs about {needed / 2**30:.2f} GiB more, {free / 2**30:.2f} GiB are free"
            )

    def _batches(self, source: Source, numbers: Iterable[int]) -> Iterator[tuple[list[str], Tensor]]:
        """Pictures that are not there yet, ready for the tower; unreadable ones are left to training's quarantine."""
        waiting: dict[str, Tensor] = {}
        done: set[str] = set()
        for number in numbers:
            row = source[number]
            try:
                for _, entries in self.processor.media_of(row):
                    for one in entries:
                        key = picture_key(one, source.root)
                        if key not in self and key not in done:
                            waiting[key] = self.processor.transform(open_image(one, source.root))
                            done.add(key)
            except RowError:
                continue
            while len(waiting) >= BATCH:
                batch = list(waiting)[:BATCH]
                yield batch, torch.stack([waiting.pop(key) for key in batch])
        if waiting:
            yield list(waiting), torch.stack(list(waiting.values()))

    def _write(self, keys: list[str], made: list[Tensor]) -> None:
        """One shard under a name of its own, so that processes never write the same file."""
        file = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            save_file({"features": torch.cat(made)}, file.with_suffix(".part"), {"keys": json.dumps(keys)})
            file.with_suffix(".part").rename(file)
        except (OSError, SafetensorError) as error:
            file.with_suffix(".part").unlink(missing_ok=True)
            raise ConfigError(
                f"cache.features: cannot write {file} ({error}); finished shards are kept, the same command goes on"
            ) from None


def in_memory(options: bool | CacheOptions) -> bool:
    """Whether encoded rows are kept in memory."""
    return options.memory if isinstance(options, CacheOptions) else options


def cache_features(name: str, data: Any, options: bool | CacheOptions, model: Any) -> None:
    """Fill a stream's cache of features if it has one, and let its batches hold them in the place of pixels.

    Args:
        name: of the stream, for messages. data: its ``MicroBatches``. model: frozen and placed as it will train.

    Raises:
        ConfigError: a model or a stream without precomputed features, a tower that learns, a full disk.
    """
    if not isinstance(options, CacheOptions):
        return
    where = f"streams.{name}.cache.features"
    tower = getattr(model, "parts", dict)().get("vision")
    if not isinstance(model, Sees) or tower is None or not hasattr(data.collate, "features"):
        raise ConfigError(
            f"{where}: {type(model).__name__} with {type(data.collate).__name__} takes no features"
        )
    learning = next((key for key, one in tower.named_parameters() if one.requires_grad), None)
    if learning is not None:
        raise ConfigError(f"{where}: the tower learns (vision.{learning}), so its features change; freeze it")
    place = next(tower.parameters())
    half = torch.is_autocast_enabled(place.device.type)
    dtype = torch.get_autocast_dtype(place.device.type) if half else place.dtype
    cache = FeatureCache(
        options.features, fingerprint(tower, data.collate.processor.transform, dtype), data.collate.processor
    )
    training = model.training
    model.eval()
    with torch.no_grad():
        cache.fill(data.source, lambda pictures: model.encode_pictures(pictures.to(place.device)))
    model.train(training)
    data.collate.features = cache
