"""Does a run fit a device? From recorded figures, or compiled and measured.

A program "fits" if it is recorded, or was compiled, as this run has it. The
line of any other says that nobody knows.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from unlearning_jax import casting, models, sharding
from unlearning_jax.attacks import Attack
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.experiments import memory
from unlearning_jax.experiments.finetune.settings import Lora, Loss, Optimizer
from unlearning_jax.experiments.programs import (
  build,
  compiling,
  devices,
  measured,
  record,
)
from unlearning_jax.experiments.programs.needs import Need, needs, notes
from unlearning_jax.sampling import Sampling
from unlearning_jax.schedules import Schedule
from unlearning_jax.stable_diffusion import StableDiffusion

MEASURE = "not recorded: --check=compile measures it"
# Parts of the model that a program reads; the others lie beside it.
_READS = {"attack": ("text_encoder", "unet"), "sample": ("unet", "vae")}
# Numbers of an attack that its program is compiled once for.
_NUMBERS = ("blocks", "iterations", "learning_rate", "weight_decay")
_PUBLISHED = "unlearn_diff_atk"
_Said = tuple[str, bool]


class Bounds(NamedTuple):
  """Bytes that a chip needs with all that lies beside, and who says so."""

  least: float
  most: float
  source: str


def target(device: str, *, exact: bool) -> tuple[str, str, float]:
  """A device's name, the TPU to compile for, "" for the one here, and GiB.

  Args:
    device: a name of `devices`, or "" for the one at hand.
    exact: whether programs are compiled for it.

  Raises:
    ValueError: there is no such device, or none is compiled for from here.
  """
  here, gib = devices.named("")
  if not device or device.lower() == here:
    return here, "", gib
  name, gib = devices.named(device)
  if exact and name not in compiling.SLICES:
    raise ValueError(
      f"--device={device}: from elsewhere, programs are compiled for "
      f"{', '.join(compiling.SLICES)} alone; run --check=compile on a machine "
      "that has one, or --check, which reads the record"
    )
  return name, name if exact else "", gib


def said(
  given: object,
  sd: StableDiffusion | None,
  device: str = "",
  *,
  exact: bool,
  more: int | None = None,
  safe: bool = False,
) -> Iterator[_Said]:
  """A line about each program of a run, and whether it has room.

  Args:
    given: the run's settings; None if they are not known.
    sd: its model; None if it was not read.
    device: a name of `devices`, or "" for the one at hand.
    exact: whether to compile the programs, instead of reading the record.
    more: bytes of weights beside the base's; None where they are not known.
    safe: whether it draws with Safe Latent Diffusion.

  Raises:
    ValueError: as `target`, or a mesh has more devices than a slice has chips.
  """
  name, kind, gib = target(device, exact=exact)
  found = [] if sd is None else needs(given)
  if not found:
    what = "nothing of this verb is compiled"
    if not exact:
      what = "memory is not recorded for this verb's programs"
    yield f"{name}: {what}", True
  for need in found:
    assert sd is not None
    if safe and need.program == "sample":
      need = need._replace(unknown="Safe Latent Diffusion draws more rows")
    rows = -(-need.rows // len(_devices(need)))
    # A matrix and an audit have several attacks.
    which = f" {need.how.method}" if isinstance(need.how, Attack) else ""
    what = (
      f"{name}: {need.program}{which}, {rows} row(s) a chip in {need.dtype}"
    )
    if need.fsdp > 1:
      what += f", fsdp={need.fsdp}"
    if need.unknown:
      line, fit = f"neither recorded nor compiled: {need.unknown}", True
    elif exact:
      line, fit = _compiled(sd, need, rows, kind, gib, more)
    else:
      line, fit = _recorded(sd, need, rows, name, gib, more)
    yield f"{what}: {line}", fit
  for note in dict.fromkeys(notes(given)):
    yield f"{name}: {note}", True


def _devices(need: Need) -> list[Any]:
  """The devices that share a call's rows.

  A training's are all. Elsewhere each process gives its own devices as many.
  """
  is_tuned = isinstance(need.how, tuning.Settings)
  return jax.devices() if is_tuned else jax.local_devices()


def _beside(
  sd: StableDiffusion, need: Need, more: int | None
) -> tuple[int, int]:
  """Bytes that lie beside a program: at least, and at most."""
  is_tuned = isinstance(need.how, tuning.Settings)
  sizes = _sizes(sd, computed=not is_tuned)
  if isinstance(need.how, tuning.Settings):
    text = need.how.train == "text_encoder"
    reads = ("text_encoder", "unet") if text else ("unet",)
    return 0, sum(size for part, size in sizes.items() if part not in reads)
  reads = _READS[need.program]
  rest = sum(size for part, size in sizes.items() if part not in reads)
  whole = sum(sizes.values())
  return rest, rest + (whole if more is None else more)


def _copies(sd: StableDiffusion, need: Need) -> int:
  """Bytes that a TPU's program has at default effort, and not at low effort.

  The compiler then copies float32 weights to bfloat16 before a loop.
  """
  unet = _sizes(sd, computed=False)["unet"]
  # Tuning keeps float32 weights, whatever it computes in.
  is_tuned = isinstance(need.how, tuning.Settings)
  return unet // 2 if is_tuned or need.dtype == "float32" else 0


@functools.cache
def _sizes(sd: StableDiffusion, *, computed: bool) -> dict[str, int]:
  """Bytes of each part of a model, whole or `casting.as_computed`."""
  like = build.shapes(sd)
  if computed:
    like = jax.eval_shape(functools.partial(casting.as_computed, sd), like)
  return {
    part: sum(
      math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
      for leaf in jax.tree.leaves(tree)
    )
    for part, tree in like.items()
  }


def _verdict(found: Bounds, gib: float, unknown: str) -> _Said:
  """Fits, does not fit, or what to say where neither is known."""
  least, most = (size / record.GIB for size in found[:2])
  room = f"of {gib:.1f} GiB a chip ({found.source})"
  if gib and most <= gib:
    return f"fits: at most {most:.1f} {room}", True
  if gib and least > gib:
    return f"does not fit: at least {least:.1f} {room}", False
  return unknown, True


def _recorded(
  sd: StableDiffusion,
  need: Need,
  rows: int,
  name: str,
  gib: float,
  more: int | None,
) -> _Said:
  """By the record: more rows of a program need as much memory, or more."""
  found = []
  if is_sd14(sd) and _is_recorded(sd, need.how):
    found = [*_rows(need, name)]
  above = [row for row in found if row["rows"] >= rows]
  below = [row for row in found if row["rows"] <= rows]
  least, most, which = 0.0, math.inf, None
  if below:
    which = max(below, key=lambda row: row["rows"])
    least = record.least(which) + _beside(sd, need, more)[0]
  if above:
    which = min(above, key=lambda row: row["rows"])
    most = record.held(which) + _beside(sd, need, more)[1]
    if which["effort"] == "low":
      most += _copies(sd, need)
  if which is None:
    return MEASURE, True
  source = f"recorded: {which['rows']} row(s) for {which['place']}"
  if which["effort"] != "default":
    source += f", compiled at {which['effort']} effort"
  return _verdict(Bounds(least, most, source), gib, MEASURE)


def _is_recorded(sd: StableDiffusion, how: build.How) -> bool:
  """Whether the record's programs compute so."""
  if isinstance(how, tuning.Settings):
    # A rate and its schedule take no memory.
    usual = Optimizer()
    plain = dataclasses.replace(
      how.optimizer,
      learning_rate=usual.learning_rate,
      schedule=usual.schedule,
    )
    # As their configs are: of all weights, sums over parts and an average.
    whole = how.train == "full"
    return (
      how.remat
      and (how.accumulate > 1, bool(how.ema_decay)) == (whole, whole)
      and how.defense.kind in ("none", "reassert")
      and (how.lora, how.loss, plain) == (Lora(), Loss(), Optimizer())
    )
  if isinstance(how, Attack):
    return how.method == _PUBLISHED and all(
      getattr(how.h, field.name) == field.default
      for field in dataclasses.fields(how.h)
      if field.name not in _NUMBERS
    )
  if isinstance(how, Sampling):
    own = Schedule.from_config(CONFIGS["scheduler"]).sampler
    steps = how.num_inference_steps == build.STEPS
    guided = how.guidance_scale > 1
    return steps and guided and (how.sampler or sd.schedule.sampler) == own
  return False


def _rows(need: Need, name: str) -> Iterator[record.Row]:
  """The recorded rows of a program on a device."""
  for row in record.shipped():
    kind, _, shape = row["place"].partition(":")
    chips = math.prod(map(int, shape.split("x")))
    if (
      row["size"] == "sd14"
      and kind == name
      and row["program"] == need.program
      and compiling.DTYPES[row["dtype"]] == need.dtype
      and need.fsdp == (chips if row["mesh"] == "fsdp" else 1)
      and "error" not in row
    ):
      yield row


def is_sd14(sd: StableDiffusion) -> bool:
  """Whether a model has Stable Diffusion 1.4's networks, as recorded."""
  config = sd.unet.config
  if config.attention != "auto":
    return False
  ways = {k: getattr(config, k) for k in ("dtype", "attention", "kernels")}
  known = models.UNet2DCondition.from_config(CONFIGS["unet"], **ways).config
  return dataclasses.replace(config, remat=False, lean=False) == known


def _compiled(
  sd: StableDiffusion,
  need: Need,
  rows: int,
  kind: str,
  gib: float,
  more: int | None,
) -> _Said:
  """Compiles a program as the run would."""
  name = need.program if need.program in build.BUILD else "full"
  chips = _devices(need)
  if kind:
    slice_ = compiling.devices_of(kind)
    if len(chips) > len(slice_):
      raise ValueError(
        f"--device={kind}: programs are compiled for {len(slice_)} chips at "
        f"most, and this run has {len(chips)} devices; give it fewer"
      )
    chips = slice_[: len(chips)]
    # As a run there has it.
    config = dataclasses.replace(sd.unet.config, lean=True)
    sd = dataclasses.replace(sd, unet=models.UNet2DCondition(config))
  across = {"fsdp": need.fsdp} if need.fsdp > 1 else {}
  mesh = sharding.make_mesh(**across, devices=chips)
  like = build.shapes(sd)
  program = build.BUILD[name](sd, rows * len(chips), like, need.how)
  start = time.perf_counter()
  low, at = (measured.LOW_EFFORT["tpu"] if kind else None), ""
  if low:
    at = " at low effort"
  try:
    # A check leaves no program on disk.
    with measured.uncached():
      done = build.lowered(program, like, mesh).compile(compiler_options=low)
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_short(error):
      raise
    return f"does not fit{at}: {str(error).splitlines()[0]}", False
  found = measured.figures(done)
  source = f"compiled{at} in {time.perf_counter() - start:.0f} s"
  if said := found["collectives"]:
    source += ", with " + ", ".join(
      f"{one['count']} {kind}" for kind, one in sorted(said.items())
    )
  few, many = _beside(sd, need, more)
  if low:
    many += _copies(sd, need)
  if name == "attack":
    # What an attack reads of victim and base can be one and the same.
    once = sum(_sizes(sd, computed=True)[part] for part in _READS[name])
    few -= max(0, found["arguments"] - once)
  bounds = Bounds(record.least(found) + few, record.held(found) + many, source)
  least, most = (size / record.GIB for size in bounds[:2])
  of = f" of {gib:.1f}" if gib else ""
  unknown = f"{least:.1f} to {most:.1f}{of} GiB a chip ({source})"
  return _verdict(bounds, gib, unknown)
