"""ESD: its loss against torch, its noise levels, what it trains and does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stable_diffusion_test import make_files
from tests.support import tiny_pipelines
from unlearning_jax import samplers, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import esd

CONCEPTS = make_concepts(["a b", "c"], ["d", ""])
STEPS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  files = make_files(tmp_path_factory.mktemp("model"))
  return stable_diffusion.from_files(files)


def paths(params):
  flat = jax.tree_util.tree_leaves_with_path({"unet": params["unet"]})
  return [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in flat]


@pytest.mark.parametrize("preset", esd.PRESETS)
def test_what_trains(preset, model):
  version = esd.PRESETS[preset]
  trained = {
    name: {p for p in paths(model[1]) if esd.trains(name, version)(p)}
    for name in esd.TRAINED
  }
  assert trained["strict"] < trained["x"] < trained["full"]
  assert all(p.endswith("kernel") for p in trained["strict"])
  assert {p.split("/attn2/")[1] for p in trained["x"]} == {
    "to_q/kernel", "to_k/kernel", "to_v/kernel", "to_out_0/kernel",
    "to_out_0/bias",
  }  # fmt: skip
  assert not trained["u"] & trained["x"]
  norms = {p for p in paths(model[1]) if "/norm" in p or "conv_norm" in p}
  ends = {"unet/time_embedding/linear_1/kernel", "unet/conv_out/kernel"}
  everything = set(paths(model[1]))
  if preset == "reference2025":
    assert trained["full"] == everything - norms
    assert (
      trained["u"] == trained["full"] - trained["x"] and ends < trained["u"]
    )
  else:
    assert trained["full"] == everything and not ends & trained["u"]
    assert norms & trained["u"] and "unet/conv_in/kernel" in trained["u"]


@pytest.mark.parametrize("preset", esd.PRESETS)
def test_the_noise_level_of_the_scored_latents(preset, model, monkeypatch):
  """With a network that predicts nothing, DDIM scales by sqrt(a_s / a_t)."""
  sd, params = model
  h, version = (
    esd.Hparams(preset, num_inference_steps=STEPS),
    esd.PRESETS[preset],
  )
  sampler = samplers.make_sampler(sd.schedule, STEPS, "ddim")
  monkeypatch.setattr(
    stable_diffusion, "predict_noise", lambda sd, p, x, t, c: jnp.zeros_like(x)
  )
  monkeypatch.setattr(
    esd, "erasing_loss", lambda sd, p, o, x, t, c, eta: (x, t)
  )
  contexts = esd.encode_contexts(sd, params, CONCEPTS)

  @jax.jit
  def scored(key):
    (x, t), _ = esd._loss(
      sd, lambda t, f: None, sampler, h, {}, {
        "params": {}, "base": {}, "contexts": contexts,
      }, {"concept": jnp.zeros(1, jnp.int32)}, key,
    )  # fmt: skip
    noise = jax.random.normal(jax.random.split(key, 3)[0], x.shape)
    return (x / noise).mean(), t[0]

  alphas = np.float64(sd.schedule.alphas_cumprod)
  gap = sd.schedule.num_train_timesteps // STEPS
  first = int(sampler.timesteps[1 if version.too_clean else 0])
  seen = set()
  for seed in range(40):
    ratio, t = scored(jax.random.key(seed))
    level = int(np.abs(alphas / alphas[first] - float(ratio) ** 2).argmin())
    t = int(t)
    if not version.too_clean:
      assert level == t and t in sampler.timesteps
    elif t >= 2 * gap:
      # 39 to 58 where a trajectory has 50 steps.
      assert 2 * gap - 1 <= t - level <= 3 * gap - 2
    else:
      assert level <= 1
    seen.add(t)
  assert len(seen) > STEPS // 2


@pytest.mark.slow
def test_a_whole_trajectory_is_sampling(model):
  sd, params = model
  contexts = {
    name: states[:1]
    for name, states in esd.encode_contexts(sd, params, CONCEPTS).items()
  }
  noise = np.random.default_rng(0).normal(size=(1, *sd.latent_shape))
  noise = jnp.asarray(noise, jnp.float32)
  sampler = samplers.make_sampler(sd.schedule, 4, "ddim")
  state = jax.jit(
    lambda p: esd.partial_trajectory(
      sd, p, sampler, noise, contexts, 0, jnp.array(4), 3.0
    )
  )(params)
  wanted = stable_diffusion.sample_latents(
    sd, params, contexts["student"], contexts["empty"], noise,
    num_inference_steps=4,
    guidance_scale=3.0, sampler="ddim",
  )  # fmt: skip
  np.testing.assert_allclose(sampler.latents(state), wanted, atol=1e-5)


def test_contexts(model):
  sd, params = model

  def states(phrase):
    ids = stable_diffusion.tokenize(sd, [phrase])
    return np.asarray(stable_diffusion.encode_text(sd, params, ids))[0]

  for options, wanted in (
    ({}, [("a b", "", "a b", ""), ("c", "", "c", "")]),
    ({"use_anchor": True}, [("a b", "d", "a b", ""), ("c", "", "c", "")]),
    ({"erase_from": "f"}, [("f", "f", "a b", ""), ("f", "f", "c", "")]),
  ):
    found = esd.encode_contexts(sd, params, CONCEPTS, **options)
    for i, row in enumerate(wanted):
      for name, phrase in zip(
        ("student", "start", "concept", "empty"), row, strict=True
      ):
        np.testing.assert_allclose(found[name][i], states(phrase), atol=1e-5)


def train(model, **options):
  h = esd.Hparams(
    **{"num_steps": 40, "learning_rate": 3e-3, "num_inference_steps": 3}
    | {"train": "strict", "batch_size": 4}
    | options
  )
  edit = esd.erase(*model, CONCEPTS, jax.random.key(0), h)
  return apply_to_params(edit, model[1])


def gap(model, edited):
  """The objective at fixed noise, from the middle of the schedule."""
  sd, params = model
  contexts = esd.encode_contexts(sd, params, CONCEPTS)
  rng = np.random.default_rng(1)
  latents = jnp.asarray(rng.normal(size=(2, *sd.latent_shape)), jnp.float32)
  loss = jax.jit(
    lambda p: esd.erasing_loss(
      sd, p, params, latents, jnp.array([500, 700]), contexts, 1.0
    )
  )
  return float(loss(edited))


@pytest.mark.slow
def test_it_erases_and_leaves_the_rest(model):
  edited = train(model)
  assert gap(model, edited) < 0.5 * gap(model, model[1])
  flat = [
    jax.tree_util.tree_leaves_with_path(tree) for tree in (model[1], edited)
  ]
  for (path, old), (_, new) in zip(*flat, strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    moves = esd.trains("strict", esd.PRESETS["fixed"])(name)
    assert (new is not old) == moves
    assert not moves or not np.array_equal(new, old)
  again = train(model)
  jax.tree.map(np.testing.assert_array_equal, edited, again)


@pytest.mark.torch
def test_the_loss_and_its_gradient_are_torchs(tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  tiny_pipelines.write(tmp_path, "one_level")
  sd, params = stable_diffusion.load(tmp_path)
  rng = np.random.default_rng(0)
  path = "up_blocks_0", "attentions_0", "transformer_blocks_0", "attn2"
  edited = jax.tree.map(lambda leaf: leaf, params)
  leaf = edited["unet"]
  for name in (*path, "to_v"):
    leaf = leaf[name]
  leaf["kernel"] = leaf["kernel"] + 0.1
  latents = rng.normal(size=(2, *sd.latent_shape)).astype(np.float32)
  t, eta = np.array([981, 41]), 1.5
  contexts = {
    name: rng.normal(size=(2, *sd.context_shape)).astype(np.float32)
    for name in ("student", "start", "concept", "empty")
  }
  ours, gradient = jax.jit(
    jax.value_and_grad(
      lambda p: esd.erasing_loss(sd, p, params, latents, t, contexts, eta)
    )
  )(edited)
  for name in (*("unet",), *path, "to_v", "kernel"):
    gradient = gradient[name]

  load = diffusers.UNet2DConditionModel.from_pretrained
  original, network = (load(tmp_path, subfolder="unet") for _ in range(2))
  module = network.get_submodule(
    "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
  )
  with torch.no_grad():
    module.weight.add_(0.1)

  def says(unet, name):
    x = torch.tensor(latents).movedim(-1, 1)
    return unet(x, torch.tensor(t), torch.tensor(contexts[name])).sample

  with torch.no_grad():
    away = says(original, "concept") - says(original, "empty")
    target = says(original, "start") - eta * away
  loss = torch.nn.functional.mse_loss(says(network, "student"), target)
  loss.backward()
  assert abs(float(ours) / float(loss.detach()) - 1) < 1e-5
  wanted = module.weight.grad.numpy().T
  assert np.abs(gradient - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
  "options, words",
  [
    ({"preset": "2023"}, "preset='2023'.*fixed, reference"),
    ({"train": "kv"}, "train='kv'.*allowed: x, u, strict"),
    ({"eta": -1.0}, "eta=-1.0"),
    ({"batch_size": 0}, "batch_size=0"),
    (
      {"use_anchor": True, "erase_from": "a"},
      "use_anchor=True and erase_from='a'",
    ),
  ],
)
def test_errors(options, words, model):
  with pytest.raises(ValueError, match=words):
    train(model, **options)
