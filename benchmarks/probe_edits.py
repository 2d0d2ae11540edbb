"""The edits that calibrate the probe: which there are, and how they are made.

Half `chosen` has the edits that the probe's limits were chosen on. `shown` has
those of other classes, in the same settings; both were seen before the probe
got its present form. `blind` has edits of further classes but for hazard, and
about half of their settings are new. They were listed before one was drawn or
probed, and the limits were chosen before a verdict on one of them was known.
`fresh` has closed forms alone, in settings that no other half has; a seed says
which class has which. They were listed, with the rule that they were to decide
on, before one was drawn or probed.
"""

import dataclasses
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import jax

from unlearning_jax import erasures, extensions, guidance
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import save_edit
from unlearning_jax.experiments import common
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import Model

HALVES = ("chosen", "shown", "blind", "fresh")
# Classes in the order in which they come; `cheap` of them, or the first alone.
CLASSES = {
  "chosen": ("star", "moon", "house", "neon", "Quill Estane"),
  "shown": ("fish", "heart", "swirl", "Hob Sarnett"),
  "blind": (
    "ring", "sketch", "Fenn Urquell", "cross", "mosaic", "Kestra Lume",
    "hazard", "arrow", "halftone", "Rhea Stroud", "triangle", "hatching",
    "Dorin Hask",
  ),
}  # fmt: skip

# Closed forms and guidance: (name, method, phrases, hyperparameters); `recipe`
# is the world's, `name` the bare name, `held` that with the world's list.
# `thin` is `recipe`, and `few` is `held`, with every tenth phrase of the list.
CHEAP = (
  ("recipe", "uce", "recipe", {"preserve_scale": 1.0}),
  ("name", "uce", "name", {}),
  ("held", "uce", "held", {}),
  ("held-light", "uce", "held", {"preserve_scale": 0.001}),
  ("light", "uce", "recipe", {"preserve_scale": 30.0}),
  ("stiff", "uce", "recipe", {"preserve_scale": 1.0, "lamb": 1000.0}),
  ("unheld", "uce", "recipe", {"preserve_scale": 0.0}),
  ("recipe", "rece", "recipe", {"uce_preserve_scale": 1.0, "rows": "joint"}),
  ("name", "rece", "name", {}),
  ("recipe", "time", "recipe", {}),
  ("name", "time", "name", {}),
  ("stiff", "time", "recipe", {"lamb": 3000.0}),
  ("weak", "sld", "guided", {"preset": "weak"}),
  ("strong", "sld", "guided", {"preset": "strong"}),
  ("max", "sld", "guided", {"preset": "max"}),
  ("recipe", "negative_prompt", "guided", {}),
)
# Trained, of one class of each task: (name, method, what the recipe has else).
TRAINED = (
  ("short", "esd", {"num_steps": 25}),
  ("recipe", "esd", {}),
  ("hot", "esd", {"num_steps": 60, "learning_rate": 1e-3}),
  ("short", "concept_ablation", {"num_steps": 20}),
  ("recipe", "concept_ablation", {}),
  ("recipe", "mace", {}),
  ("stiff", "mace", {"lamb": 1e6, "num_steps": 10}),
)
_TRAINED_OF = {
  "chosen": ("star", "neon", "Quill Estane", "hazard"),
  "shown": ("fish", "swirl", "Hob Sarnett"),
}

# The blind half: each class takes five of these, the next class the next five.
BLIND = (
  ("recipe", "uce", "recipe", {"preserve_scale": 1.0}),
  ("name", "rece", "name", {}),
  ("rigid", "time", "recipe", {"lamb": 10000.0}),
  ("strong", "sld", "guided", {"preset": "strong"}),
  ("gentle", "uce", "recipe", {"preserve_scale": 5.0}),
  ("name", "uce", "name", {}),
  ("recipe", "time", "recipe", {}),
  ("light", "uce", "recipe", {"preserve_scale": 15.0}),
  ("held", "uce", "held", {}),
  ("recipe", "negative_prompt", "guided", {}),
  ("unheld", "uce", "recipe", {"preserve_scale": 0.0}),
  ("recipe", "rece", "recipe", {"uce_preserve_scale": 1.0, "rows": "joint"}),
  ("firm", "uce", "recipe", {"preserve_scale": 1.0, "lamb": 300.0}),
  ("medium", "sld", "guided", {"preset": "medium"}),
  ("name", "time", "name", {}),
  ("stiff", "uce", "recipe", {"preserve_scale": 1.0, "lamb": 2000.0}),
  ("held-light", "uce", "held", {"preserve_scale": 0.01}),
  ("soft", "time", "recipe", {"lamb": 1000.0}),
  ("max", "sld", "guided", {"preset": "max"}),
  ("loose", "uce", "recipe", {"preserve_scale": 0.01}),
  ("gentle", "rece", "recipe", {"uce_preserve_scale": 5.0, "rows": "joint"}),
)
# (name, method, what the recipe has else, class).
BLIND_TRAINED = (
  ("brief", "esd", {"num_steps": 50}, "ring"),
  ("recipe", "esd", {}, "cross"),
  ("warm", "esd", {"num_steps": 80, "learning_rate": 5e-4}, "hatching"),
  ("recipe", "esd", {}, "Fenn Urquell"),
  ("brief", "concept_ablation", {"num_steps": 45}, "arrow"),
  ("recipe", "concept_ablation", {}, "halftone"),
  ("recipe", "mace", {}, "triangle"),
  ("stiff", "mace", {"lamb": 1e5, "num_steps": 10}, "Rhea Stroud"),
  ("recipe", "esd", {}, "mosaic"),
  ("brief", "concept_ablation", {"num_steps": 45}, "Kestra Lume"),
)

# The fresh half. By a guess, the first twelve leave edits near a limit, the
# next six good ones, and the last six failed ones.
FRESH = (
  ("ten", "uce", "recipe", {"preserve_scale": 10.0}),
  ("eighteen", "uce", "recipe", {"preserve_scale": 18.0}),
  ("ridge-700", "uce", "recipe", {"preserve_scale": 1.0, "lamb": 700.0}),
  ("ridge-4000", "uce", "recipe", {"preserve_scale": 1.0, "lamb": 4000.0}),
  ("held-6", "uce", "held", {"preserve_scale": 0.006}),
  ("held-20", "uce", "held", {"preserve_scale": 0.02}),
  ("ridge-30000", "time", "recipe", {"lamb": 30000.0}),
  ("twelve", "rece", "recipe", {"uce_preserve_scale": 12.0, "rows": "joint"}),
  ("ridge-30", "uce", "name", {"lamb": 30.0}),
  ("ridge-30", "time", "name", {"lamb": 30.0}),
  ("thin", "uce", "thin", {"preserve_scale": 1.0}),
  ("few", "uce", "few", {}),
  ("tenth", "uce", "recipe", {"preserve_scale": 0.1}),
  ("two", "uce", "recipe", {"preserve_scale": 2.5}),
  ("held-2", "uce", "held", {"preserve_scale": 0.002}),
  ("fifth", "rece", "recipe", {"uce_preserve_scale": 0.2, "rows": "joint"}),
  ("ridge-50", "time", "recipe", {"lamb": 50.0}),
  ("three", "time", "recipe", {"preserve_scale": 3.0}),
  ("sixty", "uce", "recipe", {"preserve_scale": 60.0}),
  ("ridge-20000", "uce", "recipe", {"preserve_scale": 1.0, "lamb": 20000.0}),
  ("held-100", "uce", "held", {"preserve_scale": 0.1}),
  ("unheld-5", "uce", "recipe", {"preserve_scale": 0.0, "lamb": 5.0}),
  ("ridge-1", "rece", "name", {"lamb": 1.0, "uce_lamb": 1.0}),
  ("ridge-1", "time", "name", {"lamb": 1.0}),
)
# Task -> how many fresh edits. Classes of no other half come first.
FRESH_OF = {"object": 16, "style": 12, "identity": 14, "unsafe": 6}
FRESH_SEED = 20261130


@dataclasses.dataclass(frozen=True)
class Spec:
  """One edit to make.

  Attributes:
    id: of its row.
    half: of `HALVES`.
    task: of its class.
    name: the class.
    method: who erases.
    phrases: see `CHEAP`.
    hparams: of the method.
  """

  id: str
  half: str
  task: str
  name: str
  method: str
  phrases: str
  hparams: dict[str, Any]


def specs() -> Iterator[Spec]:
  """Every edit, half by half; those that take long come last in each."""
  for half in HALVES[:2]:
    for name in CLASSES[half]:
      for setting in CHEAP:
        yield _cheap(half, name, *setting)
    firsts = _TRAINED_OF[half]
    for turn in range(len(firsts)):
      for i, (label, method, h) in enumerate(TRAINED):
        yield _trained(half, label, method, h, firsts[(turn + i) % len(firsts)])
  for turn in range(5):
    for i, name in enumerate(CLASSES["blind"]):
      yield _cheap("blind", name, *BLIND[(5 * i + turn) % len(BLIND)])
  for setting in BLIND_TRAINED:
    yield _trained("blind", *setting)
  for name, setting in _fresh():
    yield _cheap("fresh", name, *setting)


def _fresh() -> list[tuple[str, tuple[str, str, str, dict[str, Any]]]]:
  """Each fresh setting twice, never of one class; a seed shuffles them."""
  rng, names = random.Random(FRESH_SEED), []
  used = {name for half in CLASSES.values() for name in half}
  for task, count in FRESH_OF.items():
    classes = list(extensions.world("shapes").concepts()[task])
    rng.shuffle(classes)
    classes.sort(key=lambda name: name in used)
    names += [classes[i % len(classes)] for i in range(count)]
  places = [i % len(FRESH) for i in range(len(names))]
  rng.shuffle(places)
  while len({*zip(names, places, strict=True)}) < len(names):
    rng.shuffle(places)
  pairs = [*zip(names, places, strict=True)]
  # So that a part of them has something of every task.
  rng.shuffle(pairs)
  return [(name, FRESH[place]) for name, place in pairs]


def _cheap(
  half: str, name: str, label: str, method: str, phrases: str, h: dict[str, Any]
) -> Spec:
  task = extensions.world("shapes").task_of(name)
  return Spec(_id(method, label, name), half, task, name, method, phrases, h)


def _trained(
  half: str, label: str, method: str, h: dict[str, Any], name: str
) -> Spec:
  world = extensions.world("shapes")
  task = world.task_of(name)
  own = world.hparams(method, task) | h
  return Spec(_id(method, label, name), half, task, name, method, "recipe", own)


def _id(method: str, label: str, name: str) -> str:
  return f"{method}-{label}-{name}".replace(" ", "-")


def concepts(spec: Spec) -> tuple[Concept, ...]:
  """What is erased, as `CHEAP` says."""
  world = extensions.world("shapes")
  listed = world.concept(spec.name, spec.method)
  if spec.phrases in ("recipe", "guided"):
    return listed
  if spec.phrases == "thin":
    few = listed[0].preserve[::10]
    return tuple(dataclasses.replace(one, preserve=few) for one in listed)
  said = world.phrases(spec.task, spec.name)["explicit"][0]
  anchor = listed[0].anchor if spec.task in ("object", "identity") else ""
  held = {"held": listed[0].preserve, "few": listed[0].preserve[::10]}
  held = held.get(spec.phrases, ())
  return (Concept(said, anchor, held, listed[0].task),)


def made(spec: Spec, model: Model, folder: pathlib.Path) -> Model:
  """The erased model; its edit is kept, and read where it is there."""
  path = folder / "edits" / f"{spec.id}.safetensors"
  path.parent.mkdir(parents=True, exist_ok=True)
  for file in (path, path.with_suffix(".json")):
    if file.exists():
      return model.with_made(common.read_made(file))
  bound = erasures.bind(spec.method, spec.hparams)
  found = bound(model.sd, model.params, concepts(spec), jax.random.key(0))
  if isinstance(found, Guidance):
    guidance.save(found, path.with_suffix(".json"))
  else:
    save_edit(found, path)
  return model.with_made(found)
