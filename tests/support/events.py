"""Reads what a run has told TensorBoard."""

import pathlib
import struct
from collections.abc import Iterator
from typing import Any


def read(folder: pathlib.Path) -> Iterator[tuple[str, int, Any]]:
  """Tag, step and value of every summary in a folder of event files."""
  from tensorboardX.proto import event_pb2

  for file in folder.rglob("events.*"):
    data, at = file.read_bytes(), 0
    while at < len(data):
      # A record: its length and that's checksum, itself and its checksum.
      (size,) = struct.unpack("<Q", data[at : at + 8])
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      for value in event.summary.value:
        yield value.tag, event.step, value
      at += size + 16
