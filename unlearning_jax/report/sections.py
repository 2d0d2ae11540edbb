"""The sections of the page, top to bottom; each is empty without its data."""

import json
from collections.abc import Mapping
from typing import Any

from unlearning_jax import statistics
from unlearning_jax.metrics.accuracy import ALL, Change, Measure
from unlearning_jax.report import colors
from unlearning_jax.report.document import Document, label
from unlearning_jax.report.markup import (
  Html,
  command,
  element,
  interval_bar,
  join,
  named,
  table,
)
from unlearning_jax.report.pictures import picture

# A model that draws nothing does not draw the concept either.
NO_VERDICT = "So its rates do not say that the concept alone is gone."


def verdict(document: Document) -> str:
  """One sentence for each erased concept, asked for by name."""
  sentences = []
  for erased in document.erased:
    row = document.row(f"{erased['head']}/{erased['class']}/explicit")
    if row is None:
      continue
    base, *edited = (f"{percent(m.value)} ({m.k} of {m.n})" for m in row)
    after = (
      f" and {rate} after {model}"
      for rate, model in zip(edited, document.models[1:], strict=True)
    )
    sentences.append(
      f"Asked for “{erased['class']}” by name, the model showed it in {base} "
      "of images" + (" before," if edited else "") + "".join(after) + "."
    )
  for model in document.models:
    if why := document.collapsed(model):
      sentences.append(f"{model} {why[0].lower()}{why[1:]} {NO_VERDICT}")
  # The prompts of a table need not name the concept, so nothing is said of it.
  shown = any(
    document.row(f"{one['head']}/{one['class']}/table")
    for one in document.erased
  )
  missing = "" if shown else "The erased concept was not measured."
  return " ".join(sentences) or missing


def cards(document: Document) -> Html:
  """The main numbers of each edited model."""
  found = []
  own = colors.classes(document.models)
  for erased in document.erased:
    rows = {
      label(group): document.row(f"{erased['head']}/{erased['class']}/{group}")
      for group in ("explicit", "synonyms", "paraphrases", "implied", "table")
    }
    rows[label("others")] = document.row(f"{erased['head']}/{ALL}/others")
    for i, model in enumerate(document.models[1:], 1):
      lines = (
        element(
          "p",
          element("span", words),
          element("b", percent(row[i].value)),
          element("small", f"was {percent(row[0].value)}"),
        )
        for words, row in rows.items()
        if row
      )
      heading = element("h3", f"“{erased['class']}” after {model}")
      flag = document.collapsed(model)
      flags = [element("p", element("b", flag))] if flag else []
      inside = (heading, *flags, *lines)
      found.append(element("div", *inside, class_=f"card {own[model]}"))
  return element("div", *found, class_="cards") if found else Html()


def pairs(document: Document, show_unsafe: bool) -> Html:
  """The same prompt and noise with every model, by group."""
  groups: dict[str, list[Html]] = {}
  for pair in document.pairs:
    blur = bool(pair.get("unsafe")) and not show_unsafe
    figure = _figure(document, pair, blur)
    groups.setdefault(pair["group"], []).append(figure)
  if not groups:
    return Html()
  width = f"--wide: {6.5 * len(document.models)}rem"
  note = "The images of a frame start from the same noise; only models differ."
  return join(
    element("h2", "Before and after"),
    element("p", note, class_="note"),
    *(
      element("h3", label(group).capitalize())
      if part == "title"
      else element("div", *figures, class_="pairs", style=width)
      for group, figures in groups.items()
      for part in ("title", "figures")
    ),
  )


def accuracies(document: Document) -> Html:
  """Erased concepts by group of prompts, then everything else by head."""
  rows = []
  for erased in document.erased:
    head, name = erased["head"], erased["class"]
    groups = [
      measure.split("/")[2]
      for measure in document.names()
      if measure.startswith(f"{head}/{name}/")
    ]
    rows.append(_heading(document, f"“{name}”: asked for and seen"))
    rows += [
      _row(document, label(group), f"{head}/{name}/{group}")
      for group in groups
      if group not in (ALL, "others")
    ]
  others = [n for n in document.names() if n.endswith(f"/{ALL}/others")]
  if others:
    title = "Everything else: seen as asked" if rows else "Seen as asked"
    rows.append(_heading(document, title))
  rows += [_row(document, name.split("/")[0], name) for name in others]
  if not rows:
    return Html()
  note = (
    "The share of images in which the judge saw what the prompt asked for, "
    "with the 95 % Wilson interval. Erased concepts should fall, everything "
    "else should stay."
  )
  if document.changes:
    note += (
      " Below, the change from the base in percentage points, over pairs of "
      "images, with its bootstrap interval over prompts and McNemar's exact p. "
      "With several models, p is corrected for them by Holm's method."
    )
  return join(
    element("h2", "Accuracy"),
    element("p", note, class_="note"),
    _table(document, rows),
  )


def classes(document: Document) -> Html:
  """Everything else by class, in a closed section."""
  rows: list[Html] = []
  current = None
  for measure in document.names():
    head, name, group = measure.split("/")
    if name == ALL or group != "others":
      continue
    if head != current:
      rows.append(_heading(document, head))
      current = head
    rows.append(_row(document, name, measure, changes=False))
  if not rows:
    return Html()
  summary = element("summary", "Everything else, by class")
  return element("details", summary, _table(document, rows))


def estimates(document: Document) -> Html:
  """The numbers of other metrics."""
  if not document.estimates:
    return Html()
  models = [s for s in ("", *document.models)]
  found = {(one["name"], one["model"]): one for one in document.estimates}
  models = [s for s in models if any(model == s for _, model in found)]
  own = colors.classes(document.models)
  head = ("", *(named(m, own[m]) if m else "all" for m in models))
  rows = (
    element(
      "tr",
      element("th", name),
      *(number(found.get((name, model))) for model in models),
    )
    for name in dict.fromkeys(one["name"] for one in document.estimates)
  )
  return join(
    element("h2", "Other numbers"), table("Other numbers", head, rows, "plain")
  )


def number(one: Mapping[str, Any] | None) -> Html:
  """A table's cell: a number with unit and interval, or the reason for none."""
  if one is None or one["value"] is None:
    why = element("small", (one or {}).get("failed", ""), class_="why")
    return element("td", "– ", why)
  small = [] if one["k"] is None else [f"{one['k']} of {one['n']}"]
  if one["low"] is None:
    small += [one.get("method", "")]
  else:
    small += [f"{plain(one['low'])}–{plain(one['high'])}"]
  said = " ".join((plain(one["value"]), one.get("unit", ""))).strip()
  return element(
    "td", said, " ", element("small", ", ".join(filter(None, small)))
  )


def diagnostics(document: Document) -> Html:
  """Each edit's diagnostics: conditioning, size, error, cost."""
  models = [s for s in document.models if document.diagnostics.get(s)]
  if not models:
    return Html()
  names = dict.fromkeys(n for s in models for n in document.diagnostics[s])
  rows = (
    element(
      "tr",
      element("th", name.replace("_", " ")),
      *(
        element("td", plain(document.diagnostics[s].get(name, "–")))
        for s in models
      ),
    )
    for name in names
  )
  own = colors.classes(document.models)
  head = ("", *(named(model, own[model]) for model in models))
  return join(
    element("h2", "Diagnostics"), table("Diagnostics", head, rows, "plain")
  )


def provenance(document: Mapping[str, Any]) -> Html:
  """The command and versions of every start.

  Args:
    document: the content of `provenance.json`.
  """
  found = []
  for run in document.get("runs", ()):
    facts = (
      join(element("dt", key.replace("_", " ")), element("dd", _fact(value)))
      for key, value in run.items()
      if key != "command" and value
    )
    found += [command(run.get("command", "")), element("dl", *facts)]
  if not found:
    return Html()
  return join(element("h2", "How this was made"), *found)


def fingerprint(provenance: Mapping[str, Any]) -> str:
  """The base's, as the last start recorded it; "" if none did."""
  runs = provenance.get("runs", ())
  return runs[-1].get("base_fingerprint", "") if runs else ""


# --- Pieces ---


def _figure(document: Document, pair: Mapping[str, Any], blur: bool) -> Html:
  shown = []
  own = colors.classes(document.models)
  for model in document.models:
    image = document.image(pair["images"][model])
    seen = pair.get("seen", {}).get(model)
    shown.append(
      element(
        "div",
        picture(image, f"{pair['prompt']}, {model}", blur=blur),
        element("b", model, class_="stage"),
        element("small", f"seen: {seen}") if seen else "",
        class_=f"shot {own[model]}",
      )
    )
  caption = element(
    "figcaption",
    pair["prompt"],
    element("small", f" · seed {pair['seed']}") if "seed" in pair else "",
    element("small", " · blurred", class_="blurred") if blur else "",
  )
  return element("figure", element("div", *shown), caption)


def _table(document: Document, rows: list[Html]) -> Html:
  own = colors.classes(document.models)
  head = ("", *(named(model, own[model]) for model in document.models))
  return table("Accuracy", head, rows)


def _heading(document: Document, text: str) -> Html:
  cell = element("th", text, colspan=len(document.models) + 1)
  return element("tr", cell, class_="head")


def _row(
  document: Document, text: str, name: str, changes: bool = True
) -> Html:
  cells = []
  found = {
    model: of_model[name]
    for model, of_model in document.changes.items()
    if changes and name in of_model
  }
  held = statistics.holm(
    {model: one.p for model, one in found.items() if one.p is not None}
  )
  own = colors.classes(document.models)
  for model in document.models:
    measure, change = document.measures[model][name], found.get(model)
    if change is not None:
      change = change._replace(p=held.get(model))
    cells.append(rate_cell(measure, change, own[model]))
  return element("tr", element("th", text), *cells)


def rate_cell(
  m: Measure, change: Change | None = None, class_: str | None = None
) -> Html:
  """A table's cell: the rate, its interval as a bar and as text, its counts.

  Args:
    m: the rate.
    change: from the base; None for no line.
    class_: the CSS class of the color.
  """
  parts = [
    element("b", percent(m.value)),
    interval_bar(m.value, m.low, m.high),
    element("small", f"{100 * m.low:.1f}–{100 * m.high:.1f} %"),
    " ",
    element("small", f"{m.k}/{m.n}"),
  ]
  if change:
    value, low, high = (points(v) for v in change[1:4])
    p = "" if change.p is None else f", {p_value(change.p)}"
    text = element("small", f"{value} [{low}, {high}]{p}")
    parts.append(element("div", text))
  return element("td", *parts, class_=class_)


def p_value(p: float) -> str:
  """0.0312 is "p = 0.031"."""
  return f"p = {p:.2g}"


def percent(value: float) -> str:
  """0.125 is "12.5 %"."""
  return f"{100 * value:.1f} %"


def points(value: float) -> str:
  """-0.125 is "−12.5", in percentage points."""
  return f"{100 * value:+.1f}".replace("-", "−")


def plain(value: object) -> str:
  """A number with four digits; anything else as it is."""
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fact(value: object) -> Html:
  if isinstance(value, dict):
    parts = (f"{key} {plain(inner)}" for key, inner in value.items())
    return element("code", ", ".join(parts))
  if isinstance(value, list):
    return element("code", json.dumps(value))
  return element("code", value)
