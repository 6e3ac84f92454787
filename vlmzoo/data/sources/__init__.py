"""Sources: what a config can name as data, each read to canonical rows, nothing decoded and nothing fetched.

| kind | file of the source | what it reads |
|---|---|---|
| ``llava``, ``messages`` | conversations.py | json or jsonl of conversations beside picture files |
| ``coco`` | captions.py | COCO captions, boxes beside them |
| ``interleaved`` | interleaved.py | jsonl of documents, mmc4's or OBELICS' |
| ``webdataset`` | webdataset.py | tar shards |
| ``parquet`` | parquet.py | tables with the pictures in them |
| ``imagefolder``, ``csv`` | imagefolder.py | folders by class, tables of files with labels |

A record that is no row is listed in ``rejected`` with its id and the reason; only data without a single usable row is an
error. What one record may look like is in shapes.py.
"""

from vlmzoo.data.sources.base import Rejected, Rows, Source
from vlmzoo.data.sources.captions import CocoConfig, coco_row
from vlmzoo.data.sources.conversations import (
    LlavaConfig,
    MessagesConfig,
    llava_row,
    merged_by_picture,
    messages_row,
)
from vlmzoo.data.sources.imagefolder import CsvConfig, ImageFolderConfig
from vlmzoo.data.sources.interleaved import InterleavedConfig, document_row
from vlmzoo.data.sources.parquet import ParquetConfig
from vlmzoo.data.sources.records import read_records
from vlmzoo.data.sources.shapes import PLACE, ROLES
from vlmzoo.data.sources.webdataset import WebdatasetConfig

__all__ = [
    "PLACE", "ROLES", "CocoConfig", "CsvConfig", "ImageFolderConfig", "InterleavedConfig", "LlavaConfig",
    "MessagesConfig", "ParquetConfig", "Rejected", "Rows", "Source", "WebdatasetConfig", "coco_row", "document_row",
    "llava_row", "merged_by_picture", "messages_row", "read_records",
]  # fmt: skip
