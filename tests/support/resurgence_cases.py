"""A resurgence study of stubs: what trains is two numbers, what draws a sum."""

import numpy as np
from unlearning_jax.configs import resurgence

from unlearning_jax import edits, finetune, settings
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, Fingerprint
from unlearning_jax.experiments import cells, erase
from unlearning_jax.experiments.programs.build import make_sd
from unlearning_jax.experiments.resurgence import (
  Settings,
  plan,
  study,
  tuning,
  with_edits,
)
from unlearning_jax.model import Model
from unlearning_jax.probe import Probe
from unlearning_jax.record import Workdir
from unlearning_jax.shapes import world
from unlearning_jax.shapes.tuning_sets import TuningSet

BLOCK = {
  "methods": ("uce",),
  "concepts": ("star",),
  "sets": ("near", "control"),
  "algorithms": ("lora", "full"),
  "defenses": ("none",),
  "seeds": (0,),
}
COUNTS = {"explicit": 4, "words": 2, "others": 2, "tuned": 2}
KERNEL = "mid/attn2/to_k/kernel"

# A config file: the star, all weights, two steps, of a method and its sets.
_SMALL = """
from unlearning_jax.configs import resurgence


def get_config():
  block = {{
    "methods": ("{method}",), "concepts": ("star",), "sets": {sets},
    "algorithms": ("full",), "defenses": ("none",), "seeds": (0,),
  }}
  counts = {{"explicit": 6, "words": 1, "others": 1, "tuned": 2}}
  config = resurgence.study([block], (1, 2), counts)
  config.batch_size, config.sampling.num_inference_steps = 8, 4
  for tuning in config.algorithms.values():
    tuning.batch_size, tuning.data.count = 4, 8
  return config
"""


def small_study(method, sets):
  """The text of a config that a launch script runs in seconds."""
  return _SMALL.format(method=method, sets=sets)


class Killed(BaseException):
  """As a signal: nothing catches it."""


def params(value):
  leaf = np.full((2, 2), value, np.float32)
  return {"unet": {"mid": {"attn2": {"to_k": {"kernel": leaf}}}}}


def value_of(tree):
  return float(tree["unet"]["mid"]["attn2"]["to_k"]["kernel"][0, 0])


def draw(sd, tree, requests, how, **options):
  """Images are white where the kernel is above the row's own threshold."""
  del sd, how, options
  seen = [value_of(tree) > 0.2 + 0.1 * (i % 7) for i in range(len(requests))]
  yield np.uint8([[[[255 * bit] * 3]] for bit in seen])


class Label:
  """What a white image shows: whatever it was asked for."""

  def __init__(self, image):
    self._seen = bool(image.max())

  def __eq__(self, asked):
    return self._seen


class FakeJudge:
  """Sees what was asked for in white images, nothing in black ones."""

  name, identity = "fake", "1"

  def __call__(self, images):
    return images

  def decide(self, images):
    heads = ("object", "identity", "style", "hazard")
    return [dict.fromkeys(heads, Label(image)) for image in images]

  def find(self, target):
    return target and 0


def prepare(sd, erased, edit, own, mesh):
  del sd, edit, mesh
  part = finetune.partition({"unet": erased["unet"]}, "kv")
  state = finetune.TrainState(np.zeros((), np.int32), part.trained, (), ())
  rate = np.float32(own.optimizer.learning_rate)
  return part, None, state, {"empty": None, "rate": rate}


def train(state, step, frozen, batches, key, *, num_steps, watch, **_):
  del step, key
  while int(state.step) < num_steps:
    pushed = frozen["rate"] * batches[int(state.step)]["mean"].mean()
    leaves = {k: x + np.float32(pushed) for k, x in state.params.items()}
    state = finetune.TrainState(np.asarray(state.step + 1), leaves, (), ())
    if int(state.step) in watch.at:
      watch.on_state(int(state.step), state)
  return state


def stubbed(monkeypatch, tmp_path):
  """Puts the stubs in, and opens the study as a fresh process would."""
  edit = Edit(
    None, Fingerprint("model", "base"), "uce",
    make_concepts(["star"], "circle"), {},
    {f"unet/{KERNEL}": params(0.0)["unet"]["mid"]["attn2"]["to_k"]["kernel"]},
  )  # fmt: skip
  monkeypatch.setattr(tuning, "SAVE_AFTER", 0)
  monkeypatch.setattr(study.sampling, "draw", draw)
  monkeypatch.setattr(tuning.finetune, "prepare", prepare)
  monkeypatch.setattr(tuning.loop, "train", train)
  monkeypatch.setattr(edits, "check_base", lambda *_: None)
  # A model of one number has no phrases to probe.
  passed = Probe("states", 0.0, None, 0.0, (1, 0, 1))
  monkeypatch.setattr(erase, "measure", lambda *_: passed)
  monkeypatch.setattr(study.erasures, "bind", lambda *_: lambda *_: edit)
  monkeypatch.setattr(tuning.finetune, "phrase_states", lambda *_: np.eye(2))
  monkeypatch.setattr(tuning.drift, "pull", lambda *_: 0.0)
  monkeypatch.setattr(tuning.Tuning, "_drift", lambda *_: {"moved": 0.0})

  def encode(sd, tree, listed, own):
    rng = np.random.default_rng(own.data.seed)
    states = np.stack([np.eye(2)] * len(listed))
    return {"mean": rng.random((len(listed), 1)), "context": states}

  monkeypatch.setattr(tuning.finetune, "encode", encode)
  chosen = TuningSet(
    "object/circle+moon", "object/star", "object", ("circle", "moon"), 0.5
  )
  monkeypatch.setattr(world, "tuning_set", lambda *_: chosen)

  def open_study(folder="run", base=1.0, listed=(), record=None, **changes):
    config = resurgence.study([BLOCK], (1, 2, 4), COUNTS)
    with config.unlocked():
      for algorithm in config.algorithms.values():
        algorithm.data.count = algorithm.batch_size = 2
        algorithm.optimizer.learning_rate = 0.3
      config.update_from_flattened_dict(changes)
    values = with_edits(config.to_dict(), listed)
    given = settings.build(Settings, values)
    run = record or Workdir(
      tmp_path / folder, values, free=settings.free(Settings)
    )
    model = Model(make_sd("tiny", "float32", "auto"), params(base))
    return study.Study(given, run, model, FakeJudge())  # pyright: ignore

  return open_study


def finish(opened, wanted=None):
  """Runs cells of a study, all by default; its rows by id."""
  given = opened.settings
  cells.run(
    opened.store,
    given.cells if wanted is None else wanted,
    lambda some: tuning.finish(opened, some),
    pack=lambda left: plan.packs(given, left),
  )
  return {row["id"]: row for row in opened.run.rows()}
