"""Puts a trained Shapes model into the package, measured and with a card."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from unlearning_jax import judges, sampling, sharding
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.metrics import accuracy
from unlearning_jax.record import progress
from unlearning_jax.shapes import dataset, training_run, world
from unlearning_jax.shapes import judge as shapes_judge
from unlearning_jax.shapes import prompts as erasure

_SAMPLING = dataclasses.asdict(world.SAMPLING)


def write_weights(source: pathlib.Path, output: pathlib.Path):
  """Writes model, image tower and judge in float16."""
  sd, params = stable.load(source)
  stable.save(sd, params, output / "model", dtype="float16", overwrite=True)
  shutil.copytree(source / "judge", output / "judge", dirs_exist_ok=True)
  (output / "clip").mkdir(exist_ok=True)
  shutil.copy(source / "clip" / "config.json", output / "clip")
  state = load_file(source / "clip" / "model.safetensors")
  half = {name: value.astype(np.float16) for name, value in state.items()}
  save_file(half, output / "clip" / "model.safetensors", {"format": "pt"})


def measure_judge(judge: judges.Judge, count: int = 4_000) -> dict[str, Any]:
  """The judge's accuracy by head, on `count` held-out renders."""
  drawn = dataset.dataset(count, 0, "heldout")
  scores = judge(drawn["images"])
  found = {}
  for head, labels in drawn["labels"].items():
    known = labels >= 0
    right = scores[head].argmax(-1)[known] == labels[known]
    found[head] = {"accuracy": float(right.mean()), "n": int(known.sum())}
  return found


def judged(
  sd: stable.StableDiffusion,
  params: stable.Params,
  rows: Sequence[accuracy.Row],
  judge: judges.Judge,
  **options: Any,
) -> Iterator[list[dict[str, Any]]]:
  """Draws rows with options of `sampling.generate`; yields them judged."""
  prompts, seeds = ([row[key] for row in rows] for key in ("prompt", "seed"))
  done = 0
  for images in sampling.generate(sd, dict(params), prompts, seeds, **options):
    part = rows[done : done + len(images)]
    done += len(part)
    yield accuracy.judge_rows(part, judge(images), judge)


def measure_model(
  output: pathlib.Path, judge: judges.Judge, count: int
) -> dict[str, list[Any]]:
  """The model's accuracy by head and class, on `count` held-out prompts."""
  sd, params = stable.load(output / "model")
  mesh = sharding.make_mesh()
  rows = erasure.prompt_rows([], 0, count, seed=0)
  found = []
  with progress.Progress("draw", len(rows)) as bar:
    for part in judged(
      sd,
      sharding.place(params, sharding.replicated(mesh)),
      rows,
      judge,
      batch_size=50,
      place=functools.partial(sharding.global_batch, mesh),
      **_SAMPLING,
    ):
      found += part
      bar.update(len(part))
  return {
    m.name.removesuffix("/others"): [m.value, m.low, m.high, m.k, m.n]
    for m in accuracy.measure(found)
    if m.name.endswith("/others")
  }


def training(run: pathlib.Path) -> dict[str, Any]:
  """One stage's config, steps, seconds and last metrics."""
  lines = (run / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  return {
    "config": json.loads((run / "config.json").read_text()),
    "steps": last.pop("step"),
    "seconds": round(last.pop("seconds")),
    "last_metrics": {k: v for k, v in last.items() if k != "wall_s"},
  }


def ship(
  model: pathlib.Path, runs: pathlib.Path, output: pathlib.Path, count: int
):
  """Writes the weights, measures them, and writes the card.

  Args:
    model: the model folder that training filled.
    runs: a folder with each stage's run.
    output: the folder to write.
    count: the number of prompts to draw.

  Raises:
    ValueError: a stage has not finished.
  """
  for stage in training_run.STAGES:
    if not (runs / stage / "DONE").exists():
      raise ValueError(f"--runs: {stage} has not finished training")
  output.mkdir(parents=True, exist_ok=True)
  write_weights(model, output)
  judge = shapes_judge.load(output / "judge")
  files = sorted(p for p in output.rglob("*") if p.is_file())
  card = {
    "what": "A tiny Stable Diffusion of the Shapes world, trained from its "
    "configs by this project's own loop; the judge shares nothing with it.",
    "sampling": _SAMPLING,
    "judge_on_heldout_renders": measure_judge(judge),
    "model_on_heldout_prompts": measure_model(output, judge, count),
    "columns": ["accuracy", "wilson_low", "wilson_high", "right", "n"],
    "training": {
      stage: training(runs / stage) for stage in training_run.STAGES
    },
    "sha256": {
      str(path.relative_to(output)): hashlib.sha256(
        path.read_bytes()
      ).hexdigest()
      for path in files
      if path.name != "model_card.json"
    },
  }
  text = json.dumps(card, indent=1)
  (output / "model_card.json").write_text(text + "\n")
