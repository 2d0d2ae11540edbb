"""Before and after: what `erase` and `evaluate` have in common."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unlearning_jax import (
  convert,
  judges,
  samplers,
  settings,
  shapes,
  sharding,
)
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.concepts import check_choice
from unlearning_jax.edits import (
  Edit,
  edit_hash,
  load_edit,
)
from unlearning_jax.experiments import drawing, evaluate
from unlearning_jax.model import Model
from unlearning_jax.models import attention
from unlearning_jax.noise import SOURCES
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.report import comparison
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.shapes import prompts as erasure

# How rows share the machine; no row depends on it, so a run may go on with
# others elsewhere.
FREE = ("batch_size", "lanes", "pack")
# Inputs that runs of older versions did not record.
NEWER = ("table", "target_images")


def load_model(config: Any) -> tuple[stable.StableDiffusion, stable.Params]:
  """The model that `config.model` names: "shapes", or where weights are.

  Raises:
    ValueError: `config.attention` is none that it can have here, or the model
      cannot be read whole.
  """
  # Before gigabytes are read.
  attention.check(config.attention, config.dtype)
  path = shapes.model_folder() if config.model == "shapes" else config.model
  return stable.load(
    path, dtype=jnp.dtype(config.dtype), attention=config.attention
  )


def load_judge(config: Any) -> judges.Judge | None:
  """The judge that `config.judge` names, if any."""
  if config.judge is None:
    return None
  return judges.load(config.judge)


def targets(config: Any) -> list[erasure.Target]:
  """What was erased, as the Shapes judge knows it.

  Raises:
    ValueError: a task or a class that the judge does not know.
  """
  return [erasure.Target(t["task"], t["name"]) for t in config.targets]


def settings_of(config: Any) -> drawing.Settings:
  """The part of a config that says what is drawn."""
  known = {field.name for field in dataclasses.fields(drawing.Settings)}
  plain = config.to_dict().items()
  return settings.build(
    drawing.Settings, {k: v for k, v in plain if k in known}
  )


def compare(
  run: Workdir,
  sd: stable.StableDiffusion,
  params: stable.Params,
  edits: Mapping[str, Edit],
  config: Any,
) -> dict[str, Any]:
  """`evaluate.compare` of edits, printed."""
  base = Model(sd, params)
  models = {comparison.BASE: base}
  models |= {name: base.with_edit(edit) for name, edit in edits.items()}
  document = evaluate.compare(run, settings_of(config), models)
  if document:
    print(comparison.text_table(document))
    print(f"report: {run.path / 'report.html'}")
  return document


def check(config: Any):
  """Finds what is wrong with a config before anything is loaded.

  Raises:
    ValueError: naming the key.
  """
  if config.judge is None:
    if not any(config.prompts.values()):
      raise ValueError("prompts: the config has neither a judge nor prompts")
  elif config.judge != "shapes":
    raise ValueError(f"judge={config.judge!r}: allowed are 'shapes' and None")
  check_choice("dtype", config.dtype, ("float32", "bfloat16"))
  targets(config)
  sampler, source = config.sampling.sampler, config.sampling.noise_source
  if sampler is not None:
    check_choice("sampling.sampler", sampler, SAMPLERS)
  check_choice("sampling.noise_source", source, SOURCES)
  for key in ("seed", "per_group", "others", "grid"):
    if config[key] < 0:
      raise ValueError(f"{key}={config[key]}: must not be negative")
  if config.batch_size < 1:
    raise ValueError(f"batch_size={config.batch_size}: must be at least 1")


def check_fits(
  config: Any, sd: stable.StableDiffusion, phrases: Sequence[str] = ()
):
  """Finds what this model cannot do, before anything is written or compiled.

  Args:
    config: the run's.
    sd: the model.
    phrases: what else must be short enough to encode.

  Raises:
    ValueError: a phrase or prompt is too long, or the number of steps is none
      that the sampler can take.
  """
  sampling = config.sampling
  samplers.make_sampler(sd.schedule, sampling.num_steps, sampling.sampler)
  table = drawing.rows(settings_of(config))
  stable.tokenize(sd, [*phrases, *(row["prompt"] for row in table)])


def open_run(
  path: str,
  config: Any,
  params: stable.Params,
  edits: Mapping[str, Edit] | None = None,
  inputs: Mapping[str, str] | None = None,
  *,
  alone: bool = False,
) -> Workdir:
  """The run's folder, with its provenance recorded.

  Args:
    path: the folder.
    config: the run's.
    params: the base model's.
    edits: those that come from outside; a resume with others is refused.
    inputs: hashes of what else comes from outside.
    alone: the run is this process's own; the others have no part in it.

  Raises:
    ValueError: it cannot be written, or belongs to another config or model.
  """
  run = Workdir(
    path,
    config,
    process_index=0 if alone else jax.process_index(),
    process_count=1 if alone else jax.process_count(),
    free=FREE,
  )
  judge = load_judge(config)
  run.record_provenance(
    devices=sharding.describe_devices(),
    base_fingerprint=convert.params_fingerprint(params),
    judge_hashes={judge.name: judge.weights_hash} if judge else {},
    seeds={"seed": config.seed},
    inputs={
      **{name: edit_hash(e) for name, e in (edits or {}).items()},
      **(inputs or {}),
    },
    newer=NEWER,
  )
  return run


def stage_name(edit: Edit) -> str:
  """What reports call the edited model: the method, without its recipe."""
  return edit.method.split()[0].upper()


def load_edits(paths: Sequence[str]) -> dict[str, Edit]:
  """Edits by the name of their method; a number is added where two share it.

  Raises:
    ValueError: a path that is neither an edit file nor an erase run's folder.
  """
  edits: dict[str, Edit] = {}
  taken: collections.Counter[str] = collections.Counter()
  for path in map(pathlib.Path, paths):
    file = path / "edit.safetensors" if path.is_dir() else path
    if not file.is_file():
      raise ValueError(f"--edits: no file {file}; run launch.erase first")
    edit = load_edit(file)
    name = stage_name(edit)
    taken[name] += 1
    # Images are named after it too: no blank.
    edits[f"{name}-{taken[name]}" if taken[name] > 1 else name] = edit
  return edits
