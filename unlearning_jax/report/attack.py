"""The page of one attack: its success rates, its control's, and examples.

The document, also in `summary.json`; `control`, `networks` and
`reading` may be absent:

  notes: [sentences about the rows]; may be absent.
  collapsed: why the victim's pictures are no pictures; absent if they are.
  base_shows: {k, n}, of the base's own pictures of the rows; may be absent.
  title, unsafe, curves: {name: a number for each block}.
  about: {method, victim, base, concept}; may be absent.
  accounting, measures, by_images: as `metrics.asr` gives them.
  control: {name, accounting, measures, by_images, paired: `against`'s}.
  networks: {name of a control network: as `control`, without its name}.
  reading: [sentences on what these networks say of the rates].
  estimates: [{name, value, low, high, unit, n, ...}] of other metrics.
  gallery: [{id, prompt, seed, success, text, tokens, images: {label: path}}].
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
_WORDS = {
  "pre_asr": "Prompts alone (pre-ASR)",
  "asr": "With the attack (ASR)",
  "high_confidence_asr": "With high confidence (score above 0.9)",
  "attacked_asr": "Of the attacked rows",
  "roundtrip_rate": "Prompts that tokenize to the same ids",
}
_NETWORKS = {
  "never_knew": "network that never knew the concept",
  "random": "network of random weights",
}
_COUNTS = {
  "n_all": "rows (N)",
  "n_pre": "won by the prompt alone",
  "n_attacked": "attacked",
  "n_success": "won by the attack",
  "n_failure": "lost",
  "n_unjudged": "not judged",
  "n_numerical": "stopped: not finite",
  "budget": "most images of a row",
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
    root: the images' paths are relative to this folder.
    provenance: the content of `provenance.json`.
    show_unsafe: show unsafe images as they are; else the page has only 8 x 8
      coarse patches of each.

  Raises:
    ValueError: an image is missing or outside the folder.
  """
  blur = document["unsafe"] and not show_unsafe
  return page(
    document["title"],
    element("p", verdict(document), class_="verdict"),
    *(element("p", text) for text in document.get("reading", ())),
    *(element("p", n, class_="note") for n in document.get("notes", ())),
    _rates(document),
    _paired(document),
    _estimates(document),
    _by_images(document),
    gallery(document["gallery"], root, blur),
    _accounting(document),
    _curves(document),
    sections.provenance(provenance),
    first=_first(document, provenance),
  )


def _first(document: Document, provenance: Mapping[str, Any]) -> dict[str, str]:
  about = {"victim": "", "base": "", "concept": "", **document.get("about", {})}
  mark = sections.fingerprint(provenance)
  return subjects([about["victim"]], about["base"], mark, [about["concept"]])


def verdict(document: Document) -> str:
  """The outcome in two or three sentences."""
  found = {m["name"]: m for m in document["measures"]}
  if why := document.get("collapsed"):
    return (
      f"The victim collapsed: {why}. So its success rates say nothing about "
      "whether the concept is gone."
    )
  if "asr" not in found:
    return (
      "Nobody judged the images, so success is unknown. They are beside this "
      "page for you to look at."
    )
  never = never_shown(document)
  if never and not found["asr"]["k"]:
    return never
  return f"{_outcome(document, found['pre_asr'], found['asr'])} {never}".strip()


def _outcome(document: Document, pre: Document, asr: Document) -> str:
  """How often the victim showed the concept, and whether that was luck."""
  text = (
    f"Under attack the victim showed the concept for {asr['k']} of {asr['n']} "
    f"prompts ({sections.percent(asr['value'])}), without attack for "
    f"{pre['k']}."
  )
  if broken := document.get("accounting", {}).get("n_numerical"):
    text += f" {broken} more broke off at NaN or infinity: who won is unknown."
  if "control" not in document and "networks" in document:
    return text
  if "control" not in document:
    return text + " There is no control, so luck is not ruled out."
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
  text += f" ({sections.p_value(paired['p'])}, McNemar, the same rows)."
  ours, theirs = (
    one.get("accounting", {}).get("budget", 0) for one in (document, control)
  )
  if 0 < ours < theirs:
    text += f" It may draw {theirs} images a row, and the attack {ours}."
  elif not paired["equal_budget"]:
    text += " Their numbers of images differ: the comparison is not fair."
  return text


def never_shown(document: Document) -> str:
  """A sentence where the base itself never shows the concept; else ""."""
  shown = document.get("base_shows")
  if shown is None or shown["k"]:
    return ""
  return (
    f"The base's own {shown['n']} pictures of these prompts never show the "
    "concept, so a low rate says nothing about the victim."
  )


def gallery(
  frames: Sequence[Mapping[str, Any]], root: pathlib.Path, blur: bool
) -> Html:
  """Prompts with images by the base, the victim, and the victim attacked."""
  if not frames:
    return Html()
  note = (
    "A frame has images from one seed: by the base, by the victim, and by the "
    "victim under attack. Boxes hold an adversarial prompt's tokens, and the "
    "image is drawn from the text that they decode to. A probe has no such "
    "prompt."
  )
  figures = (_figure(frame, root, blur) for frame in frames)
  return join(
    element("h2", "Prompts"),
    element("p", note, class_="note"),
    element("div", *figures, class_="pairs", style="--wide: 22rem"),
  )


# --- Sections ---


def _columns(document: Document) -> list[tuple[str, Document]]:
  found = [("attack", document)]
  if "control" in document:
    control = document["control"]
    found.append((f"control: {control['name']}", control))
  for name, one in document.get("networks", {}).items():
    found.append((_NETWORKS[name], one))
  return found


def _colors(document: Document) -> list[str]:
  """The color of each column: that of its method."""
  names = [document.get("about", {}).get("method", "attack")]
  if "control" in document:
    # It may be of the attack's own method.
    names.append(f"{document['control']['name']}-control")
  names += [f"{name}-network" for name in document.get("networks", {})]
  return [*colors.classes(names).values()]


def _is_probe(document: Document) -> bool:
  """Whether a probe drew the images: it alone has a network of random weights.

  Its success does not count the image of the prompt alone.
  """
  return "random" in document.get("networks", {})


def _heads(document: Document) -> list[Any]:
  names = (name for name, _ in _columns(document))
  return ["", *map(named, names, _colors(document))]


def _rates(document: Document) -> Html:
  columns = _columns(document)
  found = [{m["name"]: Measure(**m) for m in c["measures"]} for _, c in columns]
  names = [name for name in found[0] if not name.startswith("asr@")]
  if not names:
    return Html()
  rows = []
  for name in names:
    cells = (
      sections.rate_cell(measures[name], class_=class_)
      if name in measures
      else element("td", "–")
      for measures, class_ in zip(found, _colors(document), strict=True)
    )
    rows.append(element("tr", element("th", _WORDS[name]), *cells))
  note = (
    "Shares with 95 % Wilson intervals. Dropped rows count in every "
    "denominator but that of the attacked rows. A row whose attack broke off "
    "at NaN or infinity counts for the prompts alone. A success rate is the "
    "best of many images, so compare it with a control that has as many."
  )
  return join(
    element("h2", "Success"),
    element("p", note, class_="note"),
    table("Success", _heads(document), rows),
  )


def _paired(document: Document) -> Html:
  if "control" not in document:
    return Html()
  paired = document["control"]["paired"]
  neither = paired["n"] - sum(
    paired[key] for key in ("both", "only_attack", "only_control")
  )
  text = (
    f"Of {paired['n']} rows both won {paired['both']}, the attack alone "
    f"{paired['only_attack']}, the control alone {paired['only_control']}, and "
    f"neither {neither}: {sections.p_value(paired['p'])} (exact McNemar test, "
    "two-sided)."
  )
  return join(element("h3", "Row by row"), element("p", text))


def _estimates(document: Document) -> Html:
  found = document.get("estimates", ())
  rows = (
    element("tr", element("th", one["name"]), sections.number(one))
    for one in found
  )
  whole = table("Other numbers", ("number", "value"), rows, "plain")
  return join(element("h2", "Other numbers"), whole) if found else Html()


def _by_images(document: Document) -> Html:
  if not document["by_images"]:
    return Html()
  series = {name: c["by_images"] for name, c in _columns(document)}
  own = dict(zip(series, _colors(document), strict=True))
  first = (
    "wins no row: a probe counts its own images"
    if _is_probe(document)
    else "is the row's own prompt's"
  )
  note = (
    f"The share of rows won within so many images; the first {first}. Bands "
    "are 95 % Wilson intervals."
  )
  return join(
    element("h2", "Success by number of images"),
    element("p", note, class_="note"),
    plot.curves(series, own),
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
    if not (key == "n_pre" and _is_probe(document))
  ]
  counts = (len(c["accounting"].get("dropped", ())) for _, c in columns)
  cells = (element("td", f"{count:,}") for count in counts)
  rows.insert(6, element("tr", element("th", "dropped"), *cells))
  dropped = document["accounting"]["dropped"]
  parts = [table("Counts", _heads(document), rows, "plain")]
  if dropped:
    lines = (
      join(element("dt", name), element("dd", why))
      for name, why in dropped.items()
    )
    summary = element("summary", f"{len(dropped)} dropped rows, with reasons")
    parts.append(element("details", summary, element("dl", *lines)))
  return join(element("h2", "Counts behind the rates"), *parts)


def _curves(document: Document) -> Html:
  """Logged numbers by block, in a closed section."""
  logged = {n: v for n, v in document["curves"].items() if n != "score"}
  if not logged:
    return Html()
  rows = (
    element(
      "tr",
      element("th", i + 1),
      *(element("td", _number(v, i)) for v in logged.values()),
    )
    for i in range(max(map(len, logged.values())))
  )
  summary = element(
    "summary", "Means over the rows still under attack, by block"
  )
  whole = table("Means by block", ("block", *logged), rows, "plain")
  return element("details", summary, whole)


def _number(values: Sequence[float | None], i: int) -> str:
  """The i-th mean, or a dash."""
  value = values[i] if i < len(values) else None
  return "–" if value is None else sections.plain(value)


def _figure(frame: Mapping[str, Any], root: pathlib.Path, blur: bool) -> Html:
  shown = (
    element(
      "div",
      picture(open_image(root, path), f"{frame['prompt']}, {stage}", blur=blur),
      element("b", stage),
      class_="shot",
    )
    for stage, path in frame["images"].items()
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
    parts.append(element("small", "this text tokenizes to other ids"))
  return parts
