"""Times AdvUnlearn's step with its bank of trajectories and without.

  python benchmarks/advunlearn_bank.py \
    --out=benchmarks/results/advunlearn_bank.json

The Shapes model at the paper's settings: 50 sampling steps, 30 updates of the
attack, one attacked phrase and five retained prompts a step. Both forms make
the same draws, in turn, after compiling; their losses are compared. `rows`
counts the rows that the UNet reads, forward, as they are run: a bank saves
those of the trajectories. Drawing the bank is timed beside it.
"""

import datetime
import json
import platform
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import Hooks, advunlearn

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
STEPS = flags.DEFINE_integer("steps", 3, "Timed steps of each form.")
SAMPLING = flags.DEFINE_integer("sampling", 50, "Steps of a trajectory.")
UPDATES = flags.DEFINE_integer("updates", 30, "Of one attack.")

RETAINED = (
  "a circle", "a red house", "a blue fish", "a moon", "a green ring",
)  # fmt: skip


class Counter:
  """Counts the rows that `predict_noise` is run on."""

  def __init__(self):
    self.rows, self.real = 0, stable_diffusion.predict_noise

  def __call__(self, sd, params, latents, *rest):
    """Predicts, and counts when it is run, not when it is traced."""
    count = len(latents)
    jax.debug.callback(lambda: self.add(count))
    return self.real(sd, params, latents, *rest)

  def add(self, count: int):
    """Adds rows."""
    self.rows += count


def prepared(model: Any, banked: bool) -> tuple[Any, ...]:
  """A compiled step's loss and gradient, and what it is called with."""
  taken: list[Any] = []

  def caught(loss, tx, trained, frozen, batches, key, **_):
    del tx
    frozen = jax.device_put(frozen)
    taken.extend([
      jax.jit(jax.value_and_grad(loss, has_aux=True)),
      trained, frozen, batches, key,
    ])  # fmt: skip
    return jax.tree.map(lambda leaf: leaf + 1, trained)

  h = advunlearn.Hparams(
    num_inference_steps=SAMPLING.value, attack_steps=UPDATES.value,
    num_trajectories=8, warmup_steps=0, banked=banked,
  )  # fmt: skip
  concepts = make_concepts("star", preserve=RETAINED)
  start = time.perf_counter()
  advunlearn.erase(
    *model, concepts, jax.random.key(0), h, Hooks(trainer=caught)
  )
  return (*taken, time.perf_counter() - start)


def main(_):
  """Times both forms in turn."""
  counter = Counter()
  stable_diffusion.predict_noise = counter
  model = shapes_model()
  forms = {name: prepared(model, name == "bank") for name in ("bank", "none")}
  record: dict[str, Any] = {name: {"seconds": [], "rows": []} for name in forms}
  losses: dict[str, list[float]] = {name: [] for name in forms}
  for step in range(-1, STEPS.value):
    for name, (loss, trained, frozen, batches, key, _) in forms.items():
      counter.rows, start = 0, time.perf_counter()
      own = jax.random.fold_in(key, step + 1)
      (value, _), _ = jax.block_until_ready(
        loss(trained, frozen, batches[step + 1], own)
      )
      seconds = time.perf_counter() - start
      jax.effects_barrier()
      if step < 0:
        continue
      record[name]["seconds"].append(seconds)
      record[name]["rows"].append(counter.rows)
      losses[name].append(float(value))
      print(name, step, f"{seconds:.2f} s", counter.rows, "rows", flush=True)
  np.testing.assert_allclose(losses["bank"], losses["none"], rtol=1e-3)
  for key in ("seconds", "rows"):
    ratio = np.sum(record["none"][key]) / np.sum(record["bank"][key])
    record[f"{key}_ratio"] = float(ratio)
    print(f"{key}: without a bank {ratio:.1f} times as many")
  record |= {
    "drawing_the_bank_seconds": forms["bank"][-1],
    "losses": losses,
    "settings": {"sampling": SAMPLING.value, "updates": UPDATES.value},
    "device": f"{jax.devices()[0].device_kind}, {platform.processor()}",
    "jax": jax.__version__,
    "date": datetime.date.today().isoformat(),
  }
  if OUT.value:
    with open(OUT.value, "w", encoding="utf-8") as file:
      json.dump(record, file, indent=1)


def shapes_model():
  """The embedded model."""
  return stable_diffusion.load(shapes.model_folder())


if __name__ == "__main__":
  app.run(main)
