"""What every experiment starts with: settings, a model, a judge, a record."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from unlearning_jax import (
  checking,
  convert,
  durable,
  extensions,
  guidance,
  judges,
  metrics,
  processes,
  sharding,
)
from unlearning_jax import model as models
from unlearning_jax import settings as settings_
from unlearning_jax.concepts import check_choice
from unlearning_jax.edits import Edit, edit_hash, load_edit
from unlearning_jax.guidance import Guidance
from unlearning_jax.judges import Judge, Target
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, Workdir, binding, seal
from unlearning_jax.sampling import Sampling
from unlearning_jax.settings import Free, Output
from unlearning_jax.stable_diffusion import Params

Made = Edit | Guidance
# Inputs that older versions did not record.
NEWER = ("prompt_table", "target_images")
EDIT, GUIDANCE = "edit.safetensors", "guidance.json"
# How models are read: the last one counts, `models.load` where there is none.
_load: list[Callable[..., Model]] = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
  """The settings of every experiment that draws.

  Attributes:
    model: the base: a world's name, a diffusers folder or a hub id.
    dtype: the type that networks compute in, float32 or bfloat16.
    attention: how attention is computed, see `models.attention`.
    kernels: how networks compute on a CPU, see `models.fast`.
    seed: seed of prompts, noise and whatever else is random, at least 0.
    title: the title of the page.
    judge: the judge's name, see `judges.load`; None for no judge.
    metrics: metrics besides the experiment's own, see `metrics.load`.
    targets: what was erased, see `targets_of`.
    grid_rows: rows of each group whose images the page shows.
    batch_size: images drawn at once; it is rounded up to what devices share.
    sampling: how images are drawn.
  """

  model: Output[str] = "shapes"
  dtype: Output[str] = "float32"
  attention: Output[str] = "auto"
  kernels: Output[str] = "exact"
  seed: Output[int] = 0
  title: Output[str] = ""
  judge: Output[str | None] = None
  metrics: Output[tuple[str, ...]] = ()
  targets: Output[tuple[Mapping[str, str], ...]] = ()
  grid_rows: Output[int] = 6
  batch_size: Free[int] = 50
  sampling: Sampling = Sampling()

  def __post_init__(self):
    check_choice("dtype", self.dtype, ("float32", "bfloat16"))
    for key in ("seed", "grid_rows"):
      if getattr(self, key) < 0:
        raise ValueError(f"{key}={getattr(self, key)}: must not be negative")
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size}: must be at least 1")

  @property
  def world_targets(self) -> list[Mapping[str, str]]:
    """Task and name of those `targets` that the world has prompts for."""
    known = world_of(self) is not None
    return [
      {key: one[key] for key in ("task", "name")}
      for one in self.targets
      if known and "task" in one and "name" in one
    ]


def say(notes: Sequence[str]):
  """Prints sentences that the run also records, once for all processes."""
  for note in notes if is_first() else ():
    print(f"note: {note}", file=sys.stderr)


def is_first() -> bool:
  """Whether this process is the one that prints."""
  return jax.process_index() == 0


def load_model(given: Any) -> Model:
  """Reads the model that settings name.

  Raises:
    ValueError: it cannot be read whole, or computes in no such way here.
  """
  how = {key: getattr(given, key) for key in ("dtype", "attention", "kernels")}
  load = _load[-1] if _load else models.load
  found = load(given.model, **how)
  checking.about(sd=found.sd)
  return found


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
  """Inside, `load_model` reads a model once, until another is named."""
  _load.append(functools.lru_cache(maxsize=1)(models.load))
  try:
    yield
  finally:
    _load.pop()


def load_judge(given: Any) -> Judge | None:
  """Loads the judge that settings name; None where they name none."""
  name = getattr(given, "judge", None)
  return None if name is None else judges.load(name)


def world_of(given: Any) -> Any:
  """The embedded world that settings name as judge or model; None for none."""
  known = extensions.worlds()
  # The settings of a fine-tuning have no judge.
  asked = (getattr(given, "judge", None), given.model)
  named = [name for name in asked if name in known]
  return extensions.world(named[0]) if named else None


def targets_of(given: Drawn) -> list[Target]:
  """The targets that a judge looks for.

  Each of `given.targets` is a class of a world (`task` and `name`) or a label
  of your own judge (`head` and `label`).

  Raises:
    ValueError: an entry is neither, or the world does not have the class.
  """
  world, found = world_of(given), []
  for one in given.targets:
    if not isinstance(one, Mapping):
      raise ValueError(
        f"targets: {one!r} is not a mapping; give one of 'task' and 'name', or "
        "of 'head' and 'label', each"
      )
    if {"head", "label"} <= one.keys():
      found.append(Target(one["head"], one["label"]))
    elif world is not None and {"task", "name"} <= one.keys():
      found.append(world.target(one["task"], one["name"]))
    else:
      raise ValueError(
        f"targets: {dict(one)} is no class of the world of model="
        f"{given.model!r} or judge={given.judge!r}; give its head and its label"
      )
  return found


def check_metrics(given: Drawn, verb: str):
  """Refuses a metric that would fail once everything has been drawn.

  Args:
    given: the settings, with `metrics` and `judge`.
    verb: the experiment whose rows the metrics would read.

  Raises:
    ValueError: a metric is unknown, cannot read these rows, or needs a judge
      where there is none.
  """
  for name in given.metrics:
    metric = metrics.load(name)
    if verb not in metric.verbs:
      known = metrics.reading(verb)
      raise ValueError(
        f"metrics: {name!r} reads the rows of {' and '.join(metric.verbs)}, "
        f"and {verb} has none of these; it can show {', '.join(known)}, or a "
        "metric of your own, package.module:name"
      )
    if given.judge is None and not metric.images:
      raise ValueError(
        f"metrics: {name!r} counts what a judge sees, and judge=None; name a "
        "judge, or leave the metric out"
      )


def check_sees(judge: Judge | None, targets: Sequence[Target]):
  """Refuses targets that the judge cannot see.

  Raises:
    ValueError: naming the judge, what it can see, and what to type.
  """
  if judge is None:
    return
  for target in targets:
    try:
      judge.find(target)
    except ValueError as error:
      head, labels = next(iter(judge.labels.items()))
      one = {"head": head, "label": labels[0]}
      raise ValueError(
        f"{error}; name what it sees, targets=({one},), or take another judge"
      ) from error


def workdir(
  path: str,
  config: Any,
  cls: type,
  *,
  alone: bool = False,
  guard: Callable[[], object] = lambda: None,
  locked: bool = True,
) -> Workdir:
  """Opens the folder of a run, which all its processes share.

  A run that only checks, see `checking`, ends here.

  Args:
    path: the folder.
    config: the run's config, plain values or a `ConfigDict`.
    cls: the class of its settings; it says what a resume may change.
    alone: True if this process runs it alone.
    guard: see `Workdir`.
    locked: see `Workdir`.

  Raises:
    ValueError: the folder cannot be written, is of another config, or another
      run writes in it.
  """
  free = settings_.free(cls)
  # Older versions had no metrics, no published protocols, no fast kernels, no
  # erasure without pictures, and no control networks or words that rows share.
  defaults: dict[str, Any] = {
    "metrics": (), "published": None, "columns": (), "missing": {},
    "kernels": "exact", "edit_only": False, "never_knew": "",
    "sharing": {"wave": 0, "tries": 0},
  }  # fmt: skip
  if checking.is_only():
    binding.check(path, config, free, defaults)
    values = config if isinstance(config, dict) else config.to_dict()
    checking.passed(settings_.build(cls, values))
  count = 1 if alone else jax.process_count()
  try:
    found = Workdir(
      path, config, process_index=0 if alone else jax.process_index(),
      process_count=count, free=free, defaults=defaults, guard=guard,
      locked=locked,
    )  # fmt: skip
  except ValueError as error:
    if count == 1:
      raise
    # The others wait for this process, so it is no matter of one stage alone.
    raise durable.BusyError(str(error)) from error
  if not alone:
    # None writes a row before the first has the lock.
    processes.wait_for_all("record opened")
  return found


def begin(
  run: Recorder,
  given: Any,
  base: Params,
  made: Mapping[str, Made] | None = None,
  inputs: Mapping[str, str] | None = None,
):
  """Records this start in `provenance.json`.

  Args:
    run: the record.
    given: the settings.
    base: the base model's parameters.
    made: name -> edit or guidance that the run was given.
    inputs: name -> hash of whatever else the run was given.

  Raises:
    ValueError: the record is of another model, judge, seed or input.
  """
  judge = load_judge(given)
  run.record_provenance(
    devices=sharding.describe_devices(),
    base_fingerprint=convert.params_fingerprint(base),
    judge_hashes={judge.name: judge.identity} if judge else {},
    seeds={"seed": given.seed},
    inputs={
      **{name: made_hash(one) for name, one in (made or {}).items()},
      **(inputs or {}),
    },
    newer=NEWER,
  )


def made_hash(made: Made) -> str:
  """A hash that tells an edit or guidance from every other."""
  if isinstance(made, Guidance):
    # Records that are older than the clock have none.
    text = repr(made).replace(", clock='steps'", "")
    return hashlib.sha256(text.encode()).hexdigest()
  return edit_hash(made)


def fingerprint(model: Model, base: Model) -> str:
  """The hash of how a model differs from the base; "" where it is the base."""
  parts = []
  if model.params is not base.params:
    parts.append(convert.params_fingerprint(model.params))
  made = (one for one in (model.edit, model.guidance) if one is not None)
  parts += map(made_hash, made)
  return " ".join(parts)


def _guidance_at(path: pathlib.Path) -> pathlib.Path | None:
  """The file of the guidance that a path stands for; None for none."""
  file = path / GUIDANCE if path.is_dir() else path
  # An index of shards is a .json too.
  is_json = file.suffix == ".json" and not file.name.endswith("index.json")
  return file if is_json and file.is_file() else None


def read_edit(path: str | pathlib.Path, flag: str = "--edits") -> Edit:
  """Reads an edit from its file, or from the folder of the run that made it.

  Raises:
    ValueError: there is no edit at that path, or not the one that its run made.
  """
  file = pathlib.Path(path)
  if _guidance_at(file) and not (file / EDIT).is_file():
    raise ValueError(
      f"{flag}: {path} is guidance, which changes no weight, and an edit is "
      "needed here; evaluate, attack and audit take guidance too"
    )
  steps = sorted(file.glob("steps/*.safetensors"))
  file = file / EDIT if file.is_dir() else file
  if steps and not file.is_file():
    raise ValueError(
      f"{flag}: {path} is a tuning, and each of its steps an edit; the last is "
      f"{flag}={steps[-1]}"
    )
  if not file.is_file():
    raise ValueError(f"{flag}: no file {file}; run launch.erase first")
  seal.check_file(file)
  return load_edit(file)


def read_made(path: str | pathlib.Path, flag: str = "--edits") -> Made:
  """Reads an edit or guidance from its file, or from its run's folder.

  Raises:
    ValueError: there is neither at that path.
  """
  file = _guidance_at(pathlib.Path(path))
  if file is None:
    return read_edit(path, flag)
  seal.check_file(file)
  return guidance.load(file)


def read_edits(paths: Sequence[str], flag: str = "--edits") -> dict[str, Made]:
  """Reads several with `read_made`; keys are methods, and `-2` marks a second.

  Raises:
    ValueError: as `read_made`.
  """
  made = [read_made(path, flag) for path in paths]
  names = models.distinct(map(models.called, made))
  return dict(zip(names, made, strict=True))


def read_items(items: Sequence[str], form: str) -> dict[tuple[str, str], str]:
  """Paths of edits, typed as `--edits=<kind>/<name>=<path>,...`, by both names.

  Args:
    items: the items of the flag, as typed.
    form: the names that are expected, such as `<task>/<name>`, for messages.

  Raises:
    ValueError: an item has another form, or is repeated.
  """
  found: dict[tuple[str, str], str] = {}
  for item in items:
    names, _, path = item.partition("=")
    first, _, second = names.partition("/")
    if not (first and second and path) or (first, second) in found:
      raise ValueError(f"--edits: {item!r} is not a new {form}=<path>")
    found[first, second] = path
  return found
