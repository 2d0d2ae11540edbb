"""One color a method, the same on every page.

A color is a pair of CSS classes of `style.css`: a hue (`s0` to `s6`) and a
dash (`d0` to `d3`). Six hues are as many as color-blind people tell apart, so
methods beyond six share a hue and differ in the dash of their lines.
"""

import re
import zlib
from collections.abc import Iterable

_HUES, _DASHES = 6, 4
# A method's place decides its color, so a new one goes to the end.
_ERASURES = (
  "uce", "rece", "mace", "esd", "concept_ablation", "time", "salun",
  "advunlearn", "fmn", "erasediff", "spm", "resalign", "sld",
  "negative_prompt", "meta_unlearning",
)  # fmt: skip
_ATTACKS = (
  "unlearn_diff_atk", "p4d", "ring_a_bell", "pez", "gcg",
  "concept_inversion", "textual_inversion", "rab_soft",
)  # fmt: skip
# What a method is compared with is gray.
_GRAYS = ("base", "random", "seed", "none")
_TABLE = {
  **{
    name: (1 + (i + first) % _HUES, i // _HUES)
    # The first attacks have other hues than the first erasures.
    for first, methods in ((0, _ERASURES), (3, _ATTACKS))
    for i, name in enumerate(methods)
  },
  **{name: (0, i) for i, name in enumerate(_GRAYS)},
}


def classes(names: Iterable[str]) -> dict[str, str]:
  """The CSS classes of names that stand on one page.

  A name that starts with a method's, as `UCE2023`, has the method's hue. Any
  other name has one of its own while there are six or fewer. Two names of one
  hue differ in the dash.

  Args:
    names: of models, methods or attacks.
  """
  order = list(dict.fromkeys(names))
  found: dict[str, tuple[int, int]] = {}
  # Methods first: another name gives way to them.
  for name in sorted(order, key=lambda name: _method(name) is None):
    free = [one for one in _wanted(name) if one not in found.values()]
    hues = {hue for hue, _ in found.values()}
    fresh = [one for one in free if one[0] not in hues]
    found[name] = (fresh or free or _wanted(name))[0]
  return {name: "s{} d{}".format(*found[name]) for name in order}


def _method(name: str) -> str | None:
  plain = re.sub(r"\W", "_", name.casefold())
  methods = [m for m in _TABLE if re.match(rf"{m}(?![a-z])", plain)]
  return max(methods, key=len, default=None)


def _wanted(name: str) -> list[tuple[int, int]]:
  """The colors that a name may have, the best one first."""
  method = _method(name)
  if method:
    hue, dash = _TABLE[method]
    return [(hue, (dash + i) % _DASHES) for i in range(_DASHES)]
  first = zlib.crc32(name.casefold().encode())
  return [
    (1 + (first + i) % _HUES, dash)
    for dash in range(_DASHES)
    for i in range(_HUES)
  ]
