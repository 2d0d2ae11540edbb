"""Says what a weights file or folder is, and what can be done with it here.

  print(inspect("brought.safetensors"))
  print(inspect("brought.safetensors", base="shapes"))

Without a base only headers are read. With one, what differs from it is measured
a tensor at a time: how many layers, by how much, and of what rank.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unlearning_jax import durable, extensions
from unlearning_jax.convert import differences, families, pickles, reader
from unlearning_jax.convert.differences import Difference
from unlearning_jax.convert.families import Kind
from unlearning_jax.convert.folder import COMPONENTS, MARK, find_weights
from unlearning_jax.convert.safetensors_files import Header

# Width of the text states that a UNet reads -> model.
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
_READERS = re.compile(
  r"attn2[._]to_k\.(weight|lora_down\.weight|lora_A(\.default)?\.weight"
  r"|lora\.down\.weight|hada_w1_b|diff)$|attn2\.processor\.to_k_\w+\.weight$"
)
_TABLE = re.compile(r"token_embedding\.weight$")
_DOWN = re.compile(r"(lora_A(\.default)?|lora[._]down)\.weight$|hada_w1_b$")


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What a file or folder is; `print` it.

  Attributes:
    path: as it was given.
    kind: what it is, and what to do with it.
    model: which model it belongs to, as far as its shapes say.
    tensors: how many tensors it has.
    parameters: how many numbers these have.
    precision: the stored types, as `float16`.
    notes: what else it holds or says.
    differences: by component, where a base was given; None without.
    base: what it was compared with.
  """

  path: str
  kind: Kind
  model: str
  tensors: int
  parameters: int
  precision: str
  notes: tuple[str, ...] = ()
  differences: tuple[Difference, ...] | None = None
  base: str = ""

  def __str__(self) -> str:
    """A few lines, the command to type last."""
    size = f"{self.tensors} tensors, {self.parameters:,} parameters"
    lines = [f"{self.path}: {self.kind.text}"]
    lines += [f"  model      {self.model}"] if self.model else []
    lines += [f"  holds      {size}, {self.precision}"]
    lines += [f"  note       {note}" for note in self.notes]
    if self.differences is not None:
      lines += [f"  {one}" for one in self.differences] or [
        "  nothing differs from the base"
      ]
      lines += [f"  looks like {looks}"] if (looks := self.looks_like) else []
    return "\n".join([*lines, f"  {self.command}"])

  __repr__ = __str__

  @property
  def command(self) -> str:
    """What to do with it here."""
    return families.filled(self.kind.use, self.path, self.base)

  @property
  def looks_like(self) -> str:
    """Which methods change what this changes; "" where none is typical."""
    return differences.looks_like(
      {one.part: one for one in self.differences or ()}
    )


def inspect(
  path: str | os.PathLike[str],
  base: str | os.PathLike[str] | None = None,
  *,
  ema: bool | None = None,
) -> Inspection:
  """What a weights file or folder is, of which model, and what to do with it.

  Args:
    path: a file of any kind, a diffusers folder, a training's folder, or the
      folder of a component.
    base: a world's name, a folder or a hub id to compare with; of both a
      tensor at a time is then read.
    ema: True compares the averaged weights of a single file, False the trained
      ones.

  Raises:
    ValueError: there is no such file, it is damaged, or holds no weights.
  """
  place = pathlib.Path(path)
  if place.is_dir():
    found = _of_folder(place)
  else:
    state = reader.read_headers(place)
    metadata = reader.read_metadata(place)
    kind = families.recognize(state, metadata)
    notes = (*_notes(state, metadata), *_beside(place))
    found = _described(place, kind, state, notes)
  if base is None:
    return found
  known = os.fspath(base)
  if not (found.kind.read or found.kind.name == "unknown"):
    note = f"{found.kind.text} is not compared with {known}"
    if found.kind.name == "edit":
      note += "; export it as a folder, and inspect that"
    return dataclasses.replace(found, base=known, notes=(*found.notes, note))
  folder: Any = base
  if known in extensions.worlds():
    folder = extensions.world(known).model_folder()
  return dataclasses.replace(
    found, base=known, differences=differences.measured(place, folder, ema)
  )


def _of_folder(place: pathlib.Path) -> Inspection:
  families.check_folder(place)
  whole = (place / MARK).is_file()
  inside = [part for part in COMPONENTS if (place / part).is_dir()]
  if not (whole or inside):
    found = inspect(find_weights(place))
    return dataclasses.replace(found, path=os.fspath(place))
  state: dict[str, Header] = {}
  said: dict[str, str] = {}
  for part in inside:
    file = find_weights(place / part)
    own, said = reader.read_headers(file), said | reader.read_edit(file)
    state |= {f"{part}.{name}": header for name, header in own.items()}
  kind = Kind(
    "checkpoint", f"a training's checkpoint, with {' and '.join(inside)}",
    families.OVER,
  )  # fmt: skip
  notes = _notes({}, said)
  if whole:
    text = "a diffusers folder"
    # What was erased from cannot be erased from again.
    verbs = "draw, attack" if said else "draw, erase, attack"
    use = f"{verbs}: --config.model=FILE, or ul.load in Python"
    kind = Kind("folder", text, use)
    scheduler = place / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
      own = durable.read_json(scheduler)
      predicts = own.get("prediction_type", "epsilon")
      notes.append(f"{own.get('_class_name')}, predicts {predicts}")
  return _described(place, kind, state, tuple(notes))


def _described(
  place: pathlib.Path,
  kind: Kind,
  state: Mapping[str, Header],
  notes: tuple[str, ...],
) -> Inspection:
  sizes: dict[str, int] = {}
  for header in state.values():
    count = int(np.prod(header.shape, dtype=object))
    sizes[header.dtype.name] = sizes.get(header.dtype.name, 0) + count
  types = sorted(sizes, key=lambda name: -sizes[name])
  return Inspection(
    os.fspath(place), kind, _model_of(state), len(state), sum(sizes.values()),
    ", ".join(types), notes,
  )  # fmt: skip


def _model_of(state: Mapping[str, Header]) -> str:
  widths = {
    header.shape[1]
    for name, header in state.items()
    if (_READERS.search(name) or _TABLE.search(name)) and len(header.shape) == 2
  }
  if len(widths) != 1:
    return ""
  (width,) = widths
  text = f"text states are {width} wide"
  channels = {
    header.shape[1]
    for name, header in state.items()
    if families.FIRST.search(name)
    and len(header.shape) == 4
    and "vae" not in name
  }
  inpaints = " for inpainting" if 9 in channels else ""
  return f"{_WIDTHS[width]}{inpaints} ({text})" if width in _WIDTHS else text


def _notes(
  state: Mapping[str, Header], metadata: Mapping[str, str]
) -> list[str]:
  """What a file holds or says beside its kind."""
  notes = []
  ranks = {h.shape[0] for n, h in state.items() if _DOWN.search(n) and h.shape}
  if ranks:
    notes.append(f"rank {', '.join(map(str, sorted(ranks)))}")
  if any(name.startswith("model_ema.") for name in state):
    notes.append(
      "has averaged weights beside the trained ones: choose --ema, or --noema "
      "for what editing code changes"
    )
  words = [
    n.partition(".")[2] for n in state if n.startswith("modifier_token.")
  ]
  if words:
    notes.append(f"has new words, which are left out: {', '.join(words)}")
  if "v_pred" in state:
    notes.append("predicts velocity, so its base must too")
  if "concepts" in metadata and "method" in metadata:
    try:
      rows = durable.from_json(metadata["concepts"], "concepts", list)
      erased = [str(row["erase"]) for row in rows]
    # Somebody else's header.
    except (ValueError, TypeError, KeyError):
      erased = []
    notes.append(f"{metadata['method']} erased {', '.join(erased)}")
  return notes


def _beside(place: pathlib.Path) -> list[str]:
  """What a training loop saved beside the weights."""
  if reader.file_format(place) != "torch":
    return []
  names = pickles.read_beside(place)
  return [f"beside the weights: {', '.join(names)}"] if names else []
