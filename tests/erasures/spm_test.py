"""SPM: its adapters, its random text states, its rate, its loss in torch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import torch_unets
from unlearning_jax import schedules
from unlearning_jax.erasures import spm
from unlearning_jax.projections import leaves_of

pytestmark = pytest.mark.usefixtures("quickest_compiler")
DDIM = {"_class_name": "DDIMScheduler", "steps_offset": 1}


class Model(NamedTuple):
  """What a step reads of a `StableDiffusion`."""

  schedule: schedules.Schedule
  latent_shape: tuple[int, ...]


def test_adapters_add_their_product_to_matrices_and_narrow_convolutions():
  rng = np.random.default_rng(0)
  shapes = {"unet/attentions_0/a/kernel": (5, 3), "unet/b/kernel": (2, 2)}
  shapes |= {"unet/attentions_0/c/kernel": (1, 1, 4, 6)}
  leaves = {k: rng.normal(size=s).astype("f4") for k, s in shapes.items()}
  tree = spm.join_leaves({}, leaves)
  kernels = spm.adapted(tree["unet"])
  assert set(kernels) == set(leaves) - {"unet/b/kernel"}
  pairs = spm.fresh(kernels, 2, jax.random.key(0))
  for path, pair in pairs.items():
    assert not pair["up"].any()
    assert np.abs(pair["down"]).max() <= leaves[path].shape[-2] ** -0.5
    pair["up"] = jnp.asarray(rng.normal(size=pair["up"].shape), jnp.float32)
  merged = leaves_of(spm.merge(0.5, pairs, leaves))
  for path, leaf in leaves.items():
    wanted = np.float64(leaf)
    if path in pairs:
      down, up = (np.float64(pairs[path][n]) for n in ("down", "up"))
      wanted = wanted + 0.5 * (down @ up).reshape(leaf.shape)
    np.testing.assert_allclose(merged[path], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "shape, words",
  [((3, 3, 4, 6), "wider than 1 x 1"), (None, "has 0 kernels")],
)
def test_a_unet_that_cannot_be_adapted(shape, words):
  inner = {"c": {"kernel": np.zeros(shape)}} if shape else {"d": {}}
  with pytest.raises(ValueError, match=words):
    spm.adapted({"attentions_0": inner, "conv_in": {"kernel": np.zeros(3)}})


def test_a_rank_that_does_not_fit():
  with pytest.raises(ValueError, match="rank=4; allowed: 1 to 3"):
    spm.fresh({"a/kernel": np.zeros((5, 3))}, 4, jax.random.key(0))


def test_random_states_keep_their_distance():
  """In one dimension half of all candidates equal c, and none is taken."""
  flat = jnp.array([[[2.0]], [[-3.0]]])
  found = spm.random_states(jax.random.key(1), flat, 64).ravel()
  of_c = np.repeat([2.0, -3.0], 64)
  share = np.asarray(found) / of_c
  # Of all four candidates a sixteenth of the rows has no other.
  assert (share < 0).mean() > 0.85
  assert 0.8 <= np.abs(share).min() < 0.85 < 1.15 < np.abs(share).max() <= 1.2
  wide = jnp.ones((1, 40, 50))
  norms = jnp.linalg.norm(
    spm.random_states(jax.random.key(2), wide, 5), axis=(1, 2)
  )
  share = norms / jnp.linalg.norm(wide)
  assert norms.shape == (5,) and ((share > 0.8) & (share < 1.2)).all()


def test_the_rate_is_torchs():
  """Its cosine with restarts, at the release's 500 of 3,000 steps."""
  torch = pytest.importorskip("torch")
  optimization = pytest.importorskip("diffusers.optimization")
  tx = torch.optim.SGD([torch.zeros(1)], lr=1e-4)
  make = optimization.get_cosine_with_hard_restarts_schedule_with_warmup
  wanted = make(tx, 500, 3000, num_cycles=3)
  for step in (0, 1, 250, 500, 501, 1332, 1334, 2165, 2168, 2999, 3000):
    found = spm.rate(1e-4, 3000, jnp.asarray(step))
    np.testing.assert_allclose(
      found, 1e-4 * wanted.lr_lambdas[0](step), atol=1e-9
    )


@pytest.mark.parametrize("preset, least, most", [
  ("fixed", 0, 0), ("reference", 33, 42),
])  # fmt: skip
def test_a_step_scores_the_end_of_a_partial_trajectory(
  preset, least, most, monkeypatch
):
  """How much noisier than x_t the timestep says that it is."""
  sd = Model(schedules.Schedule.from_config(DDIM), (1, 1, 1))
  walked, found = [], []

  def walk(sd, params, sampler, noise, contexts, first, stop, guidance):
    assert first == 0 and guidance == 2.5 and contexts["concept"].item() == 7
    # f walks, adapted by alpha / rank.
    assert params["a"]["kernel"].item() == 2
    walked.append((int(stop), int(sampler.timesteps[stop])))
    return sampler.init(noise)

  def losses(sd, params, base, latents, t, contexts, eta):
    assert base["a"]["kernel"].item() == 1 and eta == 1.5
    assert contexts["random"].shape == (4, 1, 1)
    found.append(int(t.item()))
    return jnp.float32(2.0), jnp.float32(3.0)

  monkeypatch.setattr(spm.esd, "partial_trajectory", walk)
  monkeypatch.setattr(spm, "losses", losses)
  h = spm.Hparams(
    preset=preset, start_guidance=2.5, eta=1.5, alpha=0.5, anchor_weight=10.0
  )
  loss, _ = spm._training(sd, h)
  adapters = {"a/kernel": {"down": jnp.full((1, 1), 2.0), "up": jnp.eye(1)}}
  frozen = {
    "params": {"a/kernel": jnp.ones((1, 1))},
    "contexts": {"concept": jnp.array([5.0, 7.0]).reshape(2, 1, 1)},
  }
  for i in range(40):
    batch = {"concept": jnp.array([1])}
    total, _ = loss(adapters, frozen, batch, jax.random.key(i))
  assert total == 2 + 10 * 3
  stops, timesteps = np.array(walked).T
  assert 1 <= stops.min() < 5 and 25 < stops.max() < 30
  gaps = np.array(found) - timesteps
  assert least <= gaps.min() and gaps.max() <= most
  assert (np.ptp(gaps) > 5) == (preset == "reference")


@pytest.mark.parametrize(
  "options, words",
  [
    ({"preset": "refrence"}, "did you mean 'reference'"),
    ({"rank": 0}, "rank=0; allowed: whole numbers from 1"),
    ({"anchor_weight": -1.0}, "anchor_weight=-1.0"),
    ({"alpha": 0.0}, "alpha=0.0; allowed: finite numbers above 0"),
    ({"learning_rate": -1e-4}, "learning_rate=-0.0001; allowed: finite"),
    ({"num_inference_steps": 1}, "num_inference_steps=1; allowed: from 2"),
  ],
)
def test_settings_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    spm.Hparams(**options)


@pytest.mark.torch
@pytest.mark.slow
def test_the_gradient_is_that_of_the_release(tmp_path):
  """Its two losses in float64, for given latents, adapters and text states.

  `train_spm.py` and `src/configs/prompt.py` of Con6924/SPM at 3dd762e6.
  """
  case = torch_unets.both(tmp_path)
  torch = pytest.importorskip("torch")
  unet, mse = case.unet, case.mse
  leaves = leaves_of({"unet": case.params["unet"]})
  rng = np.random.default_rng(3)
  pairs = jax.tree.map(
    lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype("f4"),
    spm.fresh(spm.adapted(case.params["unet"]), 1, jax.random.key(0)),
  )
  names = {torch_unets.torch_path(path): path for path in pairs}
  factors = {
    name: [
      case.tensor(pairs[path][n].T).requires_grad_() for n in ("up", "down")
    ]
    for name, path in names.items()
  }
  weights = dict(unet.named_parameters())
  moved = {
    name: (weights[name].detach() + (up @ down).reshape(weights[name].shape))
    for name, (up, down) in factors.items()
  }
  x = case.tensor(case.images[0]).movedim(-1, 1)
  concept, anchor, *random = map(case.tensor, case.states)
  random = torch.cat(random)

  def predict(own, latents, states):
    t = torch.tensor(case.t).repeat_interleave(len(latents) // 2)
    return torch.func.functional_call(unet, own, (latents, t, states)).sample

  base = {name: leaf.detach() for name, leaf in weights.items()}
  neutral, positive = (predict(base, x, c) for c in (anchor, concept))
  wanted = neutral - 1.5 * (positive - neutral)
  twice = x.repeat_interleave(2, 0)
  loss = mse(predict(base | moved, x, concept), wanted) + 10 * mse(
    predict(base | moved, twice, random), predict(base, twice, random)
  )
  loss.backward()
  contexts = {
    "concept": case.states[0], "student": case.states[0],
    "start": case.states[1], "random": np.concatenate(case.states[2:]),
  }  # fmt: skip

  def objective(adapters):
    erased, held = spm.losses(
      case.sd, spm.merge(1.0, adapters, leaves), spm.join_leaves({}, leaves),
      jnp.asarray(case.images[0]), jnp.asarray(case.t), contexts, 1.5,
    )  # fmt: skip
    return erased + 10 * held

  value, ours = jax.jit(jax.value_and_grad(objective))(pairs)
  assert abs(float(value) / loss.item() - 1) < 1e-5
  pairs_of = (
    (ours[path][factor], leaf.grad.numpy().T)
    for name, path in names.items()
    for leaf, factor in zip(factors[name], ("up", "down"), strict=True)
  )
  found, right = (
    np.concatenate([np.ravel(leaf) for leaf in side])
    for side in zip(*pairs_of, strict=True)
  )
  assert np.linalg.norm(found - right) < 1e-5 * np.linalg.norm(right)
