"""Times erasures of one kind in one program, and one after the other.

The Shapes model, a star, ten seeds: the edits of `sweep --pack=10`, and two of
them alone. CPU seconds, with what is drawn before and without the probe; the
first call compiles, the second does not. `apart` is the distance of a packed
edit from the one that is made alone, as a share of the change.

  python benchmarks/packed_erasures.py --method=esd --steps=10 \
    --out=benchmarks/results/packed_erasures.json

A later start with another method adds to the record. Some four minutes on one
core. On several devices they share the pack.
"""

import contextlib
import datetime
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

import unlearning_jax as ul
from unlearning_jax import extensions
from unlearning_jax.experiments import erase, erase_together, hooks
from unlearning_jax.projections import leaves_of
from unlearning_jax.record.workdir import Workdir

METHOD = flags.DEFINE_string("method", "esd", "The erasure.")
STEPS = flags.DEFINE_integer("steps", 10, "Training steps.")
LANES = flags.DEFINE_integer("lanes", 10, "Edits in one program.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")


def timed(function: Any) -> tuple[Any, float]:
  """What a function returns, and its CPU seconds."""
  before = time.process_time()
  return function(), round(time.process_time() - before, 1)


def settings(seed: int) -> erase.Settings:
  """The recipe of Shapes, with fewer steps."""
  world = extensions.world("shapes")
  recipe = dict(world.hparams(METHOD.value, "object"))
  recipe["num_steps"] = STEPS.value
  return erase.Settings(
    method=METHOD.value, hparams=recipe, seed=seed, edit_only=True,
    concepts=world.erased_concepts("object", ("star",), METHOD.value),
  )  # fmt: skip


def main(_):
  """Measures, prints and records."""
  model, each = ul.load("shapes"), [settings(i) for i in range(LANES.value)]
  # It is no part of what is compared.
  erase.probed = lambda *args, **options: None
  base = leaves_of(model.params)
  found: dict[str, Any] = {
    "lanes": LANES.value, "steps": STEPS.value, "packed": [], "alone": [],
    "apart": [], "devices": jax.device_count(), "jax": jax.__version__,
    "date": datetime.date.today().isoformat(),
  }  # fmt: skip
  with tempfile.TemporaryDirectory() as folder:
    for turn in range(2):
      wanted = [
        erase_together.Wanted(
          one, Workdir(f"{folder}/{turn}-{one.seed}", {}), model,
          contextlib.nullcontext,
        )
        for one in each
      ]  # fmt: skip
      _, spent = timed(lambda wanted=wanted: erase_together.make(wanted))
      found["packed"].append(spent)
    # The first compiles.
    for one in (wanted[0], wanted[0], wanted[-1]):
      given, path = one.settings, pathlib.Path(tempfile.mkdtemp(dir=folder))
      own = hooks.recorded(Workdir(path / "run", {}), 100)
      edit, spent = timed(
        lambda given=given, path=path, own=own: erase.made(
          path / "edit.safetensors", model, given.erasure, given.phrases,
          given.seed, own,
        )
      )  # fmt: skip
      found["alone"].append(spent)
      packed = erase.read(one.path)
      far, size = (
        sum(np.square(edit.tensors[k] - to[k]).sum() for k in edit.tensors)
        for to in (packed.tensors, base)
      )
      found["apart"].append(float(np.sqrt(far / size)))
  print(json.dumps(found))
  if OUT.value:
    out = pathlib.Path(OUT.value)
    record = json.loads(out.read_text()) if out.exists() else {}
    record[METHOD.value] = found
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
