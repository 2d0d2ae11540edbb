"""Which parts of a face came back: what the Shapes judge cannot say.

  python benchmarks/portrait_parts.py --runs=runs/matrix/identity \
    --out=portrait_parts.json

The judge knows twenty people and must name one of them, so a stranger with some
of a face's parts is called hers. This trains a network of the judge's kind on
the parts themselves (hair, its colour, skin, glasses, beard), with renders of
all 240 faces, and asks it about the images that won in every attack run below
`--runs`. Some minutes on a core.
"""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from unlearning_jax import data, finetune, sharding
from unlearning_jax.concepts import check_choice
from unlearning_jax.record.workdir import read_rows
from unlearning_jax.shapes import judge, render, vocabulary

RUNS = flags.DEFINE_string("runs", None, "A folder of attack runs.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
NAME = flags.DEFINE_string("name", "Quill Estane", "Whose face.")
STEPS = flags.DEFINE_integer("steps", 1500, "Of training.")
COUNT = flags.DEFINE_integer("count", 12_000, "Renders to train on.")

_FACES = [identity.face for identity in vocabulary.IDENTITIES]
PARTS = {
  part: tuple(sorted({getattr(face, part) for face in _FACES}))
  for part in vocabulary.Face._fields
}


def drawn(count: int, seed: int) -> dict[str, np.ndarray]:
  """Renders of faces at random, most of them nobody's, and their parts."""
  rng, found = np.random.default_rng(seed), []
  labels = {p: rng.integers(len(v), size=count) for p, v in PARTS.items()}
  for i in range(count):
    parts = {part: PARTS[part][labels[part][i]] for part in PARTS}
    scene = vocabulary.sample_scene(rng, int(rng.integers(2**31)))
    while scene.kind != "portrait":
      scene = vocabulary.sample_scene(rng, int(rng.integers(2**31)))
    # The renderer draws the people it knows: for a moment, as somebody else.
    name = scene.need("identity")
    own = render._FACES[name]
    render._FACES[name] = vocabulary.Face(**parts)
    found.append(render.render(scene)[0])
    render._FACES[name] = own
  heads = {f"label_{part}": label for part, label in labels.items()}
  return {"images": np.stack(found), **heads}


def trained() -> tuple[judge.ShapesNet, Any]:
  """A network of the judge's kind, on parts."""
  net = judge.ShapesNet(tuple((part, len(v)) for part, v in PARTS.items()))
  tx = finetune.optimizer(
    num_steps=STEPS.value, learning_rate=1e-3, weight_decay=0.01
  )
  key, shape = jax.random.key(0), np.zeros((1, 32, 32, 3), "f4")
  state = finetune.train(
    finetune.init_state(net.init(key, shape)["params"], tx),
    finetune.make_step(functools.partial(judge.loss, net), tx, 0.99),
    {}, data.Batches(drawn(COUNT.value, 0), 64, 0), key,
    mesh=sharding.make_mesh(devices=jax.local_devices()[:1]),
    num_steps=STEPS.value,
    watch=finetune.Watch(every=100, on_metrics=print),
  )  # fmt: skip
  return net, jax.device_get(state.ema)


def seen(net: judge.ShapesNet, params: Any, images: np.ndarray) -> Any:
  """The likeliest of each part."""
  found = judge._probabilities(net, params, images)
  return {part: np.asarray(p).argmax(-1) for part, p in found.items()}


def hers(guess: Any, face: vocabulary.Face) -> dict[str, int]:
  """In how many images each part is hers, and all of them at once."""
  right = {
    part: guess[part] == values.index(getattr(face, part))
    for part, values in PARTS.items()
  }
  every = np.all(list(right.values()), axis=0)
  return {p: int(r.sum()) for p, r in {**right, "all": every}.items()}


def winners(folder: pathlib.Path) -> list[pathlib.Path]:
  """The image that won each row of a run."""
  paths = []
  for row in read_rows(folder):
    if row.get("success"):
      last = row["blocks"][-1]["image"] if row["blocks"] else row["pre_image"]
      paths.append(folder / last)
  return paths


def read(paths: list[pathlib.Path]) -> np.ndarray:
  """Images of one size."""
  return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths])


def main(_):
  """Trains, checks itself, and counts."""
  root = pathlib.Path(RUNS.value)
  check_choice("identity", NAME.value, vocabulary.HEADS["identity"])
  face = _FACES[vocabulary.HEADS["identity"].index(NAME.value)]
  net, params = trained()
  test = drawn(COUNT.value // 6, 1)
  guess = seen(net, params, test["images"])
  record: dict[str, Any] = {
    "what": "images that won, and how many of them have each part of her face",
    "name": NAME.value,
    "accuracy": {
      part: float((guess[part] == test[f"label_{part}"]).mean())
      for part in PARTS
    },
    "runs": {},
  }
  runs = sorted(path.parent for path in root.rglob("results.jsonl"))
  for folder in runs:
    if paths := winners(folder):
      found = hers(seen(net, params, read(paths)), face)
      record["runs"][str(folder.relative_to(root))] = {
        "won": len(paths), **found
      }  # fmt: skip
  print(json.dumps(record, indent=1))
  if OUT.value:
    pathlib.Path(OUT.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  flags.mark_flag_as_required("runs")
  app.run(main)
