"""The results of an attack: rates, a comparison with its control, a page."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import metrics, pictures
from unlearning_jax.experiments.attack import networks
from unlearning_jax.experiments.attack.control import Control, own
from unlearning_jax.experiments.attack.doubts import base_shows, collapsed
from unlearning_jax.experiments.attack.settings import Settings
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.experiments.tallies import Tallies
from unlearning_jax.metrics import asr
from unlearning_jax.record import Recorder
from unlearning_jax.report import attack as page
from unlearning_jax.report import tables
from unlearning_jax.stable_diffusion import StableDiffusion

Row = Mapping[str, Any]


def conclude(
  record: Recorder,
  setup: Setup,
  control: Control,
  targets: pathlib.Path,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes `summary.json`, `results.csv` and `report.html`.

  Args:
    record: the record, with all rows.
    setup: the attack.
    control: the run to compare with.
    targets: the folder of the target images, `<id>.png` each.
    notes: sentences for the page.

  Returns:
    The content of `summary.json`; empty where another process writes it.

  Raises:
    FloatingPointError: every row that was attacked broke off.
  """
  given = setup.given
  every = sorted(record.rows(), key=lambda row: row["number"])
  records = own(every)
  asr.check_finite(records)
  document: dict[str, Any] = {"title": given.title, "about": _about(setup)}
  document |= rates(records)
  document["curves"] = asr.curves(records)
  if control.rows:
    compared = asr.against(records, control.rows)
    theirs = {"name": control.name, **rates(control.rows)}
    document["control"] = theirs | {"paired": compared}
  beside = networks.compared(every)
  if beside:
    document["networks"] = {
      name: {**rates(one["rows"]), "paired": one["paired"]}
      for name, one in beside.items()
    }
  if said := networks.reading(given, beside):
    document["reading"] = said
  if not record.is_writer:
    return {}
  if given.metrics:
    found = estimates(record, setup, records)
    document["estimates"] = [one.plain() for one in found]
  document["unsafe"] = is_unsafe(given)
  if notes:
    document["notes"] = list(notes)
  if why := collapsed(record, records, targets, setup):
    document["collapsed"] = why
  if shown := base_shows(setup, records, targets):
    document["base_shows"] = shown
  if setup.held:
    document["victim_file"] = dict(setup.held)
  document["gallery"] = [
    frame(record, setup.sd, row, targets)
    for row in chosen(records, given.grid_rows)
  ]
  record.save_summary(document)
  lines = document["measures"] + [
    {**m, "name": f"{name}/{m['name']}"}
    for name, one in document.get("networks", {}).items()
    for m in one["measures"]
  ]
  record.write("results.csv", to_csv(lines))
  text = page.render(document, record.path, record.provenance)
  record.write("report.html", text)
  return document


def _about(setup: Setup) -> dict[str, str]:
  """What the page's first line names."""
  given = setup.given
  concepts = [t.get("name", t.get("label", "")) for t in given.targets]
  victim = given.victim or ", ".join(setup.edits) or setup.name[:12]
  return {
    "method": given.method,
    "victim": victim,
    "base": given.model,
    "concept": ", ".join(f"“{name}”" for name in concepts if name),
  }


def rates(records: Sequence[Row]) -> dict[str, Any]:
  """Counts, rates with their intervals, and the rate by number of images."""
  return {
    "accounting": asr.accounting(records),
    "measures": [m._asdict() for m in asr.measure(records)],
    "by_images": [m._asdict() for m in asr.by_images(records)],
  }


def estimates(
  record: Recorder, setup: Setup, records: Sequence[Row]
) -> Iterator[metrics.Estimate]:
  """The estimates of the metrics that the settings name.

  A metric of attacks alone reads the records. Any other metric reads a row for
  each kept image, in the group `prompt` or `attack`.
  """
  names = setup.given.image_metrics
  tallies, drawn = Tallies(record, names), []
  for row in records if names else ():
    images, rows = _images(record, setup, row)
    tallies.update(images, rows)
    drawn += rows
  found = tallies.estimates(drawn)
  for name in setup.given.metrics:
    own = [{**row, "model": row["victim"]} for row in records]
    yield from found.get(name) or metrics.load(name).measure(own)


def is_unsafe(given: Settings) -> bool:
  """Whether images are blurred; True where no target says what they show."""
  tasks = {target.get("task", "unsafe") for target in given.targets}
  return not tasks or "unsafe" in tasks


def chosen(records: Iterable[Row], count: int) -> list[Row]:
  """Rows for the gallery: won or not judged ones, and up to two lost ones."""
  seen = [
    row for row in records if row["blocks"] and row["blocks"][-1].get("image")
  ]
  lost = [row for row in seen if row["success"] is False][:2]
  won = [row for row in seen if row["success"] is not False]
  return (won[: max(0, count - len(lost))] + lost)[:count]


def frame(
  record: Recorder, sd: StableDiffusion, row: Row, targets: pathlib.Path
) -> dict[str, Any]:
  """A row of the gallery: its texts, and three images from one seed."""
  last = row["blocks"][-1]
  images = {
    "base": targets / f"{row['id']}.png",
    "no attack": record.path / (row["pre_image"] or "-"),
    "attack": record.path / last["image"],
  }
  keys = ("text", "score", "roundtrip")
  return {
    **{key: row[key] for key in ("id", "prompt", "seed", "success")},
    **{key: last[key] for key in keys if key in last},
    "pre_score": row["pre_score"],
    "attack_seed": last["seed"],
    "block": len(row["blocks"]),
    "tokens": _tokens(sd, last.get("ids", ())),
    "images": {
      stage: _own(record, path, f"shown/{row['id']}-{stage.replace(' ', '-')}")
      for stage, path in images.items()
      if path.is_file()
    },
  }


def to_csv(measures: Iterable[Mapping[str, Any]]) -> str:
  """A line of CSV for every rate."""
  return tables.to_csv(["name", "value", "low", "high", "k", "n"], measures)


def printed(document: Mapping[str, Any]) -> str:
  """The summary for the terminal; empty where another process writes it."""
  if not document:
    return ""
  lines = [document["title"], *map(_line, document["measures"])]
  if why := document.get("collapsed"):
    lines.append(f"the victim collapsed, so these rates say nothing: {why}")
  if never := page.never_shown(document):
    lines.append(never)
  for one in document.get("estimates", ()):
    value = "–" if one["value"] is None else f"{one['value']:.4g}"
    if one["low"] is not None:
      value += f" [{one['low']:.4g}, {one['high']:.4g}]"
    lines.append(f"{one['name']:20} {value}")
  lines.append(f"accounting: {document['accounting']}")
  if "control" in document:
    control = document["control"]
    lines.append(f"against {control['name']}: {control['paired']}")
  for name, one in document.get("networks", {}).items():
    lines += [f"{name}:", *map(_line, one["measures"])]
  lines += document.get("reading", ())
  return "\n".join(lines)


def _line(m: Mapping[str, Any]) -> str:
  share = f"{m['k']}/{m['n']}"
  interval = f"[{m['low']:.2f}, {m['high']:.2f}]"
  return f"{m['name']:20} {m['value']:.2f} {interval} {share:>9}"


def _images(
  record: Recorder, setup: Setup, row: Row
) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """All kept images of a row, and a row for a metric for each of them."""
  first = {
    "image": row["pre_image"],
    "text": row["prompt"],
    "seed": row["seed"],
  }
  first |= {"success": row["pre_success"], "score": row["pre_score"]}
  found, images = [], []
  for i, one in enumerate([first, *row["blocks"]]):
    if not one.get("image"):
      continue
    image = pictures.read(record.path / one["image"])
    images.append(np.asarray(image.convert("RGB")))
    found.append({
      "id": f"{row['id']}/{i}", "model": row["victim"],
      "group": "attack" if i else "prompt", "prompt": one["text"],
      "seed": one["seed"], "shown": one["success"], "score": one["score"],
    })  # fmt: skip
  every = np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
  if setup.judge is not None and found:
    seen = setup.judge.decide(setup.judge(every))
    found = [r | {"judged": j} for r, j in zip(found, seen, strict=True)]
  return every, found


def _tokens(sd: StableDiffusion, ids: Sequence[int]) -> list[str]:
  """The tokens that were optimized, before they became text."""
  special = {sd.tokenizer.bos_token_id, sd.tokenizer.eos_token_id}
  kept = [i for i in ids if i not in special]
  return sd.tokenizer.convert_ids_to_tokens(kept)


def _own(record: Recorder, path: pathlib.Path, name: str) -> str:
  """The path within the run; an image from elsewhere is copied into it."""
  path = path.resolve()
  if path.is_relative_to(record.path.resolve()):
    return path.relative_to(record.path.resolve()).as_posix()
  image = pictures.read(path).convert("RGB")
  return record.save_image(name, np.asarray(image))
