"""The page of many attacks on many victims: a table for each task.

The document, also in `summary.json`:

  title; control: the attack that all others are compared with; attacks: names.
  tasks: {task: {name, victims, unsafe, gallery: [{victim, prompt, seed, texts,
    won, images: {label: path}}]}}.
  cells: [{task, victim, attack, status: done, failed or not run, error,
    accounting, measures, by_images, paired: `against`'s with `p_holm`
    and the `control`, logged: {name: mean}}].
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.metrics.accuracy import Measure
from unlearning_jax.report import colors, plot, sections
from unlearning_jax.report.markup import Html, element, join, named, table
from unlearning_jax.report.page import page, subjects
from unlearning_jax.report.pictures import open_image, picture

Document = Mapping[str, Any]
# Of a column in the terminal: no shipped attack's name is longer.
_WIDE = 19


def render(
  document: Document,
  root: pathlib.Path,
  provenance: Mapping[str, Any],
  *,
  show_unsafe: bool = False,
) -> str:
  """The page, for `report.html`.

  Args:
    document: see above.
    root: the images' paths are relative to this folder.
    provenance: one cell's.
    show_unsafe: show unsafe images as they are; else the page has only 8 x 8
      coarse patches of each.

  Raises:
    ValueError: an image is missing or outside the folder.
  """
  note = (
    "A cell has the share of rows that show the concept, by the prompt alone "
    "or by the attack, with its 95 % Wilson interval. Below, it is compared "
    f"with the control (“{document['control']}” unless another is named) on "
    "the same rows: + rows that only the attack won, − rows that only the "
    "control won, and the p value of the exact McNemar test, corrected for all "
    "tests of this page (Holm)."
  )
  tasks = document["tasks"]
  return page(
    document["title"],
    element("p", verdict(document), class_="verdict"),
    element("p", note, class_="note"),
    *(_task(document, task, root, show_unsafe) for task in document["tasks"]),
    _failures(document),
    _accounting(document),
    sections.provenance(provenance),
    first=subjects(
      [*dict.fromkeys(v for t in tasks.values() for v in t["victims"])],
      "",
      sections.fingerprint(provenance),
      [f"“{about['name']}” ({task})" for task, about in tasks.items()],
    ),
  )


def verdict(document: Document) -> str:
  """How many cells are done, and how many attacks beat their controls."""
  done = [c for c in document["cells"] if c["status"] == "done"]
  tested = [c["paired"] for c in done if "paired" in c]
  named = dict.fromkeys(paired["control"] for paired in tested)
  controls = list(named) or [document["control"]]
  ahead = [
    p
    for p in tested
    if p["p_holm"] < 0.05 and p["only_attack"] > p["only_control"]
  ]
  return (
    f"{len(done)} of {len(document['cells'])} cells are done. In {len(ahead)} "
    f"of {len(tested)} the attack beats its control, "
    f"{' or '.join(f'“{name}”' for name in controls)}."
  )


def printed(document: Document) -> str:
  """The table for the terminal: won of all rows, a line for each victim."""
  attacks = document["attacks"]
  lines = [document["title"]]
  lines.append(f"{'':24}" + "".join(f"{name:>{_WIDE}}" for name in attacks))
  for task, about in document["tasks"].items():
    for victim in about["victims"]:
      found = _cells(document, task, victim)
      texts = (_short(found[name]) for name in attacks)
      line = "".join(f"{text:>{_WIDE}}" for text in texts)
      lines.append(f"{f'{task}/{victim}':24}{line}")
  lines.append(verdict(document))
  return "\n".join(lines)


# --- Sections ---


def _cells(document: Document, task: str, victim: str) -> dict[str, Any]:
  return {
    cell["attack"]: cell
    for cell in document["cells"]
    if (cell["task"], cell["victim"]) == (task, victim)
  }


def _short(cell: Mapping[str, Any]) -> str:
  if cell["status"] != "done":
    return cell["status"]
  asr = {m["name"]: m for m in cell["measures"]}["asr"]
  return f"{asr['k']}/{asr['n']}"


def _task(
  document: Document, task: str, root: pathlib.Path, show_unsafe: bool
) -> Html:
  about = document["tasks"][task]
  blur = about["unsafe"] and not show_unsafe
  return join(
    element("h2", f"{task.capitalize()} “{about['name']}”"),
    _table(document, task),
    _plots(document, task),
    *_frames(document, about["gallery"], root, blur),
  )


def _table(document: Document, task: str) -> Html:
  own = colors.classes(document["attacks"])
  rows = []
  for victim in document["tasks"][task]["victims"]:
    found = _cells(document, task, victim)
    drawn = (
      _rate(found[name], own[name], document["control"])
      for name in document["attacks"]
    )
    rows.append(element("tr", element("th", victim), *drawn))
  head = ("", *(named(name, own[name]) for name in document["attacks"]))
  return table(f"Success on {task}", head, rows)


def _rate(cell: Mapping[str, Any], class_: str, control: str) -> Html:
  if cell["status"] != "done":
    return element("td", element("small", cell["status"]))
  asr = next(m for m in cell["measures"] if m["name"] == "asr")
  drawn = sections.rate_cell(Measure(**asr), class_=class_)
  if "paired" not in cell:
    return drawn
  paired = cell["paired"]
  text = f"+{paired['only_attack']} −{paired['only_control']}, "
  text += sections.p_value(paired["p_holm"])
  if paired["control"] != control:
    text += f", against {paired['control']}"
  if not paired["equal_budget"]:
    text += ", other number of images"
  end = element("div", element("small", text))
  return Html(drawn.removesuffix("</td>") + end + "</td>")


def _plots(document: Document, task: str) -> Html:
  """Success by number of images, one drawing for each victim."""
  drawn = []
  for victim in document["tasks"][task]["victims"]:
    found = _cells(document, task, victim)
    series = {
      name: found[name].get("by_images", ()) for name in document["attacks"]
    }
    if any(series.values()):
      heading = element("h3", f"{victim}: success by number of images")
      own = colors.classes(document["attacks"])
      drawn.append(element("div", heading, plot.curves(series, own)))
  return element("div", *drawn, class_="plots") if drawn else Html()


def _frames(
  document: Document,
  gallery: Sequence[Mapping[str, Any]],
  root: pathlib.Path,
  blur: bool,
):
  if not gallery:
    return
  yield element("h3", "One prompt, one seed, under every attack")
  figures, own = [], colors.classes(document["attacks"])
  for frame in gallery:
    shown = []
    for stage, path in frame["images"].items():
      image = open_image(root, path)
      won = "won" if stage in frame["won"] else ""
      shown.append(
        element(
          "div",
          picture(image, f"{frame['prompt']}, {stage}", blur=blur),
          element("b", stage, class_="stage"),
          element("small", won),
          class_=f"shot {own.get(stage, 's0')}",
        )
      )
    texts = (
      element("p", element("small", f"{name}: "), text)
      for name, text in frame["texts"].items()
    )
    caption = element(
      "figcaption",
      element("b", f"{frame['victim']}: "),
      frame["prompt"],
      element("small", f" · seed {frame['seed']}"),
      element("small", " · blurred", class_="blurred") if blur else "",
      element("details", element("summary", "texts"), *texts),
    )
    figures.append(element("figure", element("div", *shown), caption))
  yield element("div", *figures, class_="pairs", style="--wide: 30rem")


def _failures(document: Document) -> Html:
  failed = [c for c in document["cells"] if c["status"] == "failed"]
  if not failed:
    return Html()
  lines = (
    join(
      element("dt", f"{c['task']}/{c['victim']}/{c['attack']}"),
      element("dd", c["error"]),
    )
    for c in failed
  )
  return join(element("h2", "Cells that failed"), element("dl", *lines))


def _accounting(document: Document) -> Html:
  """The counts of every cell, in a closed section."""
  keys = {
    "n_all": "N",
    "n_pre": "prompt alone",
    "n_attacked": "attacked",
    "n_success": "won",
    "n_failure": "lost",
    "n_numerical": "not finite",
    "dropped": "dropped",
    "images": "images",
    "iterations": "iterations",
  }
  rows, reasons = [], []
  for cell in document["cells"]:
    if cell["status"] != "done":
      continue
    name = f"{cell['task']}/{cell['victim']}/{cell['attack']}"
    counts = dict(cell["accounting"])
    for row, why in counts["dropped"].items():
      reasons += [element("dt", f"{name} {row}"), element("dd", why)]
    counts["dropped"] = len(counts["dropped"])
    shares = {m["name"]: m["value"] for m in cell["measures"]}
    numbers = [f"{counts[key]:,}" for key in keys]
    numbers += [
      sections.percent(shares[name]) if name in shares else "–"
      for name in ("high_confidence_asr", "roundtrip_rate")
    ]
    scale = cell.get("logged", {}).get("gradient_rms")
    numbers.append("–" if scale is None else f"{scale:.1e}")
    cells = (element("td", number) for number in numbers)
    rows.append(element("tr", element("th", name), *cells))
  if not rows:
    return Html()
  words = ("", *keys.values(), "high confidence", "same ids", "gradient")
  summary = element("summary", "Counts behind the rates")
  whole = table("Counts", words, rows, "plain")
  reasons = [element("dl", *reasons)] if reasons else []
  return element("details", summary, whole, *reasons)
