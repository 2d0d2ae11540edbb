"""The page of an audit: verdicts first, then what stands behind each.

The document is the audit's `summary.json`. `title`, `victims`, `verdicts` and
`stages` must be there; the page says in words what else is missing. Paths are
relative to the run's folder.

  title, subject: {task, name, unsafe}, base: {source, fingerprint}.
  protocol, preset: their names; budget: what the preset came to, in words.
  victims: [names]; notes: [sentences].
  verdicts: [{victim, question, title, verdict, reason, rule, name, value, low,
    high, k, n, unit, rows: path, open: [parts that are undecided]}];
    question is a key of `QUESTIONS`, verdict one of `VERDICTS`.
  worst_case: [{victim, value, low, high, k, n, attacks: [names]}].
  claims: [{victim, name, claimed, value, low, high, verdict, reason}].
  published: [{row, numbers: {name: number}, source}].
  stages: [{name, title, state: done, failed, skipped or stopped, error,
    folder, command, page, seconds, unet_calls, memory_bytes}].
  pictures: [{prompt, seed, row, victim, unsafe, images: [{label, path, seen,
    words}]}].
  asr_by_images: [{victim, series, control, points: [{images, value, low, high,
    k, n}]}].
  resurgence: [{victim, train, data, points: [{step, value, low, high, k, n}]}].
  collateral: [{victim, head, label, before, after, change, low, high, n, lost,
    lost_of, lost_low, lost_high}]; `lost` of the `lost_of` pictures that the
    base drew as asked are not any more; low and high are None where resampling
    gives no interval.
  cost: [{stage, seconds, unet_calls, memory_bytes}].
  judge_errors, collapse: as in `report.document`; provenance: {runs: [...]}.
"""

import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import attacks
from unlearning_jax.metrics.verdicts import LUCK
from unlearning_jax.report import charts, colors, plot, sections, trust
from unlearning_jax.report.document import label
from unlearning_jax.report.markup import Html, command, element, interval_bar
from unlearning_jax.report.page import fill, subjects
from unlearning_jax.report.pictures import open_image, picture

Document = Mapping[str, Any]
QUESTIONS = {
  "gone": "Gone?",
  "attacked": "Holds under attack?",
  "stays": "Stays gone?",
  "kept": "Rest kept?",
  "quality": "Quality kept?",
}
VERDICTS = {"pass": "✓", "warn": "!", "fail": "✕", "not shown": "?"}
_LISTS = (
  "notes", "worst_case", "claims", "published", "pictures", "asr_by_images",
  "resurgence", "collateral", "judge_errors", "cost",
)  # fmt: skip
_TEXTS = ("protocol", "preset", "budget")
_MAPPINGS = ("subject", "base", "collapse", "provenance")
# Longest side and number of the pictures that a page may have, until it fits.
_FITS = ((256, 2000), (160, 2000), (96, 1000), (64, 500), (64, 100))
_MOST_BYTES = 10_000_000


def html(document: Document, root: pathlib.Path) -> str:
  """The page, for `report.html`; at most 10 MB, with smaller or fewer pictures.

  Args:
    document: see above.
    root: the run's folder. Pictures of the unsafe task are covered until the
      reader asks for each.

  Raises:
    ValueError: a key is missing, or a picture's path leaves the folder.
  """
  seen = _complete(document)
  own = colors.classes(seen["victims"])
  curves = colors.classes(s["series"] for s in seen["asr_by_images"])
  text = ""
  for max_px, most in _FITS:
    text = fill(
      "audit.html",
      seen["title"],
      _first(seen),
      audit=seen,
      questions=QUESTIONS,
      symbols=VERDICTS,
      colors=own,
      galleries=_galleries(seen["pictures"][:most], root, max_px),
      covered=any(frame.get("unsafe") for frame in seen["pictures"]),
      left_out=len(seen["pictures"][most:]),
      attack_charts=_attack_charts(seen, curves),
      tuning_charts=_tuning_charts(seen, own),
      sources=_sources(seen, root),
      overall={name: _overall(seen, name) for name in seen["victims"]},
      collateral=(lines := _collateral(seen)),
      changed=sum(map(_changed, lines)),
      methods=_methods(seen["asr_by_images"]),
      neighbors=_neighbors(seen["resurgence"]),
      measured=any(one.get("memory_bytes") for one in seen["cost"]),
      judge_errors=trust.judge_errors(seen["judge_errors"]),
      provenance=sections.provenance(seen["provenance"]),
      rate=_rate,
      interval=_interval,
      bar=_bar,
      called=_called,
      command=command,
      tried_by=_tried_by,
      link=_link,
      plain=sections.plain,
      percent=sections.percent,
      points=sections.points,
      duration=_duration,
      memory=_memory,
    )
    if len(text.encode()) <= _MOST_BYTES:
      break
  return text


def _complete(document: Document) -> dict[str, Any]:
  """The document with an empty value for every key that it may lack."""
  for key in ("title", "victims", "verdicts", "stages"):
    if key not in document:
      raise ValueError(
        f"report: the audit's document lacks {key!r}; it has {[*document]}"
      )
  return {
    **dict.fromkeys(_LISTS, ()),
    **dict.fromkeys(_TEXTS, ""),
    **dict.fromkeys(_MAPPINGS, {}),
    **{key: value for key, value in document.items() if value is not None},
  }


def _first(seen: Document) -> dict[str, str]:
  base, subject = seen["base"], seen["subject"]
  concepts = [f"“{subject['name']}” ({subject['task']})"] if subject else []
  protocol, _, digest = seen["protocol"].partition(" ")
  return {
    **subjects(
      seen["victims"], base.get("source", ""), base.get("fingerprint", ""),
      concepts,
    ),
    "Protocol": f"{protocol} {digest[:12]}".strip(),
    "Preset": ": ".join(filter(None, (seen["preset"], seen["budget"]))),
  }  # fmt: skip


# --- Pictures and charts ---


def _galleries(
  frames: Sequence[Document], root: pathlib.Path, max_px: int
) -> dict[str, list[Document]]:
  """Victim -> its frames, each image as markup."""
  found: dict[str, list[Document]] = {}
  for frame in frames:
    blur = bool(frame.get("unsafe"))
    shots = []
    for image in frame["images"]:
      alt = f"{frame['prompt']}, {image['label']}"
      file = root / image["path"]
      # A stage that failed may have left its picture undrawn.
      drawn = (
        picture(open_image(root, image["path"]), alt, blur=blur, max_px=max_px)
        if file.is_file()
        else element("span", "This picture is missing.", class_="missing")
      )
      shots.append({**image, "drawn": drawn})
    found.setdefault(frame["victim"], []).append({**frame, "shots": shots})
  return found


def _attack_charts(
  seen: Document, classes: Mapping[str, str]
) -> dict[str, Html]:
  """Victim -> its success rate by number of images, a line an attack."""
  series: dict[str, dict[str, Sequence[Document]]] = {}
  for one in seen["asr_by_images"]:
    name = one["series"] + (" (control)" if one.get("control") else "")
    known = [p for p in one["points"] if p["value"] is not None]
    series.setdefault(one["victim"], {})[name] = known
  named = {**classes, **{f"{n} (control)": c for n, c in classes.items()}}
  return {
    victim: plot.curves(found, named)
    for victim, found in series.items()
    if any(found.values())
  }


def _tuning_charts(seen: Document, own: Mapping[str, str]) -> list[Html]:
  """A chart for each kind of tuning and its data, a line a victim."""
  panels: dict[str, dict[str, list[charts.Point]]] = {}
  for one in seen["resurgence"]:
    points = [
      charts.Point(p["step"], p["value"], p["low"], p["high"])
      for p in one["points"]
      if p["value"] is not None
    ]
    if points:
      title = f"{one['train']}, {one['data']}"
      panels.setdefault(title, {})[one["victim"]] = points
  return [
    charts.curves(title, found, own, low=0.0, high=1.0, shares=True)
    for title, found in panels.items()
  ]


def _sources(seen: Document, root: pathlib.Path) -> dict[str, str]:
  """Stage -> the link of its rows; "" where it left none."""
  found = {}
  for one in seen["stages"]:
    path = rows(root, one["folder"]) if one["folder"] else ""
    found[one["name"]] = _link(path) if path else ""
  return found


def rows(root: pathlib.Path, folder: str) -> str:
  """The path of a stage's rows; "" where it left none.

  Each of several processes has a file of its own: then it is the folder.
  """
  found = [*(root / folder).glob("results*.jsonl")]
  one = f"{folder}/results.jsonl"
  return one if (root / one).is_file() else f"{folder}/" if found else ""


def _collateral(seen: Document) -> list[tuple[str, dict[str, Document]]]:
  """(class, victim -> its change): falls, then gains, then the unchanged."""
  rows: dict[str, dict[str, Document]] = {}
  for one in seen["collateral"]:
    name = f"{one['head']}: {one['label']}"
    rows.setdefault(name, {})[one["victim"]] = one

  def total(row: tuple[str, dict[str, Document]]) -> float:
    changes = (one["change"] for one in row[1].values())
    return sum(change for change in changes if change is not None)

  return sorted(rows.items(), key=lambda row: (not _changed(row), total(row)))


def _changed(row: tuple[str, dict[str, Document]]) -> bool:
  return any(one["change"] for one in row[1].values())


# --- Texts ---


def _overall(seen: Document, victim: str) -> str:
  """A victim's verdicts in one sentence; "" without any."""
  found = [one for one in seen["verdicts"] if one["victim"] == victim]
  passed = sum(one["verdict"] == "pass" for one in found)
  others = [
    f"“{one['title'] or QUESTIONS[one['question']]}” ({one['verdict']})"
    for one in found
    if one["verdict"] != "pass"
  ]
  left = [
    part
    for one in found
    if one["verdict"] == "pass"
    for part in one.get("open", ())
  ]
  end = f", but not {', '.join(others)}" if others else ""
  end += f". Undecided: {', '.join(left)}" if left else ""
  return f"{passed} of {len(found)} questions pass{end}." if found else ""


def _link(path: str) -> str:
  """An address below the run's folder.

  Raises:
    ValueError: the path leaves the folder.
  """
  parts = pathlib.PurePosixPath(path)
  if parts.is_absolute() or ".." in parts.parts:
    raise ValueError(f"report: {path!r} leaves the run's folder")
  return urllib.parse.quote(path)


def _is_share(one: Document) -> bool:
  bounds = [one.get(key) for key in ("value", "low", "high")]
  return not one.get("unit") and all(
    b is not None and 0 <= b <= 1 for b in bounds
  )


def _rate(one: Document) -> str:
  """The value as a percentage, or as a number with its unit."""
  if one.get("value") is None:
    return "–"
  if _is_share(one):
    return sections.percent(one["value"]).replace(" ", "\u00a0")
  return f"{sections.plain(one['value'])} {one.get('unit') or ''}".strip()


def _interval(one: Document) -> str:
  """Bounds and counts, as "0.0 to 16.1 %, 0 of 20"."""
  parts = []
  if one.get("low") is not None and one.get("high") is not None:
    low, high = one["low"], one["high"]
    parts.append(
      f"{100 * low:.1f} to {100 * high:.1f}\u00a0%"
      if _is_share(one)
      else f"{sections.plain(low)} to {sections.plain(high)}"
    )
  if one.get("k") is not None and one.get("n") is not None:
    parts.append(f"{one['k']:g} of {one['n']:g}")
  elif one.get("n") is not None:
    parts.append(f"n = {one['n']:g}")
  return ", ".join(parts)


def _called(name: str) -> str:
  """A number's name in words: `object/star/explicit` is "star by name"."""
  *_, class_, group = ("", *name.split("/"))
  return f"{class_} {label(group)}".strip() if class_ else name


def _methods(curves: Sequence[Document]) -> list[str]:
  """A sentence on each attack that an audit names as we do."""
  known = dict(zip(attacks.methods(), attacks.listing(), strict=True))
  names = dict.fromkeys(s["series"] for s in curves if not s.get("control"))
  # A line starts with the name.
  return [
    f"{name}: {known[name].removeprefix(name).strip()}"
    for name in names
    if name in known
  ]


def _neighbors(curves: Sequence[Document]) -> str:
  """The data of a tuning that is a concept's neighbors; "" for none."""
  data = (one.get("data", "") for one in curves)
  return next((name for name in data if name.endswith(":near")), "")


def _tried_by(attacks: Sequence[str]) -> str:
  """The names of attacks, and what the controls do."""
  return ", ".join(LUCK.get(name, name) for name in attacks)


def _bar(one: Document) -> Html:
  if not _is_share(one):
    return Html()
  return interval_bar(one["value"], one["low"], one["high"])


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return "–"
  if seconds < 120:
    return f"{seconds:.1f} s"
  minutes = round(seconds / 60)
  return (
    f"{minutes // 60} h {minutes % 60} min"
    if minutes > 99
    else (f"{minutes} min")
  )


def _memory(size: float | None) -> str:
  return "–" if not size else f"{size / 2**20:,.0f} MiB"
