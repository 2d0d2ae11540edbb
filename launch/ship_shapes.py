"""Puts a trained Shapes model into the package, measured, with its card.

  python -m launch.ship_shapes --model=runs/shapes --runs=runs \
    --output=unlearning_jax/shapes/assets

`--runs` holds the four training runs (judge, vae, clip, unet). What is
measured is what ships: the weights in float16, read back from the output.
Two CPU cores: about five minutes.
"""

import functools
import hashlib
import json
import pathlib
import shutil

import numpy as np
from absl import app, flags
from safetensors.numpy import load_file, save_file

from unlearning_jax import judges, sharding
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.metrics import accuracy
from unlearning_jax.record import progress
from unlearning_jax.shapes import dataset
from unlearning_jax.shapes import judge as shapes_judge
from unlearning_jax.shapes import prompts as erasure

_MODEL = flags.DEFINE_string(
  "model", None, "Folder that training filled.", required=True
)
_RUNS = flags.DEFINE_string(
  "runs", None, "Folder of the training runs.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "The package's assets folder.", required=True
)
_PROMPTS = flags.DEFINE_integer("prompts", 2_000, "Held-out prompts to draw.")
_STAGES = ("judge", "vae", "clip", "unet")
_SAMPLING = {
  "num_steps": 15,
  "guidance_scale": 4.0,
  "sampler": "dpm++2m",
  "noise_source": "jax",
}


def write_weights(source: pathlib.Path, output: pathlib.Path):
  """Model, image tower and judge in float16."""
  sd, params = stable.load(source)
  stable.save(sd, params, output / "model", dtype="float16", overwrite=True)
  shutil.copytree(source / "judge", output / "judge", dirs_exist_ok=True)
  (output / "clip").mkdir(exist_ok=True)
  shutil.copy(source / "clip" / "config.json", output / "clip")
  state = load_file(source / "clip" / "model.safetensors")
  half = {name: value.astype(np.float16) for name, value in state.items()}
  save_file(half, output / "clip" / "model.safetensors", {"format": "pt"})


def measure_judge(judge: judges.Judge, count: int = 4_000) -> dict:
  """Accuracy per head on held-out renders, whose truth the renderer knows."""
  drawn = dataset.dataset(count, 0, "heldout")
  scores = judge(drawn["images"])
  found = {}
  for head, labels in drawn["labels"].items():
    known = labels >= 0
    right = scores[head].argmax(-1)[known] == labels[known]
    found[head] = {"accuracy": float(right.mean()), "n": int(known.sum())}
  return found


def measure_model(output: pathlib.Path, judge: judges.Judge) -> dict:
  """Accuracy per head and class on held-out prompts."""
  sd, params = stable.load(output / "model")
  mesh = sharding.make_mesh()
  rows = erasure.prompt_rows([], 0, _PROMPTS.value, seed=0)
  judged = []
  with progress.Progress("draw", len(rows)) as bar:
    for row, _ in erasure.judged_images(
      sd,
      sharding.place(params, sharding.replicated(mesh)),
      rows,
      judge,
      batch_size=50,
      place=functools.partial(sharding.global_batch, mesh),
      **_SAMPLING,
    ):
      judged.append(row)
      bar.update()
  return {
    m.name.removesuffix("/others"): [m.value, m.low, m.high, m.k, m.n]
    for m in accuracy.measure(judged)
    if m.name.endswith("/others")
  }


def training(stage: str) -> dict:
  """What made one part: its config, steps, seconds and last metrics."""
  run = pathlib.Path(_RUNS.value) / stage
  lines = (run / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  return {
    "config": json.loads((run / "config.json").read_text()),
    "steps": last.pop("step"),
    "seconds": round(last.pop("seconds")),
    "last_metrics": {k: v for k, v in last.items() if k != "wall_s"},
  }


def main(_):
  """Writes, measures, describes."""
  output = pathlib.Path(_OUTPUT.value)
  for stage in _STAGES:
    if not (pathlib.Path(_RUNS.value) / stage / "DONE").exists():
      raise ValueError(f"--runs: {stage} has not finished training")
  output.mkdir(parents=True, exist_ok=True)
  write_weights(pathlib.Path(_MODEL.value), output)
  judge = shapes_judge.load(output / "judge")
  files = sorted(p for p in output.rglob("*") if p.is_file())
  card = {
    "what": "A tiny Stable Diffusion of the Shapes world, trained from its "
    "configs by this project's own loop; the judge shares nothing with it.",
    "sampling": _SAMPLING,
    "judge_on_heldout_renders": measure_judge(judge),
    "model_on_heldout_prompts": measure_model(output, judge),
    "columns": ["accuracy", "wilson_low", "wilson_high", "right", "n"],
    "training": {stage: training(stage) for stage in _STAGES},
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


if __name__ == "__main__":
  app.run(main)
