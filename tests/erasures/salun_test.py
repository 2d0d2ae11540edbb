"""SalUn: which weights are salient, what it sees, and its step in torch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import torch_unets
from unlearning_jax import finetune, schedules, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import salun
from unlearning_jax.erasures.salun import saliency, sets

pytestmark = pytest.mark.usefixtures("quickest_compiler")
DDIM = {"_class_name": "DDIMScheduler"}


def random_leaves(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {"a": (3, 40), "b": (7,), "c": (5, 11, 2)}
  return {k: rng.gamma(0.1, size=s).astype("f4") for k, s in shapes.items()}


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.93])
def test_the_mask_is_that_of_a_whole_sort(keep):
  """As the release ranks, which sorts all entries twice."""
  found = random_leaves()
  every = np.concatenate([leaf.ravel() for leaf in found.values()])
  ranks = np.argsort(np.argsort(-every))
  count = round(keep * len(every))
  made = saliency.mask(found, keep)
  joined = np.concatenate([made[k].ravel() for k in found])
  np.testing.assert_array_equal(joined, ranks < count)
  again = saliency.unpack(saliency.pack(made), found)
  for name, leaf in made.items():
    np.testing.assert_array_equal(again[name], leaf)


def test_equal_scores_are_all_kept():
  leaves = [np.float32([3, 2, 2]), np.float32([[2, 1], [0, 0]])]
  for count, wanted in ((1, 3), (2, 2), (4, 2), (5, 1), (6, 0)):
    assert saliency.largest(leaves, count) == wanted


@pytest.mark.parametrize(
  "scores, keep, words",
  [
    ({"a": np.zeros((2, 3), "f4")}, 0.5, "mask keeps 6 of 6.*saliency='none'"),
    ({"a": np.float32([1, 0, 0, 0])}, 0.5, "mask keeps 4 of 4.*hparams.keep"),
    ({"a": np.float32([1, np.nan])}, 0.5, "saliency of a holds NaN"),
  ],
)
def test_a_mask_that_says_nothing(scores, keep, words):
  with pytest.raises(ValueError, match=words):
    saliency.mask(scores, keep)


def test_decay_and_momentum_move_no_masked_weight():
  """Masking gradients alone, as the release does, lets both through."""
  base = random_leaves()
  frozen = {"base": base, "mask": saliency.mask(base, 0.5)}
  tx = optax.chain(
    optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-0.1)
  )
  trained, state = jax.tree.map(jnp.asarray, base), None
  state = tx.init(trained)

  def loss(leaves):
    leaves = salun.masked(leaves, frozen)
    return sum(jnp.sum(jnp.square(leaf - 1)) for leaf in leaves.values())

  for _ in range(3):
    updates, state = tx.update(jax.grad(loss)(trained), state, trained)
    trained = optax.apply_updates(trained, updates)
  for name, leaf in salun.masked(trained, frozen).items():
    np.testing.assert_array_equal(leaf == base[name], ~frozen["mask"][name])
    # What decay did to the weight itself.
    assert (trained[name] != base[name]).all()


def numbered(count):
  return {
    "latents": np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1),
    "pair": np.arange(count, dtype=np.int32),
  }


@pytest.mark.parametrize("shuffles", [True, False])
def test_what_the_release_sees(shuffles):
  both = sets.Sets(numbered(8), numbered(8), {})
  steps = sets.Steps(both, 2, 3, repeats=True, shuffles=shuffles)
  seen = [steps[i] for i in range(6)]
  assert {tuple(b["forget_pair"]) for b in seen} == {(0, 1)}
  others = {tuple(b["remain_pair"]) for b in seen}
  assert len(others) > 3 if shuffles else others == {(0, 1)}


def test_every_image_is_seen_once_in_a_pass():
  both = sets.Sets(numbered(8), numbered(8), {})
  steps = sets.Steps(both, 2, 3)
  for name in ("forget_pair", "remain_pair"):
    seen = np.concatenate([steps[i][name] for i in range(4)])
    assert sorted(seen) == [*range(8)] and [*seen] != [*range(8)]
    np.testing.assert_array_equal(
      steps[5][name], sets.Steps(both, 2, 3)[5][name]
    )


def test_what_remains():
  own = make_concepts("a", "b", ["c", "d"])
  assert sets.remaining("salun", own) == ("c", "d")
  anchored = make_concepts(["a", "e"], "b")
  assert sets.remaining("salun", anchored) == ("b",)
  with pytest.warns(UserWarning, match="erased too; SalUn"):
    chained = make_concepts(["a", "b"], ["b", "c"])
  assert sets.remaining("salun", chained) == ("c",)
  for concepts in (make_concepts("a", ""), make_concepts("a", "a red a")):
    with pytest.raises(ValueError, match=r"preserve=\('a cat', 'a house'\)"):
      sets.remaining("salun", concepts)
  with pytest.raises(ValueError, match="'red stars' is preserved.*'star'"):
    sets.remaining("salun", make_concepts("star", "b", ["c", "red stars"]))
  with pytest.raises(ValueError, match="both erased and preserved"):
    salun.erase(
      None, {}, [*make_concepts("a", "b", ["c"]), *make_concepts("c", "b")],
      None, salun.Hparams(),
    )  # fmt: skip


@pytest.mark.parametrize(
  "preset, names, words",
  [
    ("fixed", "a b c d e", "num_images=4: 5 phrases.*num_images=5 or more"),
    (
      "reference",
      "a b c",
      "batch_size=2: with preset='reference'.*batch_size=3",
    ),
  ],
)
def test_a_concept_without_an_image_is_refused(preset, names, words):
  h = salun.Hparams(preset=preset, num_images=4, batch_size=2)
  concepts = make_concepts(names.split(), "x")
  with pytest.raises(ValueError, match=words):
    sets.draw(None, {}, concepts, None, h, None, "salun")


@pytest.mark.parametrize("loss, sign", [("relabel", 0), ("ascent", -1)])
def test_the_losses_of_a_network_of_one_number(loss, sign, monkeypatch):
  """f(x_t, t, c) = p c, so that each loss and its slope are known."""
  sd = types.SimpleNamespace(schedule=schedules.Schedule.from_config(DDIM))

  def predict(sd, params, noisy, t, context):
    return params * context[:, :1, :1, None] + 0 * noisy

  monkeypatch.setattr(stable_diffusion, "predict_noise", predict)
  contexts = {
    name: jnp.float32(states).reshape(2, 1, 1)
    for name, states in (
      ("concept", (1, 2)), ("anchor", (3, 5)), ("remain", (7, 11)),
    )
  }  # fmt: skip
  latents, key = jnp.zeros((3, 2, 2, 1)), jax.random.key(0)
  batch = {"forget": latents, "remain": latents + 1}
  batch |= {"forget_pair": jnp.array([0, 1, 1])}
  batch |= {"remain_pair": jnp.array([1, 0, 0])}
  gone_noise, noise = (
    np.asarray(jax.random.normal(jax.random.split(k)[0], latents.shape))
    for k in jax.random.split(key)
  )
  p = 0.5
  c, a, r = (
    np.reshape(states, (3, 1, 1, 1)) * np.ones_like(noise)
    for states in ((1, 2, 2), (3, 5, 5), (11, 7, 7))
  )
  error, slope = p * (c - a), c
  if sign:
    error = p * c - gone_noise
  (forget, remain), slopes = jax.jvp(
    lambda p: salun.set_losses(sd, p, contexts, batch, key, loss),
    (p,), (1.0,),
  )  # fmt: skip
  wanted = (sign or 1) * np.mean(error**2), np.mean((p * r - noise) ** 2)
  np.testing.assert_allclose((forget, remain), wanted, rtol=1e-5)
  # The anchor's prediction is a target: no slope runs through it.
  wanted = (
    (sign or 1) * 2 * np.mean(error * slope),
    2 * np.mean((p * r - noise) * r),
  )
  np.testing.assert_allclose(slopes, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"keep": 1.0}, "keep=1.0; allowed: between 0 and 1.*saliency='none'"),
    ({"keep": 0.0}, "keep=0.0"),
    ({"saliency": "gradent"}, "did you mean 'gradient'"),
    ({"preset": "refrence"}, "did you mean 'reference'"),
    ({"loss": "descent"}, "allowed: relabel, ascent"),
    ({"remain_weight": -1.0}, "remain_weight=-1.0"),
    ({"batch_size": 801}, "batch_size=801; allowed: 1 to num_images=800"),
    ({"template": "a photo"}, "template='a photo': has no place"),
    ({"learning_rate": 0.0}, "learning_rate=0.0; allowed: finite.*above 0"),
    ({"num_steps": 0}, "num_steps=0; allowed: whole numbers from 1"),
    ({"weight_decay": float("nan")}, "weight_decay=nan; allowed: finite"),
    ({"mask_guidance": float("inf")}, "mask_guidance=inf; allowed: finite"),
  ],
)
def test_settings_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    salun.Hparams(**options)


@pytest.mark.torch
@pytest.mark.slow
def test_gradients_are_those_of_the_release(tmp_path):
  """Its losses in float64, for given latents and noise.

  They are those of `SD/train-scripts/generate_mask.py` and `random_label.py` of
  OPTML-Group/Unlearn-Saliency at a6e89fd1.
  """
  case = torch_unets.both(tmp_path)
  sd, params, unet, t = case.sd, case.params, case.unet, case.t
  images, states, mse = case.images, case.states, case.mse
  x, n, y, m = (case.tensor(a).movedim(-1, 1) for a in images)
  concept, anchor, remain, empty = map(case.tensor, states)
  predict, noisy = case.predict, case.noised(x, n)
  empty = empty[:1].expand(2, -1, -1)
  guided = 8.5 * predict(noisy, concept) - 7.5 * predict(noisy, empty)
  (-mse(n, guided)).backward()
  unet_only = {"unet": params["unet"]}
  with jax.default_matmul_precision("highest"):
    ours = jax.jit(
      jax.grad(
        lambda p: saliency.guided_loss(
          sd, p, images[0], images[1], t, (states[0], states[3][:1]), 7.5
        )
      )
    )(unet_only)
  torch_unets.close(ours, unet)

  unet.zero_grad()
  pseudo = predict(noisy, anchor).detach()
  forget = mse(predict(noisy, concept), pseudo)
  held = mse(predict(case.noised(y, m), remain), m)
  total = forget + 0.5 * held
  total.backward()

  def loss(p):
    one = salun.relabeling_loss(sd, p, *images[:2], t, (states[0], states[1]))
    rest, _ = finetune.denoising_loss(sd, p, *images[2:], t, states[2])
    return one + 0.5 * rest

  value, ours = jax.jit(jax.value_and_grad(loss))(unet_only)
  assert abs(float(value) / total.item() - 1) < 1e-5
  torch_unets.close(ours, unet)
