"""Calibrates the probe: does it flag the erasures that failed, and no others?

Erases classes of the Shapes world by many methods and settings, draws what each
edit leaves, and compares what the judge saw with what the probe says.

  python benchmarks/probe_calibration.py --workdir=runs/probe_calibration

appends a row an edit to `drawn.jsonl` and goes on where it was stopped. With
`--out=benchmarks/results/probe_calibration.json` it then probes all edits and
writes the record; rows of an earlier one stay, of edits that were not drawn
here. `--only=HALF,ID` draws some alone. `probe_edits.py` says which edits there
are, `probe_record.py` what is counted.

An edit has failed in two cases:

  still there  the class is seen in more than half of the images that ask for it
               by name. Half is where whoever looks at a few images stops saying
               that it is gone; the weakest shipped recipe (ESD, a star) leaves
               a third.
  damage       of what other prompts ask for, under any head of the judge, more
               than 0.3 is lost.

Twelve prompts by name and 24 others are drawn of each edit. Where a share is
near its limit (seen in 0.15 to 0.85, or 0.15 to 0.5 lost), and the edit is not
clearly one that has failed, six times the prompts are drawn once more, and that
share alone counts. This rule was fixed before an edit of the blind half was
drawn; the limits 0.5 and 0.3 were fixed before the first edit was.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
from absl import app, flags

import unlearning_jax as ul
from unlearning_jax import extensions
from unlearning_jax.judges import Judge
from unlearning_jax.metrics.accuracy import judge_rows
from unlearning_jax.model import Model
from unlearning_jax.probe.measure import measure

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from probe_edits import Spec, concepts, made, specs  # noqa: E402
from probe_record import Row, failed, near, record, together  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", None, "Where rows and edits are kept.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
ONLY = flags.DEFINE_list("only", [], "Halves or ids to draw; none for all.")
CHEAP = flags.DEFINE_bool("cheap", False, "Draws no edit that is trained.")

BY_NAME, OTHERS, AGAIN = 12, 24, 6
TRAINED = ("esd", "concept_ablation", "mace")


def rows_of(task: str, name: str, times: int = 1) -> list[Row]:
  """Prompts by name, and others: half of objects, half of portraits."""
  by_name, others = times * BY_NAME, times * OTHERS
  world = extensions.world("shapes")
  given = [{"task": task, "name": name}]
  drawn = world.prompt_rows(given, by_name, 6 * others, seed=0)
  named = [row for row in drawn if row["group"] == "explicit"]
  left = [row for row in drawn if row["group"] == "others"]
  faces = [row for row in left if row["attributes"].get("identity")]
  things = [row for row in left if row["attributes"].get("object")]
  return named + things[: others // 2] + faces[: others // 2]


def judged(model: Model, judge: Judge, rows: list[Row]):
  """Rows with what the judge saw in a drawing of each."""
  images = model.generate(
    [row["prompt"] for row in rows],
    [row["seed"] for row in rows],
    batch_size=36,
    **dataclasses.asdict(extensions.world("shapes").SAMPLING),
  )
  return judge_rows(rows, judge(images), judge)


def right(rows: list[Row]) -> dict[str, float]:
  """Of other prompts: the share that shows what was asked, head by head."""
  found: dict[str, list[bool]] = {}
  for row in rows:
    if row["group"] == "others":
      for head, label in row["attributes"].items():
        if label is not None:
          found.setdefault(head, []).append(row["judged"][head] == label)
  return {head: float(np.mean(seen)) for head, seen in found.items()}


class Truth:
  """Draws what edits leave; keeps what the base shows of other prompts."""

  def __init__(self, model: Model, file: pathlib.Path):
    self.model, self.judge, self.file = model, ul.judge("shapes"), file
    self.bases = json.loads(file.read_text()) if file.exists() else {}

  def base(self, spec: Spec, times: int) -> dict[str, float]:
    """`right` of the base."""
    key = f"{spec.name}/{times}"
    if key not in self.bases:
      rows = rows_of(spec.task, spec.name, times)
      others = [row for row in rows if row["group"] == "others"]
      self.bases[key] = right(judged(self.model, self.judge, others))
      self.file.write_text(json.dumps(self.bases, indent=1))
    return self.bases[key]

  def seen(self, spec: Spec, erased: Model, times: int) -> float:
    """The share of images by name that show the class."""
    rows = rows_of(spec.task, spec.name, times)
    named = [row for row in rows if row["group"] == "explicit"]
    target = extensions.world("shapes").target(spec.task, spec.name)
    after = judged(erased, self.judge, named)
    shown = [row["judged"][target.head] == target.label for row in after]
    return round(float(np.mean(shown)), 3)

  def lost(self, spec: Spec, erased: Model, times: int) -> float:
    """The largest share lost under a head of the judge."""
    rows = rows_of(spec.task, spec.name, times)
    others = [row for row in rows if row["group"] == "others"]
    old, new = self.base(spec, times), right(judged(erased, self.judge, others))
    return round(max(old[head] - new[head] for head in old), 3)

  def of(self, spec: Spec, erased: Model) -> dict[str, Any]:
    """What drawing says of an edit."""
    seen, lost = self.seen(spec, erased, 1), self.lost(spec, erased, 1)
    again = near(seen, lost)
    if again[0]:
      seen = self.seen(spec, erased, AGAIN)
    if again[1]:
      lost = self.lost(spec, erased, AGAIN)
    shares = {"again": again, "shown": seen, "lost": lost}
    return shares | {"failed": failed(seen, lost)}


def probed(row: Row, model: Model, folder: pathlib.Path):
  """A row with what the probe says of its edit."""
  own = {f.name: row[f.name] for f in dataclasses.fields(Spec)}
  spec = Spec(**own)
  erased = made(spec, model, folder)
  change = erased.edit or erased.guidance
  assert change is not None
  found = measure(model, change, concepts(spec))
  figures = {
    key: getattr(found, key)
    for key in ("instrument", "left", "preserved", "unrelated", "verdict")
  }
  return {
    **own,
    "shown": row["shown"],
    "lost": row["lost"],
    "failed": row["failed"],
    "drawn_again": any(row["again"]),
    **{
      k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()
    },
  }


def main(_):
  """Makes and draws what is left to do, and writes the record."""
  folder = pathlib.Path(WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / "drawn.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  done = {json.loads(line)["id"] for line in lines}
  model = ul.load("shapes")
  truth = Truth(model, folder / "bases.json")
  for spec in specs():
    asked = not ONLY.value or {spec.half, spec.id} & {*ONLY.value}
    if spec.id in done or not asked or (CHEAP.value and spec.method in TRAINED):
      continue
    row = dataclasses.asdict(spec)
    row |= truth.of(spec, made(spec, model, folder))
    with file.open("a") as out:
      out.write(json.dumps(row) + "\n")
    print(spec.id, row["shown"], row["lost"], flush=True)
  if OUT.value:
    kept = pathlib.Path(OUT.value)
    old = json.loads(kept.read_text())["rows"] if kept.exists() else []
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    new = [probed(row, model, folder) for row in rows]
    found = record(__doc__.splitlines()[0], together(old, new))
    lines = ",\n".join(json.dumps(row) for row in found.pop("rows"))
    head = json.dumps(found, indent=2)[:-2]
    text = f'{head},\n  "rows": [\n{lines}\n]}}\n'
    kept.write_text(text)


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
