"""What a VisualDL file holds, read back."""

from __future__ import annotations

import collections
import contextlib
import os
import struct
from array import array
from pathlib import Path
from typing import Any

FILE = "vdlrecords.run.log"
LAYERS = "gradient norm"
"""The group of curves with the gradient norm of every layer."""
STEPS = "train/loss"
"""The curve with a point every step of the run."""
_HEADER = struct.Struct("<Q")  # before every record, its length


def height(layer: str) -> tuple[bool, bool, int, str]:
    """Return what puts layers, by ``model.layer_name``, in order from the stem up: block 10 above block 9."""
    return layer == "head", layer != "stem", len(layer), layer


class Records:
    """A VisualDL file as it grows: every ``read`` goes on where the one before ended.

    VisualDL's own reader begins anew every time, which a run of many epochs would come to feel.

    Attributes:
        curves: of every scalar its values, float64, and the steps of the run that had been taken by then, int64.
        others: of every other record, by kind, tag and step: VisualDL's messages.
    """

    def __init__(self, file: Path):
        self.file, self.position, self.steps = file, 0, 0
        self.curves: dict[str, tuple[array, array]] = collections.defaultdict(lambda: (array("q"), array("d")))
        self.others: dict[str, dict[str, dict[int, Any]]] = collections.defaultdict(
            lambda: collections.defaultdict(dict)
        )

    def read(self) -> Records:
        """Read what is new.

        An incomplete record at the end is left for the next time, and one that is none, for a part of the file was
        lost, is left out.
        """
        from google.protobuf.message import DecodeError
        from visualdl.proto.record_pb2 import Record

        with open(self.file, "rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            while end - self.position >= _HEADER.size:
                stream.seek(self.position)
                (size,) = _HEADER.unpack(stream.read(_HEADER.size))
                if size > end - stream.tell():
                    break
                with contextlib.suppress(DecodeError):
                    for value in Record.FromString(stream.read(size)).values:
                        self._take(value)
                self.position += _HEADER.size + size
        return self

    def last(self, kind: str, tag: str) -> Any:
        """Return the newest record of a tag; None where there is none."""
        found = self.others[kind].get(tag)
        return found[max(found)] if found else None

    def _take(self, value: Any) -> None:
        kind, tag = value.WhichOneof("one_value"), value.tag.replace("%", "/")
        if kind is None:
            return
        if kind != "value":
            self.others[kind][tag][value.id] = getattr(value, kind)
            return
        if tag == STEPS:
            self.steps = value.id
        at, values = self.curves[tag]
        at.append(self.steps)
        values.append(value.value)
