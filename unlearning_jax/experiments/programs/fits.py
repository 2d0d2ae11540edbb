"""Does a run fit a device? From recorded figures, or compiled and measured."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from unlearning_jax import models, sharding
from unlearning_jax.attacks import Attack
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.experiments import attack, audit, common, erase
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.experiments.programs import (
  build,
  compiling,
  devices,
  measured,
  record,
)
from unlearning_jax.stable_diffusion import StableDiffusion

MEASURE = "--check=compile measures it"
# Bytes of the model's other parts, which lie there too: VAE, text encoder.
_BESIDE = {"attack": 4 * 83_653_863, "sample": 4 * 123_060_480}
_PUBLISHED = "unlearn_diff_atk"


class Need(NamedTuple):
  """A program that a run compiles.

  Attributes:
    program: a name of `build.BUILD`.
    rows: of one call, over all devices.
    dtype: that networks compute in.
    flag: what says the rows.
    how: see the builders of `build`.
    fsdp: devices that one copy of the model is split over.
  """

  program: str
  rows: int
  dtype: str
  flag: str
  how: build.How = None
  fsdp: int = 1


def needs(given: object) -> list[Need]:
  """The programs of a run that the record knows, by its settings."""
  if isinstance(given, tuning.Settings):
    rows = given.batch_size // given.accumulate
    name = given.train if given.train in ("full", "lora") else "tune"
    flag = "rows of a part (batch_size / accumulate)"
    return [Need(name, rows, given.dtype, flag, given, given.mesh.fsdp)]
  if isinstance(given, audit.Settings):
    every = [given.evaluate, *given.attacks.values(), *given.tunings.values()]
    changed = {k: getattr(given, k) for k in ("lanes", "batch_size")}
    found = [one for part in every for one in needs(_with(part, changed))]
    return [one for i, one in enumerate(found) if one not in found[:i]]
  found = []
  if isinstance(given, attack.Settings):
    bound = attack.victims.bind(given)
    flag = "--config.lanes"
    found += [Need("attack", given.lanes, given.dtype, flag, bound)]
  if isinstance(given, erase.Settings) and not given.draws:
    return found
  if isinstance(given, common.Drawn):
    flag = "--config.batch_size"
    found += [
      Need("sample", given.batch_size, given.dtype, flag, given.sampling)
    ]
  return found


def _with(
  part: attack.Settings | common.Drawn | tuning.Settings,
  changed: dict[str, int],
) -> Any:
  """Settings with another number of lanes and images, where it is given."""
  if isinstance(part, tuning.Settings):
    return part
  known = {field.name for field in dataclasses.fields(part)}
  new = {k: v for k, v in changed.items() if v and k in known}
  return dataclasses.replace(part, **new)


def said(
  given: object, sd: StableDiffusion | None, device: str, *, exact: bool
) -> tuple[list[str], bool]:
  """Lines about each program of a run, and whether all of them have room.

  Args:
    given: the run's settings; None if they are not known.
    sd: its model; None if it was not read.
    device: a name of `devices`, or "" for the one at hand.
    exact: whether to compile the programs, instead of reading the record.

  Raises:
    ValueError: there is no such device, or none of its kind can be compiled
      for here.
  """
  name, like, gib = devices.named(device)
  found = needs(given)
  if not found or sd is None:
    return [f"{name}: memory is not recorded for this verb's programs"], True
  measure = functools.partial(
    _measured, sd, like if device and like != "cpu" else ""
  )
  lines, room = [], True
  for need in found:
    look = measure if exact else functools.partial(_recorded, sd, like)
    line, fit = _line(need, look, gib, _chips(need))
    lines.append(f"{name}: {line}")
    room &= fit
  trained = isinstance(given, erase.Settings) and hasattr(
    given.erasure.h, "num_inference_steps"
  )
  if trained:
    lines.append(f"{name}: this method's training is not recorded")
  return lines, room


def _chips(need: Need) -> int:
  """The devices that share a call's rows."""
  # An attack's processes have rows of their own.
  here = need.program.startswith("attack")
  return len(jax.local_devices() if here else jax.devices())


class Figure(NamedTuple):
  """Memory of a chip as a line in its rows, and where it comes from."""

  fixed: float
  each: float
  source: str

  def gib(self, rows: int) -> float:
    """What so many rows need."""
    return self.fixed + rows * self.each

  def most(self, gib: float) -> int:
    """The most rows that fit."""
    return max(0, math.floor((gib - self.fixed) / self.each))


def _line(
  need: Need,
  look: Callable[[Need, int], Figure | None],
  gib: float,
  chips: int,
) -> tuple[str, bool]:
  """The line about a program, and whether it fits."""
  rows = -(-need.rows // chips)
  what = f"{need.program}, {rows} row(s) a chip in {need.dtype}"
  if need.fsdp > 1:
    what += f", fsdp={need.fsdp}"
  found = look(need, rows)
  if found is None:
    return f"{what}: not recorded: {MEASURE}", True
  size = found.gib(rows)
  if not gib:
    return f"{what}: {size:.1f} GiB a chip, {found.source}", True
  fits = size <= gib
  verdict = "fits" if fits else "does not fit"
  most = found.most(gib)
  ways = f"at most {need.flag}: {most * chips}" if most else "no row fits"
  return (
    f"{what}: {verdict}: {size:.1f} of {gib:.1f} GiB a chip; {ways} "
    f"({found.source})"
  ), fits


def _recorded(
  sd: StableDiffusion, like: str, need: Need, rows: int
) -> Figure | None:
  """The record's figure of a program; None if it has none."""
  del rows
  if not is_sd14(sd) or not _is_recorded(need.how):
    return None
  found = {row["rows"]: row for row in _rows(need, like)}
  if not found:
    return None
  few, many = found[min(found)], found[max(found)]
  beside = _BESIDE.get(need.program, 0)
  if few is many:
    # Rows of one size alone: all but what is given grows with them.
    fixed = few["arguments"]
    each = (record.held(few) - fixed) / few["rows"]
  else:
    more = record.held(many) - record.held(few)
    each = more / (many["rows"] - few["rows"])
    fixed = record.held(few) - few["rows"] * each
  rows_said = " and ".join(str(n) for n in sorted({min(found), max(found)}))
  source = f"recorded: {rows_said} row(s) for {few['place']}"
  gib = record.GIB
  return Figure((fixed + beside) / gib, each / gib, source)


def _is_recorded(how: build.How) -> bool:
  """Whether the record's programs compute so."""
  if isinstance(how, tuning.Settings):
    return how.remat
  if isinstance(how, Attack):
    return how.method == _PUBLISHED and how.h.draws == 1
  return True


def _rows(need: Need, like: str) -> Iterator[record.Row]:
  """The recorded rows that stand for a program."""
  for row in record.shipped():
    kind, _, shape = row["place"].partition(":")
    chips = math.prod(map(int, shape.split("x")))
    same = (
      row["size"] == "sd14"
      and kind == like
      and row["program"] == need.program
      and compiling.DTYPES[row["dtype"]] == need.dtype
      and "error" not in row
    )
    if row["mesh"] == "fsdp":
      same &= need.fsdp == chips
    else:
      same &= need.fsdp == 1 and (kind != "cpu" or chips == 1)
    if same:
      yield row


def is_sd14(sd: StableDiffusion) -> bool:
  """Whether a model has Stable Diffusion 1.4's networks, as recorded."""
  config = sd.unet.config
  if config.attention != "auto":
    return False
  ways = {k: getattr(config, k) for k in ("dtype", "attention", "kernels")}
  known = models.UNet2DCondition.from_config(CONFIGS["unet"], **ways).config
  return dataclasses.replace(config, remat=False) == known


def _measured(
  sd: StableDiffusion, kind: str, need: Need, rows: int
) -> Figure | None:
  """Compiles a program as the run would; its figure."""
  name = need.program if need.program in build.BUILD else "full"
  if kind and kind not in compiling.SLICES:
    return None
  chips = jax.local_devices() if name == "attack" else jax.devices()
  if kind:
    chips = compiling.devices_of(kind)[: len(chips)]
  across = {"fsdp": need.fsdp} if need.fsdp > 1 else {}
  mesh = sharding.make_mesh(**across, devices=chips)
  like = build.shapes(sd)
  program = build.BUILD[name](sd, rows * len(chips), like, need.how)
  start = time.perf_counter()
  low = measured.LOW_EFFORT["tpu"] if kind else None
  done = build.lowered(program, like, mesh).compile(compiler_options=low)
  found = measured.figures(done)
  fixed = found["arguments"]
  each = (record.held(found) - fixed) / rows
  source = f"compiled in {time.perf_counter() - start:.0f} s"
  if said := found["collectives"]:
    source += ", with " + ", ".join(
      f"{one['count']} {kind}" for kind, one in sorted(said.items())
    )
  beside = sum(
    math.prod(leaf.shape) * 4
    for part in {"attack": ["vae"], "sample": ["text_encoder"]}.get(name, [])
    for leaf in jax.tree.leaves(like[part])
  )
  return Figure((fixed + beside) / record.GIB, each / record.GIB, source)
