"""Audits victims of known state, to see whether the verdicts are right.

  for seed in 0 1 2; do
    python benchmarks/audit_truth.py --workdir=runs/truth-$seed --seed=$seed \
      --out=benchmarks/results/audit_truth.json
  done

The victims: the base itself; a good UCE and RECE; an erasure of other words,
which misses; one that erases a second class; a model whose readers of text are
random. Only the evaluation runs, so `attacked` and `stays` are not shown.
"""

import dataclasses
import functools
import json
import pathlib

from absl import app, flags
from unlearning_jax.configs import audit as configs

import unlearning_jax as ul
from unlearning_jax import settings
from unlearning_jax.experiments import audit, common
from unlearning_jax.experiments.attack import victims

WORKDIR = flags.DEFINE_string("workdir", None, "The folder.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Of prompts, noise and erasures.")
OUT = flags.DEFINE_string("out", None, "The record, which gets this seed.")
_ROWS = "other_rows=120,rows_per_group=20"


def made(base: ul.Model, seed: int) -> dict[str, ul.Model]:
  """The victims by name."""
  star = ul.concept(base, "star")
  held = star.concepts[0].preserve
  misses = ul.Concept("stellar thing", anchor="circle", preserve=held)
  erase = functools.partial(ul.erase, base, seed=seed)
  random = victims.scrambled(base.params, seed)
  return {
    "original": base,
    "uce": erase(star, "uce"),
    "rece": erase(star, "rece"),
    "misses": erase([misses], "uce"),
    "neighbor": erase("star+moon", "uce"),
    "collapsed": dataclasses.replace(base, params=random),
  }


def main(_):
  """Audits all victims at once."""
  base = ul.load("shapes")
  protocol = f"shapes-star~{_ROWS},seed={SEED.value}"
  values = configs.values(protocol, only=("evaluate",))
  found = audit.run(
    settings.build(audit.Settings, values),
    lambda: common.workdir(WORKDIR.value, values, audit.Settings),
    {"base": base, **made(base, SEED.value)},
  )
  print(audit.printed(found, WORKDIR.value))
  if OUT.value:
    out = pathlib.Path(OUT.value)
    seeds = json.loads(out.read_text()) if out.exists() else {}
    keys = ("victim", "question", "verdict", "k", "n")
    seeds[f"{SEED.value}"] = [
      {key: one[key] for key in keys}
      for one in found["verdicts"]
      if one["question"] not in ("attacked", "stays")
    ]
    lines = (
      f' "{seed}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
      for seed, rows in sorted(seeds.items())
    )
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
  app.run(main)
