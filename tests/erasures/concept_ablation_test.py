"""Concept Ablation: its loss against torch, its images, what it does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stable_diffusion_test import make_files
from tests.support import tiny_pipelines
from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import concept_ablation, in_turn

CONCEPTS = make_concepts(["a b", "c"], ["d", "e"])
SMALL = {
  "num_images": 8,
  "batch_size": 4,
  "num_steps": 150,
  "learning_rate": 1e-5,
  "num_inference_steps": 2,
  "expand_prompts": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  files = make_files(tmp_path_factory.mktemp("model"))
  return stable_diffusion.from_files(files)


def states(model, phrases):
  sd, params = model
  ids = stable_diffusion.tokenize(sd, phrases)
  return stable_diffusion.encode_text(sd, params, ids)


def erase(model, **options):
  h = concept_ablation.Hparams(**SMALL | options)
  edit = concept_ablation.erase(*model, CONCEPTS, jax.random.key(0), h)
  return apply_to_params(edit, model[1])


def gap(model, edited):
  """How far the edited model's concepts are from its anchors."""
  sd, _ = model
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(2, *sd.latent_shape)), jnp.float32)
  t = jnp.array([9, 700])
  predict = jax.jit(lambda p, c: stable_diffusion.predict_noise(sd, p, x, t, c))
  of_concept = predict(edited, states(model, ["a b", "c"]))
  of_anchor = predict(edited, states(model, ["d", "e"]))
  return float(jnp.abs(of_concept - of_anchor).mean())


@pytest.mark.slow
def test_the_concept_becomes_its_anchor(model):
  edited = erase(model)
  assert gap(model, edited) < 0.85 * gap(model, model[1])
  flat = [jax.tree_util.tree_leaves_with_path(t) for t in (model[1], edited)]
  for (path, old), (_, new) in zip(*flat, strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    moves = name.endswith(("attn2/to_k/kernel", "attn2/to_v/kernel"))
    assert (new is not old) == moves
  jax.tree.map(np.testing.assert_array_equal, edited, erase(model))


@pytest.mark.slow
def test_anchor_images_are_samples(model):
  sd, params = model
  anchors, empty = states(model, ["d", "e", "f"]), states(model, [""])
  key, options = (
    jax.random.key(3),
    {"num_inference_steps": 2, "sampler": "ddim"},
  )
  drawn = finetune.draw_latents(
    sd, params, anchors, empty, 5, key, in_turn, "anchors", **options
  )
  assert drawn["pair"].tolist() == [0, 1, 2, 0, 1]
  # The last row fills the batch up, so that one program draws any number.
  rows = np.minimum(np.arange(16), 4)
  noise = [
    jax.random.normal(jax.random.fold_in(key, i), sd.latent_shape) for i in rows
  ]
  wanted = stable_diffusion.sample_latents(
    sd, params, anchors[rows % 3], empty, jnp.stack(noise), **options
  )
  np.testing.assert_array_equal(drawn["latents"], wanted[:5])


@pytest.fixture
def both(tmp_path):
  """Ours and torch's: the model, the loss' arrays, the UNet, noisy latents."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  tiny_pipelines.write(tmp_path, "one_level")
  sd, params = stable_diffusion.load(tmp_path)
  rng = np.random.default_rng(0)
  latents, noise = rng.normal(size=(2, 2, *sd.latent_shape)).astype(np.float32)
  concept, anchor = rng.normal(size=(2, 2, *sd.context_shape)).astype("f4")
  t = np.array([900, 20])
  unet = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path, subfolder="unet"
  )
  schedule = diffusers.DDPMScheduler.from_pretrained(
    tmp_path, subfolder="scheduler"
  )
  x, n = (torch.tensor(a).movedim(-1, 1) for a in (latents, noise))
  noisy = schedule.add_noise(x, n, torch.tensor(t))
  arrays = (latents, noise, t, concept, anchor)
  return torch, sd, params, arrays, unet, noisy, n


@pytest.mark.torch
@pytest.mark.slow
def test_the_losses_are_torchs(both):
  torch, sd, params, arrays, unet, noisy, n = both
  *_, t, concept, anchor = arrays
  with torch.no_grad():
    by_concept, by_anchor = (
      unet(noisy, torch.tensor(t), torch.tensor(c)).sample
      for c in (concept, anchor)
    )
  mse = torch.nn.functional.mse_loss
  for loss, share, wanted in (
    ("model", 0.0, mse(by_concept, by_anchor)),
    ("noise", 0.0, mse(by_concept, n)),
    ("noise", 0.5, mse(by_concept, n) + 0.5 * mse(by_anchor, n)),
  ):
    ours = jax.jit(
      functools.partial(
        concept_ablation.ablating_loss, sd, loss=loss, anchor_loss_weight=share
      )
    )(params, *arrays)
    assert abs(float(ours) / float(wanted) - 1) < 1e-5


@pytest.mark.torch
@pytest.mark.slow
def test_the_gradient_is_torchs_with_the_start_of_text_detached(both):
  torch, sd, params, arrays, unet, noisy, n = both
  *_, t, concept, anchor = arrays
  loss = functools.partial(
    concept_ablation.ablating_loss, sd, loss="model", anchor_loss_weight=0.5
  )
  gradient = jax.jit(jax.grad(loss))(params, *arrays)["unet"]
  path = "up_blocks_0", "attentions_0", "transformer_blocks_0", "attn2"
  for name in path:
    gradient = gradient[name]

  hold = torch.tensor(0.0)

  def detach(module, inputs, out):
    first = out[:, :1]
    return torch.cat([torch.lerp(first, first.detach(), hold), out[:, 1:]], 1)

  for name, module in unet.named_modules():
    if name.endswith(("attn2.to_k", "attn2.to_v")):
      module.register_forward_hook(detach)
  errors = {}
  for held in (1.0, 0.0):
    hold.fill_(held)
    unet.zero_grad()
    by_concept, by_anchor = (
      unet(noisy, torch.tensor(t), torch.tensor(c)).sample
      for c in (concept, anchor)
    )
    mse = torch.nn.functional.mse_loss
    total = mse(by_concept, by_anchor.detach()) + 0.5 * mse(by_anchor, n)
    total.backward()
    for name in ("to_k", "to_v"):
      wanted = unet.get_submodule(
        f"up_blocks.0.attentions.0.transformer_blocks.0.attn2.{name}"
      ).weight.grad.numpy().T  # fmt: skip
      error = np.abs(gradient[name]["kernel"] - wanted).max()
      errors[name, held] = error / np.abs(wanted).max()
  assert max(errors["to_k", 1.0], errors["to_v", 1.0]) < 1e-4
  # Which the gradient through the start of text would not be.
  assert min(errors["to_k", 0.0], errors["to_v", 0.0]) > 1e-2


@pytest.mark.slow
def test_the_anchor_is_held_still(model):
  """No gradient goes into the anchor's own prediction."""
  sd, params = model
  rng = np.random.default_rng(0)
  x, n = jnp.asarray(rng.normal(size=(2, 1, *sd.latent_shape)), jnp.float32)
  same = states(model, ["d"])
  gradient = jax.jit(
    jax.grad(
      lambda p: concept_ablation.ablating_loss(
        sd, p, x, n, jnp.array([500]), same, same, loss="model",
        anchor_loss_weight=0.0,
      )
    )
  )(params)  # fmt: skip
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_no_anchor_fills_no_template():
  """Else images of "image of" would be drawn."""
  pairs = concept_ablation._pairs(CONCEPTS[:1] + make_concepts("c", ""), True)
  assert len(pairs) == 12 and pairs[1] == ("image of a b", "image of d")
  assert pairs[7] == ("image of c", "")
  assert {anchor for _, anchor in pairs[6:]} == {""}


@pytest.mark.parametrize(
  "options, words",
  [
    ({"loss": "modl"}, "loss='modl'.*did you mean 'model'"),
    ({"train": "embedding"}, "train='embedding'.*kv, cross, full"),
    ({"batch_size": 9}, "batch_size=9; allowed: 1 to num_images=8"),
  ],
)
def test_errors(options, words, model):
  with pytest.raises(ValueError, match=words):
    erase(model, **options)


def test_a_concept_without_an_image_is_refused(model):
  concepts = make_concepts(list("abcdefghi"), "circle")
  h = concept_ablation.Hparams(num_images=8, batch_size=8, expand_prompts=False)
  with pytest.raises(ValueError, match="num_images=8: 9 phrases.*num_images=9"):
    concept_ablation.erase(*model, concepts, jax.random.key(0), h)
