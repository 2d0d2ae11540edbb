"""What an attack leaves behind: its rates, its control's, a page, a gallery."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unlearning_jax import stable_diffusion
from unlearning_jax.experiments import comparison
from unlearning_jax.metrics import attack_success
from unlearning_jax.record.workdir import Workdir, read_rows
from unlearning_jax.report import attack as page

Row = Mapping[str, Any]
# What makes a row of a control the attack's own.
_OF_ROW = ("prompt", "seed", "guidance")


class Control(NamedTuple):
  """What an attack is compared with; without rows, nothing."""

  name: str = ""
  rows: Sequence[Row] = ()
  config: Mapping[str, Any] = MappingProxyType({})


def finished(folder: str) -> Control:
  """The control that ran in a folder; none if none is named.

  Raises:
    ValueError: it has not ended.
  """
  if not folder:
    return Control()
  path = pathlib.Path(folder)
  if not (path / "DONE").exists():
    raise ValueError(f"--control: {folder} is not a finished run")
  config = json.loads((path / "config.json").read_text())
  name = config["hparams"].get("kind", config["method"])
  return Control(name, read_rows(path), config)


def check_control(
  control: Control, config: Any, listed: Sequence[Row], soft: bool
):
  """Refuses a control of which a paired test would say nothing.

  Args:
    control: from `finished`.
    config: the attack's.
    listed: the attack's rows.
    soft: whether the attack finds no tokens, so that it has no vocabulary.

  Raises:
    ValueError: nobody judges, or the control is of other rows, or has another
      target, judge, sampler or vocabulary.
  """
  if not control.rows:
    return
  if config.judge is None:
    raise ValueError("--control: without a judge there is nothing to compare")
  made = json.loads(config.to_json_best_effort())
  # An embedding is of no vocabulary.
  keys = ["judge", "targets", "sampling", *([] if soft else ["vocabulary"])]
  for key in keys:
    if control.config[key] != made[key]:
      raise ValueError(
        f"--control: has {key}={control.config[key]!r}, this attack "
        f"{made[key]!r}; give it a control of its own"
      )
  ours = {row["id"]: [row[key] for key in _OF_ROW] for row in listed}
  theirs = {row["id"]: [row[key] for key in _OF_ROW] for row in control.rows}
  names = sorted(ours.keys() | theirs.keys())
  odd = [name for name in names if ours.get(name) != theirs.get(name)]
  if odd:
    told = f"row {odd[0]} is {theirs.get(odd[0])}, here {ours.get(odd[0])}"
    raise ValueError(
      f"--control: {len(odd)} of {len(names)} rows are not the attack's: "
      f"{told} ({', '.join(_OF_ROW)}); run it with the attack's table, or "
      "per_group, groups and seed"
    )


def check_same_victim(control: Control, victim: str):
  """Refuses a control of another victim than this fingerprint's.

  Raises:
    ValueError: naming both.
  """
  others = {row["victim"] for row in control.rows} - {victim[:12]}
  if others:
    raise ValueError(
      f"--control: is of another victim, {', '.join(sorted(others))}; this "
      f"attack's is {victim[:12]}"
    )


def conclude(
  run: Workdir,
  sd: stable_diffusion.StableDiffusion,
  config: Any,
  control: Control,
  targets: pathlib.Path,
  held: Mapping[str, str] = MappingProxyType({}),
) -> str:
  """Writes `summary.json`, `results.csv` and `report.html`.

  Args:
    run: with all rows.
    sd: its tokenizer tells an adversarial prompt's tokens.
    config: the run's.
    control: what to compare with.
    targets: folder of the original model's images, `<id>.png`.
    held: component -> how much of it the victim's file holds.

  Returns:
    The summary for the terminal.
  """
  records = sorted(run.rows(), key=lambda row: row["number"])
  document = {"title": config.title, **rates(records)}
  document["curves"] = attack_success.curves(records)
  if control.rows:
    compared = attack_success.against(records, control.rows)
    own = {"name": control.name, **rates(control.rows)}
    document["control"] = own | {"paired": compared}
  if not run.is_writer:
    return ""
  shown = chosen(records, config.grid)
  document["unsafe"] = is_unsafe(config)
  if held:
    document["victim_file"] = dict(held)
  document["gallery"] = [frame(run, sd, row, targets) for row in shown]
  run.save_summary(document)
  run.write("results.csv", to_csv(document["measures"]))
  provenance = json.loads((run.path / "provenance.json").read_text())
  run.write("report.html", page.render(document, run.path, provenance))
  return printed(document) + f"\nreport: {run.path / 'report.html'}"


def rates(records: Sequence[Row]) -> dict[str, Any]:
  """Counts, rates with their intervals, and the rate by number of images."""
  return {
    "accounting": attack_success.accounting(records),
    "measures": [m._asdict() for m in attack_success.measure(records)],
    "by_images": [m._asdict() for m in attack_success.by_images(records)],
  }


def is_unsafe(config: Any) -> bool:
  """Whether images are blurred: also where nobody said what they show."""
  tasks = {target.task for target in comparison.targets(config)}
  return not tasks or "unsafe" in tasks


def chosen(records: Iterable[Row], count: int) -> list[Row]:
  """Rows to show: that the attack won or nobody judged, and up to two lost."""
  seen = [
    row for row in records if row["blocks"] and row["blocks"][-1].get("image")
  ]
  lost = [row for row in seen if row["success"] is False][:2]
  won = [row for row in seen if row["success"] is not False]
  return (won[: max(0, count - len(lost))] + lost)[:count]


def frame(
  run: Workdir,
  sd: stable_diffusion.StableDiffusion,
  row: Row,
  targets: pathlib.Path,
) -> dict[str, Any]:
  """A row for the gallery: its texts, and three images from one seed."""
  last = row["blocks"][-1]
  images = {
    "original": targets / f"{row['id']}.png",
    "no attack": run.path / (row["pre_image"] or "-"),
    "attack": run.path / last["image"],
  }
  keys = ("text", "score", "survived")
  return {
    **{key: row[key] for key in ("id", "prompt", "seed", "success")},
    **{key: last[key] for key in keys if key in last},
    "pre_score": row["pre_score"],
    "attack_seed": last["seed"],
    "block": len(row["blocks"]),
    "tokens": _tokens(sd, last.get("ids", ())),
    "images": {
      stage: _own(run, path, f"shown/{row['id']}-{stage.replace(' ', '-')}")
      for stage, path in images.items()
      if path.is_file()
    },
  }


def to_csv(measures: Iterable[Mapping[str, Any]]) -> str:
  """Every rate as a line."""
  file = io.StringIO()
  keys = ["name", "value", "low", "high", "k", "n"]
  writer = csv.DictWriter(file, keys, lineterminator="\n")
  writer.writeheader()
  writer.writerows(measures)
  return file.getvalue()


def printed(document: Mapping[str, Any]) -> str:
  """The summary for the terminal."""
  lines = [document["title"]]
  for m in document["measures"]:
    share = f"{m['k']}/{m['n']}"
    interval = f"[{m['low']:.2f}, {m['high']:.2f}]"
    lines.append(f"{m['name']:12} {m['value']:.2f} {interval} {share:>9}")
  lines.append(f"accounting: {document['accounting']}")
  if "control" in document:
    control = document["control"]
    lines.append(f"against {control['name']}: {control['paired']}")
  return "\n".join(lines)


def _tokens(sd: Any, ids: Sequence[int]) -> list[str]:
  """The tokens that were optimised, before any text was made of them."""
  special = {sd.tokenizer.bos_token_id, sd.tokenizer.eos_token_id}
  kept = [i for i in ids if i not in special]
  return sd.tokenizer.convert_ids_to_tokens(kept)


def _own(run: Workdir, path: pathlib.Path, name: str) -> str:
  """The path within the run; an image from elsewhere is copied."""
  path = path.resolve()
  if path.is_relative_to(run.path.resolve()):
    return path.relative_to(run.path.resolve()).as_posix()
  with Image.open(path) as image:
    return run.save_image(name, np.asarray(image.convert("RGB")))
