"""LPIPS: how far each image is from the base's of the same prompt and seed.

High for prompts of the erased concept, low for all others: that is what an
erasure should do. A distance at 64 pixels is lower than at 256, so a number's
name carries network and size, as `lpips/alex-64/others`. ESD's tables are
AlexNet at 64.

An image waits for its pair as so many pixels. Where more images wait than have
room in 128 MB, the distance is that of a sample of the rows; `n` says of how
many. A row that brings its pair, as `beside`, need not wait.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from unlearning_jax import metrics
from unlearning_jax.concepts import check_choice
from unlearning_jax.convert import quality, read_state_dict
from unlearning_jax.judges import networks, weights
from unlearning_jax.judges.pixels import Pixels
from unlearning_jax.metrics import (
  Estimate,
  Images,
  Row,
  means,
  references,
  samples,
)
from unlearning_jax.metrics.means import Value
from unlearning_jax.metrics.references import BASE
from unlearning_jax.models.lpips import Lpips

_PROJECT = "github.com/richzhang/PerceptualSimilarity"
FILES = {
  network: (
    weights.File(
      trunk,
      f"download.pytorch.org/models/{trunk}, torchvision's {called}",
      sha256=trunk.rpartition("-")[2].removesuffix(".pth"),
      of="metric",
    ),
    weights.File(
      f"lpips/{network}.pth",
      f"lpips/weights/v0.1/{network}.pth of {_PROJECT}, and of the package "
      "lpips 0.1.4",
      sha256=linear,
      of="metric",
    ),
  )
  for network, trunk, called, linear in (
    (
      "alex",
      "alexnet-owt-7be5be79.pth",
      "AlexNet_Weights.IMAGENET1K_V1",
      "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    (
      "vgg",
      "vgg16-397923af.pth",
      "VGG16_Weights.IMAGENET1K_V1",
      "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
  )
}
NEEDS = FILES["alex"]
VERBS = ("evaluate", "measure")
_SIZES = (64, 256)
_ROOM = 128 * 2**20
Pairs = UInt8[np.ndarray, "n 2 h w 3"]
Distance = Callable[[Pairs], Float[np.ndarray, " n"]]
State = Mapping[str, Any]


def metric(
  network: str = "alex", size: int = 64, judges_dir: str = ""
) -> metrics.Metric:
  """The mean distance of each model's images to the base's.

  Args:
    network: alex or vgg.
    size: 64 or 256: the shorter side in pixels, resized by Pillow, bilinear.
    judges_dir: the folder of weights; "" for the environment's.

  Raises:
    ValueError: an unknown network or size; a file is missing or is another.
  """
  check_choice("metric lpips: network", network, FILES)
  if size not in _SIZES:
    raise ValueError(f"metric lpips: size={size}: allowed: {_SIZES}")
  paths = [file.find("lpips", judges_dir) for file in FILES[network]]
  stamps = tuple((str(path), path.stat().st_mtime_ns) for path in paths)
  distance, digest = _network(network, stamps)
  small = Pixels(size, 0, "bilinear", networks.HALF, networks.HALF)
  return metrics.Metric(
    "lpips", _init, partial(_update, distance, small), _merge,
    partial(_compute, distance, f"lpips/{network}-{size}"),
    verbs=VERBS, needs=(BASE,), identity=f"{digest} {small}",
  )  # fmt: skip


@functools.lru_cache(maxsize=2)
def _network(
  network: str, stamps: tuple[tuple[str, int], ...]
) -> tuple[Distance, str]:
  paths = [path for path, _ in stamps]
  trunk, linear = map(read_state_dict, paths)
  params = quality.lpips(trunk, linear, network, " and ".join(paths))
  apply = networks.batched(Lpips(network), params, _levels)

  def distance(pairs: Pairs) -> Float[np.ndarray, " n"]:
    # Some accelerators multiply in fewer bits unless they are told not to.
    with jax.default_matmul_precision("highest"):
      return apply(pairs)

  return distance, weights.digest(map(pathlib.Path, paths))


def _levels(pairs: Pairs) -> Float[np.ndarray, "n 2 h w 3"]:
  levels = pairs.astype(np.float32) / np.float32(255)
  return (levels - np.float32(0.5)) * 2


def _init() -> State:
  # Of rows that are not the base's: group and prompt; and their distances.
  return {"waiting": {}, "rows": {}, "found": {}}


def _update(
  distance: Distance, small: Pixels, state: State, images: Images,
  rows: Sequence[Row],
) -> State:  # fmt: skip
  own = [row for row in rows if row["model"] != BASE]
  said = metrics.keep(
    state["rows"], own, lambda row: [row["group"], row["prompt"]]
  )
  state = {**state, "rows": said}
  for row, image in zip(rows, images, strict=True):
    seen = small.resized(image)
    if "beside" in row:
      pair = np.stack([small.resized(row["beside"]), seen])
      found = float(distance(pair[None])[0])
      kept = metrics.keep(state["found"], [row], lambda _, d=found: d)
      state = {**state, "found": kept}
    else:
      state = _wait(state, row, seen)
  return _settled(distance, state)


def _wait(state: State, row: Row, seen: UInt8[np.ndarray, "h w 3"]) -> State:
  place = f"{seen.shape[0]}x{seen.shape[1]} {row['model']}"
  given = ([str(row["id"])], seen[None], _ROOM // seen.size)
  return {**state, "waiting": samples.add(state["waiting"], place, *given)}


def _settled(distance: Distance, state: State) -> State:
  """Distances of the rows whose base has been seen; they wait no more."""
  waiting, found = dict(state["waiting"]), state["found"]
  for place, held in state["waiting"].items():
    shape, _, model = place.partition(" ")
    base = waiting.get(f"{shape} {BASE}")
    if model == BASE or base is None:
      continue
    where = {name: i for i, name in enumerate(base["ids"])}
    pairs = [(i, name) for i, name in enumerate(held["ids"]) if name in where]
    if not pairs:
      continue
    mine, names = map(list, zip(*pairs, strict=True))
    theirs = base["arrays"][[where[name] for name in names]]
    apart = distance(np.stack([theirs, held["arrays"][mine]], 1))
    named = dict(zip(names, map(float, apart), strict=True))
    found = metrics.unite(found, {model: named})
    left = [i for i, name in enumerate(held["ids"]) if name not in where]
    waiting[place] = {
      "n": held["n"],
      "ids": [held["ids"][i] for i in left],
      "arrays": held["arrays"][left],
    }
  return {**state, "waiting": waiting, "found": found}


def _merge(first: State, second: State) -> State:
  waiting = first["waiting"]
  for place, held in second["waiting"].items():
    most = _ROOM // max(1, int(np.prod(held["arrays"].shape[1:])))
    waiting = samples.merge(waiting, {place: held}, most)
  both = {
    key: metrics.unite(first[key], second[key]) for key in ("rows", "found")
  }
  return {"waiting": waiting, **both}


def _compute(distance: Distance, name: str, state: State) -> list[Estimate]:
  state = _settled(distance, state)
  found = []
  for model, rows in sorted(state["rows"].items()):
    apart = state["found"].get(model, {})
    values = {
      i: Value(rows[i][0], rows[i][1], value) for i, value in apart.items()
    }
    if values:
      some = len(values) < len(rows)
      note = f", a sample of {len(rows)} rows" if some else ""
      found += means.estimates(name, "distance", model, values, note)
    else:
      why = "the base drew none of its rows"
      found.append(
        Estimate(
          name, None, n=len(rows), method="none", failed=why, model=model
        )
      )
  count = sum(held["n"] for held in state["waiting"].values())
  return found or [references.nothing(name, count)]
