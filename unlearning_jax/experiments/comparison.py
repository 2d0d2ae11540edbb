"""Before and after: what `erase` and `evaluate` have in common."""

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unlearning_jax import (
  convert,
  judges,
  report,
  samplers,
  shapes,
  sharding,
)
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.concepts import check_choice
from unlearning_jax.edits import (
  Edit,
  apply_to_context,
  apply_to_params,
  edit_hash,
  load_edit,
)
from unlearning_jax.models import attention
from unlearning_jax.noise import SOURCES
from unlearning_jax.record import progress
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


def rows(config: Any) -> list[dict[str, Any]]:
  """The rows to draw: Shapes prompts, or those that the config lists."""
  if config.judge == "shapes":
    return erasure.prompt_rows(
      targets(config), config.per_group, config.others, config.seed
    )
  return [
    {
      "id": f"{i:05d}-{group}",
      "group": group,
      "prompt": prompt,
      "seed": config.seed + i,
      "attributes": {},
      "unsafe": False,
    }
    for i, (group, prompt) in enumerate(
      (group, prompt)
      for group, prompts in config.prompts.items()
      for prompt in prompts
    )
  ]


def compare(
  run: Workdir,
  sd: stable.StableDiffusion,
  params: stable.Params,
  edits: Mapping[str, Edit],
  config: Any,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """Draws every row under the base and every edit, and writes the report.

  Context maps are applied to the text states, so that those models share the
  base's weights. Finished rows are not drawn again.

  Returns:
    The document that `report` renders and `summary.json` holds; nothing is
    written where the config asks for no rows.
  """
  mesh = sharding.make_mesh()
  multiple = sharding.local_rows_multiple(mesh)
  judge, table = load_judge(config), rows(config)
  if not table:
    return {}
  done = run.done_ids()
  sharding.wait_for_all("rows listed")
  shown = _shown(table, config.grid)
  stages: dict[str, Edit | None] = {comparison.BASE: None, **edits}
  total = len(table) * len(stages)
  with progress.Progress("draw", total, done=len(done)) as bar:
    for stage, edit in stages.items():
      left = [row for row in table if f"{stage}/{row['id']}" not in done]
      mine, padding = _share(left)
      weights, context = _victim(params, edit)
      drawn = erasure.judged_images(
        sd,
        sharding.place(weights, sharding.replicated(mesh)),
        mine,
        judge,
        # The next size that the devices can share evenly.
        batch_size=-(-config.batch_size // multiple) * multiple,
        edit_context=context,
        place=functools.partial(sharding.global_batch, mesh),
        fetch=sharding.local_rows,
        **config.sampling,
      )
      for i, (row, image) in enumerate(drawn):
        # Not a break: a process that left a batch out would leave the others
        # waiting in it.
        if i >= len(mine) - padding:
          continue
        if row["id"] in shown:
          run.save_image(f"{row['id']}-{stage}", image)
        run.append_row({**row, "id": f"{stage}/{row['id']}", "stage": stage})
        bar.update()
  sharding.wait_for_all("rows drawn")
  document = comparison.document(run.rows(), [*stages], targets(config), shown)
  document |= {
    "title": config.title,
    "notes": list(notes),
    "diagnostics": {
      stage: {"method": edit.method, **edit.diagnostics}
      for stage, edit in edits.items()
    },
  }
  run.save_summary(document)
  # What they read, the writer alone has surely written.
  if run.is_writer:
    run.write("report.html", report.render_report(run.path))
    run.write("results.csv", report.results_csv(run.path))
    print(comparison.text_table(document))
    print(f"report: {run.path / 'report.html'}")
  return document


def _victim(params: stable.Params, edit: Edit | None):
  """Weights to draw with, and what to do to the text states."""
  if edit is None:
    return params, None
  if edit.context_map is None:
    return apply_to_params(edit, params), None
  return params, functools.partial(apply_to_context, edit)


def _share(left: Sequence[dict]) -> tuple[list[dict], int]:
  """This process's rows, and how many at their end are padding.

  Every process gets as many, or they would wait for each other for ever.
  """
  count = -(-len(left) // jax.process_count())
  mine = list(left[jax.process_index() * count :][:count])
  padding = count - len(mine)
  return mine + list(left[:1]) * padding, padding


def _shown(table: Sequence[Mapping[str, Any]], grid: int) -> set[str]:
  """Ids of the first `grid` rows of each group."""
  groups: dict[str, list[str]] = {}
  for row in table:
    groups.setdefault(row["group"], []).append(row["id"])
  return {i for ids in groups.values() for i in ids[:grid]}


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
  stable.tokenize(sd, [*phrases, *(row["prompt"] for row in rows(config))])


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
