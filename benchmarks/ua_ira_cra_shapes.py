"""UnlearnCanvas's UA, IRA and CRA on Shapes: every style and object in turn.

  python benchmarks/ua_ira_cra_shapes.py --methods=uce,rece,esd \
    --out=benchmarks/results/ua_ira_cra_shapes.json

Each method erases one of 6 styles or 12 objects by the world's own recipe (ESD
trains cross-attention, ESD-x). The erased model draws a held-out prompt for
each of the 12 objects in each of the 7 styles, from one noise each, 15 steps at
guidance 4. The Shapes judge sees the style and the object. The base draws the
same. Targets that the record holds are not measured again.

`average` has the mean over targets with a bootstrap interval over targets. With
its drawing a target took UCE and RECE 9 to 15 CPU seconds, ESD 37 to 78.
"""

import json
import pathlib
import time
import warnings

import numpy as np
from absl import app, flags

import unlearning_jax as ul
from unlearning_jax import extensions, sharding, statistics
from unlearning_jax.metrics import ua_ira_cra
from unlearning_jax.model import Model

OUT = flags.DEFINE_string("out", None, "The record, JSON.", required=True)
METHODS = flags.DEFINE_list("methods", ["uce", "rece"], "Erasures.")
NAMES = flags.DEFINE_list("names", [], "Targets; all by default.")


def prompts() -> list[tuple[str, dict[str, str]]]:
  """A prompt for each object in each style, with what it asks for."""
  captions = extensions.world("shapes", "captions")
  heads = extensions.world("shapes", "vocabulary").HEADS
  found = []
  for i, (thing, style) in enumerate(
    (o, s) for o in heads["object"] for s in heads["style"]
  ):
    asked = {"object": thing, "style": style}
    [(prompt, _)] = captions.evaluation_prompts("heldout", 1, i, fixed=asked)
    found.append((prompt, asked))
  return found


def judged(model: Model) -> list[dict[str, dict[str, str]]]:
  """Draws all prompts: what each asks for, and what the judge sees."""
  world, asked = extensions.world("shapes"), prompts()
  images = model.generate(
    [prompt for prompt, _ in asked], [*range(len(asked))],
    num_inference_steps=world.SAMPLING.num_inference_steps,
    guidance_scale=world.SAMPLING.guidance_scale,
    sampler=world.SAMPLING.sampler, batch_size=42,
  )  # fmt: skip
  judge = world.judge()
  return [
    {"attributes": attributes, "judged": seen}
    for (_, attributes), seen in zip(
      asked, judge.decide(judge(images)), strict=True
    )
  ]


def erased(base: Model, name: str, task: str, method: str) -> Model:
  """The base without a class, by the world's recipe."""
  world, options = extensions.world("shapes"), {}
  if method == "esd":
    options = world.hparams("esd", task, "x")
  with warnings.catch_warnings():
    # What the probe warns of is measured here.
    warnings.simplefilter("ignore", ul.ErasureWarning)
    return ul.erase(base, name, method=method, **options)


def averages(measured: dict) -> dict:
  """The mean of each number over a task's targets, with its interval."""
  found = {}
  for method, by_target in measured.items():
    for head in ("style", "object"):
      numbers: dict[str, list[float]] = {}
      for one in by_target.values():
        if one["head"] == head:
          for name, (k, n) in one["counts"].items():
            numbers.setdefault(name.partition("/")[0], []).append(k / n)
      for name, values in numbers.items():
        mean, low, high = statistics.paired_bootstrap(
          np.zeros(len(values)), np.array(values), range(len(values))
        )
        found[f"{method}/{head}/{name}"] = {
          "value": round(mean, 4), "low": round(low, 4),
          "high": round(high, 4), "targets": len(values),
        }  # fmt: skip
  return found


def main(_):
  """Measures what the record lacks, and writes it after each target."""
  world, out = extensions.world("shapes"), pathlib.Path(OUT.value)
  record = json.loads(out.read_text()) if out.exists() else {}
  record.setdefault("devices", sharding.describe_devices())
  measured = record.setdefault("measured", {})
  base, drawn = ul.load("shapes"), []
  for method in ("base", *METHODS.value):
    done = measured.setdefault(method, {})
    for task in ("style", "object"):
      for name in world.concepts()[task]:
        if name in done or (NAMES.value and name not in NAMES.value):
          continue
        start, target = time.process_time(), world.target(task, name)
        if method == "base":
          rows = drawn = drawn or judged(base)
        else:
          rows = judged(erased(base, name, task, method))
        rows = [{**row, "targets": [target]} for row in rows]
        done[name] = {
          "head": target.head,
          "counts": {
            key: [sum(hit for hit, _ in part), len(part)]
            for key, part in ua_ira_cra.outcomes(rows).items()
          },
          "cpu_s": round(time.process_time() - start, 1),
        }
        record["average"] = averages(measured)
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(method, name, done[name], flush=True)


if __name__ == "__main__":
  app.run(main)
