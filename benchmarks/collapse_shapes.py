"""Figures of `metrics.collapse` for spoiled pictures and for erasures.

  python benchmarks/collapse_shapes.py \
    --out=benchmarks/results/collapse_shapes.json

100 held-out prompts that do not ask for a star, 15 steps at guidance 4. The
pictures of the base are spoiled: noise, one color, blur of some radius in
pixels, squares of some side in another order, another prompt's picture. The
erasures take a star away, each by the world's own recipe; what is drawn for the
same prompts should not change. The limit `far` of the Shapes judge lies between
both.
"""

import json
import pathlib
import warnings

import numpy as np
from absl import app, flags
from PIL import Image, ImageFilter

import unlearning_jax as ul
from unlearning_jax import extensions, sharding
from unlearning_jax.metrics import accuracy, collapse
from unlearning_jax.model import Model

OUT = flags.DEFINE_string("out", None, "The record, JSON.", required=True)
METHODS = flags.DEFINE_list(
  "methods", ["uce", "rece", "esd-x", "esd-u"], "Erasures."
)
STAR = {"task": "object", "name": "star"}


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
  """Gaussian blur."""
  soft = ImageFilter.GaussianBlur(radius)
  return np.stack([np.asarray(Image.fromarray(i).filter(soft)) for i in images])


def in_pieces(images: np.ndarray, side: int) -> np.ndarray:
  """Squares of that side in another order."""
  rng, n = np.random.default_rng(0), images.shape[1] // side
  cut = images.reshape(len(images), n, side, n, side, 3).swapaxes(2, 3)
  cut = cut.reshape(len(images), n * n, side, side, 3)
  mixed = np.stack([rng.permutation(one) for one in cut])
  mixed = mixed.reshape(len(images), n, n, side, side, 3).swapaxes(2, 3)
  return mixed.reshape(images.shape)


def spoiled(images: np.ndarray) -> dict[str, np.ndarray]:
  """What no longer shows what prompts ask for."""
  rng = np.random.default_rng(0)
  found = {
    "noise": rng.integers(0, 256, images.shape, np.uint8),
    "gray": np.full_like(images, 128),
    "black": np.zeros_like(images),
    "of other prompts": np.roll(images, 7, axis=0),
    "one picture for all": np.repeat(images[:1], len(images), axis=0),
  }
  found |= {f"blurred, {r} px": blurred(images, r) for r in (1, 2, 3, 5)}
  found |= {
    f"shuffled, {side} px": in_pieces(images, side) for side in (1, 4, 8, 16)
  }
  return found


def erased(base: Model, method: str) -> Model:
  """The base without stars; `esd-x` and `esd-u` are ESD's two variants."""
  name, _, train = method.partition("-")
  world = extensions.world("shapes")
  options = world.hparams("esd", "object", train) if train else {}
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ul.ErasureWarning)
    return ul.erase(base, "star", method=name, **options)


def main(_):
  """Measures what the record lacks, and writes it after each."""
  world, out = extensions.world("shapes"), pathlib.Path(OUT.value)
  record = json.loads(out.read_text()) if out.exists() else {}
  record["devices"] = sharding.describe_devices()
  rows = [
    row
    for row in world.prompt_rows([STAR], 1, 100, 0)
    if row["group"] == "others"
  ]
  judge, base = world.judge(), ul.load("shapes")

  def drawn(model: Model) -> np.ndarray:
    return model.generate(
      [row["prompt"] for row in rows], [row["seed"] for row in rows],
      num_inference_steps=15, guidance_scale=4.0, sampler="dpm++2m",
    )  # fmt: skip

  def judged(images: np.ndarray) -> list[dict]:
    scores = judge(images)
    found = accuracy.judge_rows(rows, scores, judge)
    looks = collapse.pixels(images)
    for i, (row, look) in enumerate(zip(found, looks, strict=True)):
      row["scores"] = {head: s[i].tolist() for head, s in scores.items()}
      row |= {"model": "model", "pixels": look}
    return found

  pictures = drawn(base)
  before = judged(pictures)
  sources = {name: lambda i=i: i for name, i in spoiled(pictures).items()}
  sources |= {m: lambda m=m: drawn(erased(base, m)) for m in METHODS.value}
  measured = record.setdefault("measured", {})
  for name, source in sources.items():
    if name not in measured:
      found = collapse.reasons(before, judged(source()), judge)
      measured[name] = found["figures"] | {"reasons": found["reasons"]}
      out.write_text(json.dumps(record, indent=1) + "\n")
      print(name, measured[name], flush=True)


if __name__ == "__main__":
  app.run(main)
