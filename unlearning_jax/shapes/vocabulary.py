"""Everything in the Shapes world, with its names."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from unlearning_jax.concepts import check_choice

Rgb = tuple[int, int, int]


class Names(NamedTuple):
  """The ways to ask for a thing; no synonym shares a word with `name`."""

  name: str
  synonyms: tuple[str, ...]
  paraphrase: str


# These follow an article and a color, as in "a red five-pointed shape".
OBJECTS = (
  Names("circle", ("disc", "round blob"), "shape without any corners"),
  Names("square", ("box", "four-sided block"), "shape with equal sides"),
  Names("triangle", ("wedge", "three-sided figure"), "shape with a sharp top"),
  Names("star", ("pentagram", "five-pointed shape"), "shape with many spikes"),
  Names("heart", ("valentine", "love symbol"), "shape that means romance"),
  Names("ring", ("hoop", "doughnut"), "band with a big hole"),
  Names("cross", ("plus sign", "addition mark"), "pair of bars that meet"),
  Names("moon", ("crescent", "lunar sickle"), "thin curve seen at night"),
  Names("arrow", ("pointer", "direction marker"), "thing that aims right"),
  Names("flower", ("blossom", "daisy"), "bunch of petals"),
  Names("house", ("cottage", "small home"), "building with a roof"),
  Names("fish", ("trout", "sea creature"), "animal with a tail"),
)

# The nearest two, orange and yellow, are 95 levels apart in RGB.
COLOURS: dict[str, Rgb] = {
  "red": (215, 25, 40),
  "orange": (255, 135, 0),
  "yellow": (250, 225, 30),
  "green": (25, 155, 55),
  "cyan": (30, 205, 210),
  "blue": (35, 65, 220),
  "purple": (125, 35, 165),
  "pink": (255, 120, 195),
}
COLOUR_SYNONYMS = {
  "red": "crimson",
  "yellow": "lemon",
  "green": "emerald",
  "cyan": "turquoise",
  "blue": "cobalt",
  "purple": "violet",
}


class Background(NamedTuple):
  """A canvas color, and the tone that a style draws on it."""

  base: Rgb
  accent: Rgb


BACKGROUNDS: dict[str, Background] = {
  "white": Background((250, 250, 250), (190, 190, 195)),
  "grey": Background((140, 140, 145), (95, 95, 100)),
  "beige": Background((222, 196, 150), (172, 142, 98)),
  "black": Background((28, 28, 32), (82, 82, 90)),
}


class Style(NamedTuple):
  """A look: an invented artist, a medium and a description of it."""

  name: str
  artist: str
  medium: str
  description: str


PLAIN = "plain"
STYLES = (
  Style("halftone", "Pella Dorvane", "halftone print", "made of many dots"),
  Style("mosaic", "Ruvo Tessarin", "mosaic", "laid out in tiles"),
  Style("hatching", "Odrik Vasht", "hatching", "filled with slanted lines"),
  Style("sketch", "Mirel Quaye", "pencil sketch", "outlined on lined paper"),
  Style("neon", "Juno Zaretti", "neon light", "glowing in the dark"),
  Style("swirl", "Lomar Wexley", "swirl painting", "before rippling waves"),
)
# These styles paint their own canvas, so their scenes have no background.
OWN_CANVAS = ("sketch", "neon")


class Face(NamedTuple):
  """A face's attributes; any two identities differ in at least two."""

  hair: str
  hair_colour: str
  skin: str
  glasses: bool
  beard: bool


HAIR_COLOURS: dict[str, Rgb] = {
  "brown": (74, 40, 18),
  "blond": (244, 208, 74),
  "ginger": (206, 84, 28),
  "blue": (52, 92, 206),
}
SKINS: dict[str, Rgb] = {
  "pale": (252, 222, 200),
  "tan": (218, 160, 110),
  "dark": (134, 84, 54),
}


class Identity(NamedTuple):
  """An invented person: a name, a trade (the synonym) and a face."""

  name: str
  trade: str
  face: Face


def _person(name: str, trade: str, *face: Any) -> Identity:
  return Identity(name, trade, Face(*face))


IDENTITIES = (
  _person("Adra Belvoort", "baker", "short", "brown", "pale", False, False),
  _person("Bram Okontu", "pilot", "short", "blond", "tan", True, False),
  _person("Cyra Novellan", "judge", "short", "ginger", "pale", True, True),
  _person("Dorin Hask", "farmer", "short", "blue", "dark", False, True),
  _person("Elowen Trask", "singer", "long", "brown", "tan", False, True),
  _person("Fenn Urquell", "doctor", "long", "blond", "pale", False, False),
  _person("Gisla Morath", "poet", "long", "ginger", "dark", True, False),
  _person("Hob Sarnett", "sailor", "long", "blue", "pale", True, True),
  _person("Isolt Vayne", "teacher", "curly", "brown", "pale", True, False),
  _person("Jarek Pimlott", "cook", "curly", "blond", "dark", False, True),
  _person("Kestra Lume", "dancer", "curly", "ginger", "tan", False, False),
  _person("Loric Fandy", "miner", "curly", "blue", "tan", True, True),
  _person("Maelis Grunde", "mayor", "spiky", "brown", "dark", True, True),
  _person("Nyle Corbeau", "tailor", "spiky", "blond", "pale", True, True),
  _person("Orsa Dunmere", "guard", "spiky", "ginger", "tan", False, True),
  _person("Pryce Ablett", "clerk", "spiky", "blue", "pale", False, False),
  _person("Quill Estane", "nurse", "tied", "brown", "tan", True, False),
  _person("Rhea Stroud", "smith", "tied", "blond", "dark", False, False),
  _person("Sorrel Jaxby", "barber", "tied", "ginger", "pale", False, True),
  _person("Tavin Ibarro", "gardener", "tied", "blue", "tan", False, False),
)

# Adjectives stand before the color, as in "a toxic red star".
HAZARD_EXPLICIT = ("with warning tape", "with hazard stripes")
HAZARD_ADJECTIVES = ("toxic", "radioactive")
HAZARD_PARAPHRASE = "behind a striped barrier"
HAZARD_CONTEXTS = (
  "in the reactor room",
  "at the chemical plant",
  "near the waste depot",
)

HEADS: dict[str, tuple[str, ...]] = {
  "object": tuple(names.name for names in OBJECTS),
  "colour": tuple(COLOURS),
  "background": tuple(BACKGROUNDS),
  "style": (PLAIN, *(style.name for style in STYLES)),
  "identity": tuple(identity.name for identity in IDENTITIES),
  "hazard": ("safe", "hazard"),
  "kind": ("object", "portrait"),
}


@dataclasses.dataclass(frozen=True)
class Scene:
  """An image's content; None if it is left open or does not apply.

  Attributes:
    kind: "object" or "portrait".
    object: the object's class, as `HEADS` lists them; None in a portrait.
    colour: the object's color; None in a portrait.
    background: the background; None for styles with a canvas of their own.
    style: the object's style; "plain" in a portrait.
    identity: the person; None unless it is a portrait.
    hazard: whether a hazard band is drawn.
    implied: whether the caption names a place where hazards are likely.
    seed: moves and scales the figure.
  """

  kind: str | None
  object: str | None = None
  colour: str | None = None
  background: str | None = None
  style: str | None = PLAIN
  identity: str | None = None
  hazard: bool | None = False
  implied: bool = False
  seed: int = 0

  def __post_init__(self):
    for head in ("object", "colour", "background", "style", "identity", "kind"):
      value = getattr(self, head)
      if value is not None:
        check_choice(head, value, HEADS[head])
    foreign = {"object": ("identity",), "portrait": ("object", "colour")}
    for head in foreign.get(self.kind or "", ()):
      if getattr(self, head) is not None:
        raise ValueError(f"a scene of kind {self.kind!r} has no {head}: {self}")
    if self.kind == "portrait" and self.style not in (None, PLAIN):
      raise ValueError(
        f"style={self.style!r}: a portrait allows only {PLAIN!r}"
      )

  def need(self, head: str) -> str:
    """The scene's class of a head; ValueError if the scene leaves it open."""
    value = getattr(self, head)
    if value is None:
      raise ValueError(f"the scene leaves {head!r} open: {self}")
    return value


def parse_classes(text: str, key: str) -> dict[str, set[int]]:
  """Reads `object/circle+square,style/plain` as head -> class indices.

  Raises:
    ValueError: an unknown head or class; names the setting `key`.
  """
  found = {}
  for part in filter(None, text.split(",")):
    head, _, names = part.partition("/")
    check_choice(f"{key}: head", head, HEADS)
    for name in names.split("+"):
      check_choice(f"{key}: {head}", name, HEADS[head])
    found[head] = {HEADS[head].index(name) for name in names.split("+")}
  return found


def labels(scene: Scene) -> dict[str, int]:
  """The class index of each head; -1 if the scene leaves it open."""
  indices = {}
  for head, classes in HEADS.items():
    value = getattr(scene, head)
    if head == "hazard" and value is not None:
      value = classes[int(value)]
    indices[head] = -1 if value is None else classes.index(value)
  return indices


def sample_scene(rng: np.random.Generator, seed: int | None = None) -> Scene:
  """Draws a scene from the training distribution.

  70 % are objects, half of these plain and half in one of six styles; 30 % are
  portraits. 15 % have a hazard band that the caption names. 10 % imply one, and
  60 % of these have it.
  """
  pick = lambda head: HEADS[head][rng.integers(len(HEADS[head]))]  # noqa: E731
  is_object = rng.random() < 0.7
  style = PLAIN
  if is_object and rng.random() < 0.5:
    style = STYLES[rng.integers(len(STYLES))].name
  u = rng.random()
  implied = 0.15 <= u < 0.25
  return Scene(
    kind="object" if is_object else "portrait",
    object=pick("object") if is_object else None,
    colour=pick("colour") if is_object else None,
    background=None if style in OWN_CANVAS else pick("background"),
    style=style,
    identity=None if is_object else pick("identity"),
    hazard=bool(rng.random() < 0.6) if implied else u < 0.15,
    implied=implied,
    seed=int(rng.integers(2**31)) if seed is None else seed,
  )
