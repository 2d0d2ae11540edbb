"""Compiles programs for devices that need not be there, and records them."""

import dataclasses
import datetime
import importlib.metadata
import itertools
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from unlearning_jax import durable, sharding
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import finetune, memory
from unlearning_jax.experiments.programs import build, measured, record

DTYPES = {"f32": "float32", "bf16": "bfloat16"}
# A place without a shape has eight chips.
SLICES = {"v5e": "2x4", "v5p": "2x2x2", "v6e": "2x4"}
PLACES = ("cpu:1", "cpu:2", "cpu:4", "cpu:8", "cpu:16", *SLICES)
EFFORTS = ("low", "default")
# Small leaves of the tiny networks are split too, so that it is seen.
_MIN_BYTES = {"tiny": 2**8, "sd14": sharding.FSDP_MIN_BYTES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is compiled.

  Attributes:
    programs: names of `build.BUILD`.
    places: `cpu:N`, or a TPU's kind with a slice's shape, `v5e:2x4`.
    rows: rows a chip, each compiled.
    dtypes: `f32`, `bf16` or both.
    size: of the networks, `sd14` or `tiny`.
    effort: the compiler's, `low` or `default`.
    again: True compiles rows that are recorded already, too.
  """

  programs: tuple[str, ...] = (
    "attack",
    "sample",
    "lora",
    "full",
    "closed_form",
  )
  places: tuple[str, ...] = PLACES
  rows: tuple[int, ...] = (1,)
  dtypes: tuple[str, ...] = ("f32",)
  size: str = "sd14"
  effort: str = "low"
  again: bool = False

  def __post_init__(self):
    for name in self.programs:
      check_choice("--programs", name, build.BUILD)
    for name in self.dtypes:
      check_choice("--dtypes", name, DTYPES)
    check_choice("--size", self.size, build.SIZES)
    check_choice("--effort", self.effort, EFFORTS)
    if min(self.rows, default=0) < 1:
      raise ValueError(f"--rows={self.rows}: must be at least 1 each")
    for place in self.places:
      split(place)


def split(place: str) -> tuple[str, str]:
  """A place's kind and shape.

  Raises:
    ValueError: it is none.
  """
  kind, _, shape = place.partition(":")
  fits = r"[1-9]\d*" if kind == "cpu" else r"[1-9]\d*(x[1-9]\d*)*"
  shape = shape or SLICES.get(kind, "")
  if kind not in ("cpu", *SLICES) or not re.fullmatch(fits, shape):
    raise ValueError(
      f"--places={place}: must be cpu:N, or {', '.join(SLICES)}, each with or "
      "without the shape of its slice, as v5e:2x4"
    )
  return kind, shape


def devices_of(place: str) -> list[Any]:
  """The devices of a place, that need not be there.

  Raises:
    ValueError: there are fewer; or TPU programs cannot be compiled here.
  """
  kind, shape = split(place)
  if kind != "cpu":
    return sharding.topology_devices(kind, shape)
  found = jax.devices("cpu")
  if len(found) < int(shape):
    raise ValueError(
      f"{place}: JAX shows {len(found)} CPU device(s); set "
      f"JAX_NUM_CPU_DEVICES={shape}"
    )
  return found[: int(shape)]


def planned(given: Settings) -> Iterator[dict[str, Any]]:
  """What tells the settings' rows apart, in the order of their compiling."""
  for place, dtype, rows, name in itertools.product(
    given.places, given.dtypes, given.rows, given.programs
  ):
    kind, shape = split(place)
    # All weights and both moments are split; else each chip has its own rows.
    mesh = "fsdp" if name == "full" else "data"
    yield {
      "size": given.size, "program": name, "place": f"{kind}:{shape}",
      "mesh": mesh, "dtype": dtype, "rows": rows, "effort": given.effort,
    }  # fmt: skip


def run(
  given: Settings, path: pathlib.Path, tuned: Mapping[str, finetune.Settings]
) -> Iterator[record.Row]:
  """Compiles what is not recorded yet; records and yields row by row.

  Args:
    given: what to compile.
    path: the record's file.
    tuned: `full` and `lora` -> the settings of such a fine-tuning.

  Raises:
    ValueError: a place cannot be compiled for here.
    BusyError: another process adds to the file.
  """
  # A row that another process adds between our reading and writing is lost.
  held = durable.lock(path.with_name(f"{path.name}.lock"), path)
  try:
    yield from _added(given, path, tuned)
  finally:
    del held


def _added(
  given: Settings, path: pathlib.Path, tuned: Mapping[str, finetune.Settings]
) -> Iterator[record.Row]:
  known = {record.key(row) for row in record.read(path)}
  for row in planned(given):
    if not given.again and record.key(row) in known:
      continue
    # Seconds of a program that lies on disk say nothing.
    with measured.uncached():
      found = compiled(row, tuned.get(row["program"]))
    record.add(path, found)
    size = found.get("total", 0) / record.GIB
    said = found.get("error") or f"{size:.3g} GiB a chip"
    print(
      f"{row['program']} of {row['size']} on {row['place']}: {said}",
      file=sys.stderr,
      flush=True,
    )
    yield found


def compiled(row: dict[str, Any], how: build.How = None) -> record.Row:
  """A row of `planned` with its figures; with an error, if there was one.

  Args:
    row: what is compiled.
    how: see the builders of `build`.
  """
  devices = devices_of(row["place"])
  across = {"data": 1, "fsdp": len(devices)} if row["mesh"] == "fsdp" else {}
  mesh = sharding.make_mesh(**across, devices=devices)
  kind = "cpu" if row["place"].startswith("cpu") else "tpu"
  # As a run there has it, and not one here.
  sd = build.make_sd(
    row["size"], DTYPES[row["dtype"]], "auto", lean=kind == "tpu"
  )
  like = build.shapes(sd)
  rows = row["rows"] * len(devices)
  program = build.BUILD[row["program"]](sd, rows, like, how)
  start = time.perf_counter()
  least = _MIN_BYTES[row["size"]]
  lowered = build.lowered(program, like, mesh, least)
  lowering = time.perf_counter() - start
  low = measured.LOW_EFFORT[kind] if row["effort"] == "low" else None
  found = {**row, "jax": jax.__version__}
  if kind == "tpu":
    # Another version of the compiler has other figures.
    known = importlib.metadata.distributions(name="libtpu")
    found["libtpu"] = next((one.version for one in known), None)
  found["date"] = datetime.date.today().isoformat()
  start = time.perf_counter()
  try:
    done = lowered.compile(compiler_options=low)
  except jax.errors.JaxRuntimeError as error:
    # A program that no chip has room for is a figure too.
    if not memory.is_short(error):
      raise
    return found | {"error": str(error).splitlines()[0]}
  return found | {
    "lowering": round(lowering, 2),
    "seconds": round(time.perf_counter() - start, 2),
    **measured.figures(done),
  }
