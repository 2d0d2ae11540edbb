"""ESD's versions: their numbers, who walks, the target, one step of each.

The walk and the target are computed again as the releases have them, with the
schedulers of torch diffusers, around a network that is one line.
"""

import dataclasses

import jax
import numpy as np
import pytest

from tests.stable_diffusion_test import TINY, make_files
from unlearning_jax import stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import Hooks, esd

pytestmark = pytest.mark.usefixtures("quickest_compiler")
CONCEPTS = make_concepts(["a b"])
COUNT = 10
ETA = 1.5
GUIDANCE = 2.0
SCHEDULER = CONFIGS["scheduler"] | TINY["scheduler"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return stable_diffusion.from_files(make_files(tmp_path_factory.mktemp("m")))


def test_the_published_numbers():
  found = {name: dataclasses.asdict(esd.PRESETS[name]) for name in esd.PRESETS}
  paper = {
    "learning_rate": 1e-5, "num_steps": 1000, "by_base": False,
    "too_clean": False, "sampler": "ddim", "norms": True,
  }  # fmt: skip
  assert found == {
    "fixed": paper,
    "reference": paper | {"too_clean": True},
    "reference2025": paper | {
      "learning_rate": 5e-5, "num_steps": 200, "by_base": True,
      "sampler": None, "norms": False,
    },
  }  # fmt: skip


def weight(params):
  """The leaf that tells the edited network from the original."""
  blocks = params["unet"]["down_blocks_0"]["attentions_0"]
  return blocks["transformer_blocks_0"]["attn2"]["to_k"]["kernel"]


def network(slope, x, t, states):
  """Depends on all that it is told: weights, latents, timestep, text."""
  return slope * x + states * (1 + t / 1000)


def walked(preset, network, noise, draw, within):
  """x_t and t of a release; `network(x, t, phrase)` is the one that walks."""
  diffusers = pytest.importorskip("diffusers")
  torch = pytest.importorskip("torch")
  kinds = {"reference2025": diffusers.PNDMScheduler}
  kind = kinds.get(preset, diffusers.DDIMScheduler)
  scheduler = kind.from_config(SCHEDULER)
  scheduler.set_timesteps(COUNT)
  times, x = scheduler.timesteps.tolist(), noise

  def step(x, t):
    empty, towards = (network(x, t, name) for name in ("empty", "student"))
    out = torch.tensor(empty + GUIDANCE * (towards - empty))
    return scheduler.step(out, t, torch.tensor(x)).prev_sample.numpy()

  if preset != "reference":
    for t in times[:draw]:
      x = step(x, t)
    return x, times[draw]
  # The index counts from the clean end; the noisiest step is not made.
  for index in reversed(range(COUNT - 1)):
    x = step(x, times[COUNT - 1 - index])
    if index + 1 == draw:
      break
  return x, draw * 1000 // COUNT + within


@pytest.mark.torch
@pytest.mark.parametrize("erase_from", [None, "f"])
@pytest.mark.parametrize("preset", esd.PRESETS)
def test_a_steps_loss_is_the_releases(preset, erase_from, model, monkeypatch):
  sd, params = model
  taken = {}

  def caught(loss, tx, trained, frozen, batches, key, **options):
    taken.update(options, loss=loss, frozen=frozen, batch=batches[0])
    return jax.tree.map(lambda leaf: leaf + 1, trained)

  def predict(sd, p, x, t, states):
    return network(
      weight(p).mean(),
      x,
      *(v[:, None, None, None] for v in (t, states.mean((1, 2)))),
    )

  monkeypatch.setattr(stable_diffusion, "predict_noise", predict)
  esd.erase(
    sd,
    params,
    CONCEPTS,
    jax.random.key(0),
    esd.Hparams(
      preset=preset,
      train="strict",
      eta=ETA,
      erase_from=erase_from,
      start_guidance=GUIDANCE,
      num_inference_steps=COUNT,
    ),
    Hooks(trainer=caught),
  )
  assert taken["num_steps"] == {"reference2025": 200}.get(preset, 1000)
  assert taken["batch_size"] == 1

  original = np.float32(weight(params).mean())
  slope = original + np.float32(0.5)
  edited = jax.tree.map(lambda leaf: leaf + 0.5, taken["frozen"]["base"])
  of = {}
  for name, phrase in (
    ("student", erase_from or "a b"), ("concept", "a b"), ("empty", ""),
  ):  # fmt: skip
    ids = stable_diffusion.tokenize(sd, [phrase])
    states = stable_diffusion.encode_text(sd, params, ids)
    of[name] = np.float32(states.mean())
  walker = original if preset == "reference2025" else slope
  # Of the step's key: noise, how far the walk goes, t within a gap.
  step = jax.jit(jax.value_and_grad(taken["loss"], has_aux=True))
  draws = set()
  for seed in range(6):
    keys = jax.random.split(jax.random.key(seed), 3)
    noise = np.asarray(jax.random.normal(keys[0], (1, *sd.latent_shape)))
    draw = int(jax.random.randint(keys[1], (), 0, COUNT))
    within = int(jax.random.randint(keys[2], (), 0, 1000 // COUNT))
    x, t = walked(
      preset, lambda x, t, name: network(walker, x, t, of[name]),
      noise, draw, within,
    )  # fmt: skip
    says = {name: network(original, x, t, of[name]) for name in of}
    away = says["concept"] - says["empty"]
    if preset == "reference2025" or erase_from:
      # Counted from where it starts; without one, from the concept itself.
      target = says["student"] - (ETA + 1) * away
    else:
      target = says["empty"] - ETA * away
    error = network(slope, x, t, of["student"]) - target
    (value, _), gradient = step(
      edited, taken["frozen"], taken["batch"], jax.random.key(seed)
    )
    np.testing.assert_allclose(value, (error**2).mean(), rtol=1e-4)
    # Through the scored prediction alone: not the walk, not the target.
    slopes = sum(float(leaf.sum()) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(slopes, (2 * error * x).mean(), rtol=1e-3)
    draws.add(draw)
  assert len(draws) > 3


@pytest.mark.slow
@pytest.mark.parametrize("preset", esd.PRESETS)
def test_one_step_of_each(preset, model):
  sd, params = model
  edit = esd.erase(
    sd,
    params,
    CONCEPTS,
    jax.random.key(0),
    esd.Hparams(
      preset=preset, train="strict", num_steps=1, num_inference_steps=2
    ),
  )
  made = apply_to_params(edit, params)
  moved = np.abs(weight(made) - weight(params))
  # Adam's first step is the rate, whatever the gradient.
  rate = 5e-5 if preset == "reference2025" else 1e-5
  np.testing.assert_allclose(np.median(moved), rate, rtol=0.02)
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, made)
  leaves = jax.tree_util.tree_leaves_with_path(changed)
  assert all(
    new == ("attn2/to_k" in path or "attn2/to_v" in path)
    for path, new in (
      (jax.tree_util.keystr(key, simple=True, separator="/"), leaf)
      for key, leaf in leaves
    )
  )
