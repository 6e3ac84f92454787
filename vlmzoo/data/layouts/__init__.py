"""Layouts: rows of any source written to disk in the forms that other programs read.

What each keeps of a row; pictures keep their bytes (those in memory become PNG), and everything keeps its id unless said:

| layout | rows it holds | parts | label | truth | read by |
|---|---|---|---|---|---|
| ``coco`` | a picture with its caption | yes | no | captions; objects with boxes | COCO tools; ``coco`` (ids are its own) |
| ``llava`` | conversations and captions without videos | captions become an answer | number | yes, and ``answer`` | LLaVA; ``llava`` |
| ``messages`` | conversations and captions | captions become an answer | number | yes, and ``answer`` | TRL; ``messages`` |
| ``webdataset`` | all | yes | number and class names | yes | webdataset, ``datasets``; ``webdataset`` |
| ``interleaved`` | documents and captions without videos | yes | number | yes | OBELICS or mmc4 readers; ``interleaved`` |
| ``parquet`` | all | yes | number and class names | yes | ``datasets``, the Hub's viewer; ``parquet`` |
| ``imagefolder`` | one picture a row | yes | name | yes | ``datasets``; ``imagefolder`` |

``source`` becomes the name of the layout that a row is read from. A video is its frames, as numbered files or cells.
"""

from vlmzoo.data.layouts.base import Layout
from vlmzoo.data.layouts.write import LAYOUTS, Written, write

__all__ = ["LAYOUTS", "Layout", "Written", "write"]
