"""Times the probe beside the edit at Stable Diffusion 1.4 size.

Random weights: the text encoder and the 32 key and value projections of the
UNet, as in `closed_form_sd14.py`; nothing else of it is read. Two edits by UCE:
one concept that preserves nothing, the fastest edit there is, and one that
preserves the 90 phrases of the list `everyday`, as `ul.erase` supplies it.

  python benchmarks/probe_cost.py --out=benchmarks/results/probe_cost.json

CPU seconds, medians of warm calls: on a busy machine they alone compare. For
one thread set OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false. A minute on one core.

What is drawn, after training and for guidance, costs as many UNet calls as
`unet_calls` says; the record counts them beside those of the edits.
"""

import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app

from unlearning_jax import erasures, lists
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit
from unlearning_jax.model import Model
from unlearning_jax.probe import drawings
from unlearning_jax.probe.measure import measure

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import closed_form_sd14  # noqa: E402


def cpu_seconds(function: Callable[[], Any]) -> float:
  """The median CPU time of warm calls."""
  function()
  spent = []
  for _ in range(closed_form_sd14.REPEATS.value):
    start = time.process_time()
    function()
    spent.append(time.process_time() - start)
  return statistics.median(spent)


def drawn_calls() -> dict[str, int]:
  """UNet calls of the probe that draws, of base and edit together."""
  concepts, held, others = drawings.MOST
  rows = 3 * concepts + held + others
  plain = rows * 2 * drawings.STEPS
  return {"weights": 2 * plain, "sld": plain + rows * 3 * drawings.STEPS}


def main(_):
  """Times both edits and their probes, and writes the record."""
  sd, params = closed_form_sd14.model()
  base, bound = Model(sd, params), erasures.bind("uce", {})
  found = {}
  for name, held in (("alone", ()), ("held", lists.load("everyday"))):
    concepts = (Concept("church", "", held),)

    def erase(listed: tuple[Concept, ...] = concepts) -> Edit:
      made = bound(sd, params, listed, jax.random.key(0))
      assert isinstance(made, Edit)
      return made

    edit = erase()
    times = {
      "edit": cpu_seconds(erase),
      "probe": cpu_seconds(lambda e=edit, c=concepts: measure(base, e, c)),
    }
    times["share"] = times["probe"] / times["edit"]
    found[name] = {key: round(value, 4) for key, value in times.items()}
    print(name, found[name], flush=True)
  record = {
    "what": __doc__.splitlines()[0],
    "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    "load_average": os.getloadavg(),
    "repeats": closed_form_sd14.REPEATS.value,
    "cpu_seconds": found,
    "unet_calls_of_drawing": drawn_calls(),
  }
  if closed_form_sd14.OUT.value:
    pathlib.Path(closed_form_sd14.OUT.value).write_text(
      json.dumps(record, indent=2) + "\n"
    )


if __name__ == "__main__":
  app.run(main)
