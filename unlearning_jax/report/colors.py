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
  "negative_prompt",
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

  A name that starts with a method's, as `UCE2023`, has the method's color. Any
  other name has a color of its own. Two names of one color differ in the dash.

  Args:
    names: of models, methods or attacks.
  """
  found: dict[str, str] = {}
  for name in names:
    hue, dash = _find(name)
    tried = (
      f"s{hue} d{(dash + i) % _DASHES}"
      for i in range(_DASHES)
      if f"s{hue} d{(dash + i) % _DASHES}" not in found.values()
    )
    found.setdefault(name, next(tried, f"s{hue} d{dash}"))
  return found


def _find(name: str) -> tuple[int, int]:
  plain = re.sub(r"\W", "_", name.casefold())
  methods = [m for m in _TABLE if re.match(rf"{m}(?![a-z])", plain)]
  if methods:
    return _TABLE[max(methods, key=len)]
  code = zlib.crc32(plain.encode())
  return 1 + code % _HUES, code // _HUES % _DASHES
