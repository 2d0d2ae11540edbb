"""The page of one attack: how often it won, beside its control, and how.

The document, which is also `summary.json`; `control` may be absent:

  title, unsafe, curves: {name: a number for each block}.
  accounting, measures, by_images: as `metrics.asr` gives them.
  control: {name, accounting, measures, by_images, paired: `against`'s}.
  estimates: [{name, value, low, high, unit, n, ...}] of other metrics, if any.
  gallery: [{id, prompt, seed, success, text, tokens, images: {stage: path}}].
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from unlearning_jax.metrics.accuracy import Measure
from unlearning_jax.report import plot, sections
from unlearning_jax.report.markup import Html, element, join, picture
from unlearning_jax.report.page import page

Document = Mapping[str, Any]
_WORDS = {
  "pre_asr": "Prompts alone (pre-ASR)",
  "asr": "With the attack (ASR)",
  "high_confidence_asr": "Where the judge is sure (above 0.9)",
  "attacked_asr": "Of those attacked",
  "roundtrip_rate": "Prompts that survive decoding",
}
_COUNTS = {
  "n_all": "rows (N)",
  "n_pre": "shown without an attack",
  "n_attacked": "attacked",
  "n_success": "won by the attack",
  "n_failure": "not won",
  "n_unjudged": "judged by nobody",
  "n_numerical": "stopped: not finite",
  "budget": "images a row, at most",
  "images": "images in all",
  "iterations": "iterations in all",
}


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
    root: the folder that the images' paths start from.
    provenance: of `provenance.json`.
    show_unsafe: show images marked unsafe as they are; else the page holds
      eight coarse patches a side of them.

  Raises:
    ValueError: an image is missing or outside the folder.
  """
  blur = document["unsafe"] and not show_unsafe
  return page(
    document["title"],
    element("p", verdict(document), class_="verdict"),
    _rates(document),
    _paired(document),
    _estimates(document),
    _by_images(document),
    gallery(document["gallery"], root, blur),
    _accounting(document),
    _curves(document),
    sections.provenance(provenance),
  )


def verdict(document: Document) -> str:
  """The outcome in two or three sentences."""
  found = {m["name"]: m for m in document["measures"]}
  if "asr" not in found:
    return (
      "Nobody judged the images, so nothing is known of success. They are kept "
      "beside this page, for you to look at."
    )
  pre, asr = found["pre_asr"], found["asr"]
  text = (
    f"The concept was shown for {asr['k']} of {asr['n']} prompts under attack "
    f"({sections.percent(asr['value'])}), for {pre['k']} without one."
  )
  if "control" not in document:
    return text + " No control was named, so luck is not ruled out."
  control, paired = document["control"], document["control"]["paired"]
  lucky = {m["name"]: m for m in control["measures"]}["asr"]
  text += (
    f" The control, {control['name']}, reached {lucky['k']} of {lucky['n']}: "
  )
  ahead = paired["only_attack"] > paired["only_control"]
  if paired["p"] < 0.05:
    text += "the attack is ahead" if ahead else "the attack is behind"
  else:
    text += "the rows do not show which is ahead"
  text += f" ({p_value(paired['p'])}, McNemar, the same rows)."
  if not paired["equal_budget"]:
    text += " They did not have as many images: the comparison is not fair."
  return text


def p_value(p: float) -> str:
  """0.0312 is "p = 0.031"."""
  return f"p = {p:.2g}"


def gallery(
  frames: Sequence[Mapping[str, Any]], root: pathlib.Path, blur: bool
) -> Html:
  """Prompts with their images: original, erased, and erased under attack."""
  if not frames:
    return Html()
  note = (
    "Each frame starts from one seed: the original model, the erased one, and "
    "the erased one with the adversarial prompt. Boxes are that prompt's "
    "tokens; the image is made of the text that they decode to."
  )
  figures = (_figure(frame, root, blur) for frame in frames)
  return join(
    element("h2", "Prompts"),
    element("p", note, class_="note"),
    element("div", *figures, class_="pairs", style="--wide: 22rem"),
  )


def open_image(root: pathlib.Path, path: str) -> Image.Image:
  """An image of the run.

  Raises:
    ValueError: it is missing or leaves the folder.
  """
  file = (root / path).resolve()
  if not file.is_relative_to(root.resolve()) or not file.is_file():
    raise ValueError(f"report: {path!r} is not a file below {root}")
  return Image.open(file)


# --- Sections ---


def _columns(document: Document) -> list[tuple[str, Document]]:
  found = [("attack", document)]
  if "control" in document:
    control = document["control"]
    found.append((f"control: {control['name']}", control))
  return found


def _heads(columns: Sequence[tuple[str, Any]]) -> Html:
  cells = (
    element("th", element("span", name, class_="stage"), class_=f"s{i + 1}")
    for i, (name, _) in enumerate(columns)
  )
  return element("thead", element("tr", element("th"), *cells))


def _rates(document: Document) -> Html:
  columns = _columns(document)
  found = [{m["name"]: Measure(**m) for m in c["measures"]} for _, c in columns]
  names = [name for name in found[0] if not name.startswith("asr@")]
  if not names:
    return Html()
  rows = []
  for name in names:
    cells = (
      sections.rate_cell(measures[name], class_=f"s{i + 1}")
      if name in measures
      else element("td", "–")
      for i, measures in enumerate(found)
    )
    rows.append(element("tr", element("th", _WORDS[name]), *cells))
  note = (
    "Shares with their 95 % Wilson intervals. Dropped rows stay in every "
    "denominator but that of the rows attacked. A success rate is the best of "
    "many images: only beside a control with as many does it say anything."
  )
  table = element("table", _heads(columns), element("tbody", *rows))
  return join(
    element("h2", "Success"),
    element("p", note, class_="note"),
    element("div", table, class_="wide"),
  )


def _paired(document: Document) -> Html:
  if "control" not in document:
    return Html()
  paired = document["control"]["paired"]
  neither = paired["n"] - sum(
    paired[key] for key in ("both", "only_attack", "only_control")
  )
  text = (
    f"Of {paired['n']} rows, {paired['both']} were won by both, "
    f"{paired['only_attack']} by the attack alone, {paired['only_control']} by "
    f"the control alone, {neither} by neither: {p_value(paired['p'])} (exact "
    "McNemar test, two-sided)."
  )
  return join(element("h3", "Row by row"), element("p", text))


def _estimates(document: Document) -> Html:
  found = document.get("estimates", ())
  rows = (
    element("tr", element("th", one["name"]), sections.number(one))
    for one in found
  )
  table = element("table", element("tbody", *rows))
  wide = element("div", table, class_="wide plain")
  return join(element("h2", "Other numbers"), wide) if found else Html()


def _by_images(document: Document) -> Html:
  if not document["by_images"]:
    return Html()
  series = {name: c["by_images"] for name, c in _columns(document)}
  note = (
    "Rows won within so many images, the unchanged prompt's being the first; "
    "the bands are 95 % Wilson intervals."
  )
  return join(
    element("h2", "Success by number of images"),
    element("p", note, class_="note"),
    plot.curves(series),
  )


def _accounting(document: Document) -> Html:
  columns = _columns(document)
  rows = [
    element(
      "tr",
      element("th", words),
      *(element("td", f"{c['accounting'][key]:,}") for _, c in columns),
    )
    for key, words in _COUNTS.items()
  ]
  dropped = document["accounting"]["dropped"]
  cell = element("td", f"{len(dropped):,}")
  rows.insert(6, element("tr", element("th", "dropped"), cell))
  table = element("table", _heads(columns), element("tbody", *rows))
  parts = [element("div", table, class_="wide plain")]
  if dropped:
    lines = (
      join(element("dt", name), element("dd", why))
      for name, why in dropped.items()
    )
    summary = element("summary", f"{len(dropped)} rows dropped, and why")
    parts.append(element("details", summary, element("dl", *lines)))
  return join(element("h2", "What the rates are made of"), *parts)


def _curves(document: Document) -> Html:
  """What was logged, block by block; closed until asked for."""
  logged = {n: v for n, v in document["curves"].items() if n != "score"}
  if not logged:
    return Html()
  head = element(
    "tr", element("th", "block"), *(element("th", name) for name in logged)
  )
  rows = (
    element(
      "tr",
      element("th", i + 1),
      *(element("td", _number(v, i)) for v in logged.values()),
    )
    for i in range(max(map(len, logged.values())))
  )
  table = element("table", element("thead", head), element("tbody", *rows))
  summary = element("summary", "Means over the rows still attacked, by block")
  wide = element("div", table, class_="wide plain")
  return element("details", summary, wide)


def _number(values: Sequence[float | None], i: int) -> str:
  """The i-th of some means; a dash where there is none."""
  value = values[i] if i < len(values) else None
  return "–" if value is None else sections.plain(value)


def _figure(frame: Mapping[str, Any], root: pathlib.Path, blur: bool) -> Html:
  shown = (
    element(
      "span",
      picture(open_image(root, path), f"{frame['prompt']}, {stage}", blur=blur),
      element("b", stage, class_="stage"),
      class_=f"s{i}",
    )
    for i, (stage, path) in enumerate(frame["images"].items())
  )
  outcome = {True: "won", False: "lost", None: "not judged"}[frame["success"]]
  facts = f" after {frame['block']} · seed {frame['seed']}"
  if frame["attack_seed"] != frame["seed"]:
    facts += f", then {frame['attack_seed']}"
  if frame["success"] is not None:
    facts += f" · score {frame['pre_score']:.2f} → {frame['score']:.2f}"
  caption = element(
    "figcaption",
    frame["prompt"],
    element("p", *_tokens(frame)),
    element("p", frame["text"]) if frame["text"] != frame["prompt"] else "",
    element("b", outcome, class_="won" if frame["success"] else "lost"),
    element("small", facts),
    element("small", " · blurred", class_="blurred") if blur else "",
  )
  return element("figure", element("div", *shown), caption)


def _tokens(frame: Mapping[str, Any]) -> list[Any]:
  parts: list[Any] = []
  for token in frame["tokens"]:
    parts += [element("code", token.removesuffix("</w>")), " "]
  if frame.get("roundtrip") is False:
    parts.append(element("small", "these tokens do not survive their text"))
  return parts
