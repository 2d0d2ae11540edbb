"""The bundle and its functions, on a tiny model without torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.support import tiny_pipelines
from unlearning_jax import convert, sampling, sharding, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.edits import (
  Edit,
  Fingerprint,
  apply_to_context,
  apply_to_params,
)
from unlearning_jax.noise import row_noise

PROMPTS = ["a b", "c", "ab d e", "", "f"]
SEEDS = [5, 6, 7, 8, 2**40]
TINY = {
  "text_encoder": {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "max_position_embeddings": 8,
    "vocab_size": 55,
  },
  "unet": {
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": [6, 4],
  },
  "vae": {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
  },
  "scheduler": {},
}


def make_files(folder, **changes):
  """Random weights for `TINY`, with some config keys changed."""
  configs = {
    part: CONFIGS[part] | keys | changes.get(part, {})
    for part, keys in TINY.items()
  }
  rng = np.random.default_rng(0)

  def fill(leaf):
    # Linear layers of gain two, or images would hardly show their text.
    spread = {1: 0.2, 2: 2.0, 4: 1.0}[leaf.ndim]
    if leaf.ndim > 1:
      spread /= np.prod(leaf.shape[:-1]) ** 0.5
    values = spread * rng.normal(size=leaf.shape) + (leaf.ndim == 1)
    return values.astype(np.float32)

  params = jax.tree.map(fill, convert.templates(configs))
  states = {part: convert.to_torch(tree) for part, tree in params.items()}
  if not (folder / "tokenizer").exists():
    tiny_pipelines.write_tokenizer(folder / "tokenizer")
  return convert.ModelFiles(configs, states, folder / "tokenizer")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return make_files(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(files):
  return stable_diffusion.from_files(files)


def images(model, prompts=PROMPTS, seeds=SEEDS, **options):
  options = {"num_inference_steps": 3, "batch_size": 2, **options}
  batches = sampling.generate(*model, prompts, seeds, **options)
  return np.concatenate(list(batches)).astype(int)


@pytest.fixture(scope="module")
def expected(model):
  return images(model)


def test_images_have_the_models_size_and_content(model, expected):
  assert model[0].latent_shape == (6, 4, 4)
  assert model[0].context_shape == (8, 24)
  assert expected.shape == (5, 12, 8, 3)
  assert all(image.std() > 5 for image in expected)


@pytest.mark.parametrize(
  "size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8))]
)
def test_the_batch_size_changes_nothing(model, expected, size):
  assert np.abs(images(model, batch_size=size) - expected).max() <= 1


def test_the_order_of_rows_changes_nothing(model, expected):
  order = [3, 0, 4, 2, 1]
  shuffled = images(
    model, [PROMPTS[i] for i in order], [SEEDS[i] for i in order]
  )
  assert np.abs(shuffled - expected[order]).max() <= 1


def test_the_last_batch_is_padded_to_the_compiled_size(model, expected):
  lengths, shapes = [], []

  def place(array):
    shapes.append(array.shape)
    return jnp.asarray(array)

  for batch in sampling.generate(
    *model, PROMPTS, SEEDS, num_inference_steps=3, batch_size=2, place=place
  ):
    lengths.append(len(batch))
  assert lengths == [2, 2, 1]
  assert {shape[0] for shape in shapes} == {2}


def test_no_rows_are_no_images(model):
  assert not list(sampling.generate(*model, [], []))


def test_a_row_depends_on_prompt_seed_and_options(model, expected):
  def first(prompt="a b", seed=5, **options):
    return images(model, [prompt], [seed], **options)[0]

  assert np.abs(first() - expected[0]).max() <= 1
  for other in (
    first(prompt="b a"),
    first(seed=6),
    first(noise_source="torch"),
    first(guidance_scale=2.0),
    first(guidance_scale=1.0),
    first(negative_prompt="x"),
    first(num_inference_steps=4),
    first(sampler="ddim"),
  ):
    assert np.abs(other - expected[0]).max() > 5


def test_guidance_may_differ_by_row(model):
  sd, params = model
  ids = stable_diffusion.tokenize(sd, ["a", "a", ""])
  context = stable_diffusion.encode_text(sd, params, ids)
  noise = row_noise([1, 1], sd.latent_shape)

  def latents(scale):
    return stable_diffusion.sample_latents(
      sd, params, context[:2], context[2:], noise, num_inference_steps=2,
      guidance_scale=scale,
    )  # fmt: skip

  both = latents(jnp.array([1.5, 7.5]))
  for row, scale in enumerate((1.5, 7.5)):
    np.testing.assert_allclose(both[row], latents(scale)[row], atol=1e-5)
  assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize("large", [1, 2**16])
def test_rows_split_over_devices_do_not_communicate(model, large, monkeypatch):
  """Neither at a guided step nor in the decoder."""
  monkeypatch.setattr(stable_diffusion, "_LARGE", large)
  sd, params = model
  mesh = sharding.make_mesh()
  params = sharding.place(params, sharding.replicated(mesh))
  context, noise = sharding.global_batch(
    mesh,
    (
      np.zeros((16, *sd.context_shape), np.float32),
      np.zeros((16, *sd.latent_shape), np.float32),
    ),
  )
  compiled = (
    jax.jit(
      functools.partial(
        stable_diffusion.sample, sd, num_inference_steps=2, chips=mesh.size
      )
    )
    .lower(params, context, context[:1], noise)
    .compile()
  )
  images, _ = compiled.output_shardings
  assert images.is_equivalent_to(sharding.batch_sharding(mesh), 4)
  for operation in ("all-", "collective", "reduce-scatter"):
    assert operation not in compiled.as_text()


def test_edited_text_states_are_edited_weights(model):
  """W (T c) = (W T) c, up to the image."""
  sd, params = model
  rng = np.random.default_rng(1)
  context_map = np.eye(24) + 0.3 * rng.normal(size=(24, 24)) / 24**0.5
  edit = Edit(
    context_map,
    Fingerprint.of(params, "text"),
    "test",
    make_concepts(["a"], "b"),
    {},
  )
  edited = apply_to_params(edit, params)
  by_weights = images((sd, edited))
  by_states = images(model, edit_context=lambda c: apply_to_context(edit, c))
  assert np.abs(by_weights - by_states).max() <= 1
  assert np.abs(by_weights - images(model)).max() > 10

  ids = stable_diffusion.tokenize(sd, PROMPTS)
  context = stable_diffusion.encode_text(sd, params, ids)
  mapped = apply_to_context(edit, context)
  noise = row_noise(SEEDS, sd.latent_shape)
  options = {"num_inference_steps": 3, "guidance_scale": 7.5}
  sample = stable_diffusion.sample_latents
  a = sample(sd, edited, context, context[3:4], noise, **options)
  b = sample(sd, params, mapped, mapped[3:4], noise, **options)
  assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_bfloat16_images_look_the_same(files, expected):
  sd, params = stable_diffusion.from_files(files, dtype=jnp.bfloat16)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  half = images((sd, params))
  assert 0 < np.abs(half - expected).mean() < 3


def test_text_states_stay_float32_in_a_bfloat16_model(files, model):
  half, params = stable_diffusion.from_files(files, dtype=jnp.bfloat16)
  ids = stable_diffusion.tokenize(half, PROMPTS)
  np.testing.assert_array_equal(
    stable_diffusion.encode_text(half, params, ids),
    stable_diffusion.encode_text(*model, ids),
  )


def test_text_states_ask_for_the_highest_precision(model):
  """The CPU has one precision only, so the request itself is looked for."""
  sd, params = model
  ids = stable_diffusion.tokenize(sd, ["a"])
  text = jax.jit(lambda p: stable_diffusion.encode_text(sd, p, ids)).lower(
    params
  )
  lines = text.as_text().splitlines()
  products = [line for line in lines if "dot_general" in line]
  assert products and all("HIGHEST" in line for line in products)


def test_encoding_and_decoding_are_scaled(model):
  sd, params = model
  encode = jax.jit(stable_diffusion.encode_images, static_argnums=0)
  decode = jax.jit(stable_diffusion.decode, static_argnums=0)
  vae = jax.jit(sd.vae.apply, static_argnames="method")
  variables = {"params": params["vae"]}
  pictures = jnp.tanh(jax.random.normal(jax.random.key(0), (2, 12, 8, 3)))
  posterior, logvar = vae(variables, pictures, method="encode")
  assert posterior.shape == (2, 6, 4, 4)
  mean = encode(sd, params, pictures)
  np.testing.assert_allclose(mean, 0.18215 * posterior, atol=1e-5)
  key = jax.random.key(1)
  noise = encode(sd, params, pictures, key) - mean
  noise /= 0.18215 * jnp.exp(logvar / 2)
  expected = jax.random.normal(key, mean.shape)
  np.testing.assert_allclose(noise, expected, atol=1e-3)
  restored = vae(variables, posterior, method="decode")
  np.testing.assert_allclose(decode(sd, params, mean), restored, atol=1e-4)


def test_uint8_rounds_and_clips():
  values = jnp.array([-9.0, -1.0, 0.0, 0.999, 1.0, 9.0])
  expected = [0, 0, 128, 255, 255, 255]
  assert stable_diffusion.to_uint8(values).tolist() == expected


def test_tokens_are_padded_and_never_cut(model):
  sd = model[0]
  ids = stable_diffusion.tokenize(sd, ["a b", ""])
  start, end = 53, 54
  a, b = 26, 27
  assert ids.dtype == np.int32
  assert ids.tolist() == [[start, a, b] + [end] * 5, [start] + [end] * 7]
  assert stable_diffusion.tokenize(sd, []).shape == (0, 8)
  assert stable_diffusion.tokenize(sd, ["a b c d e f"]).shape == (1, 8)
  with pytest.raises(ValueError, match="'a b c d e f g' has 9 tokens.*: 8"):
    stable_diffusion.tokenize(sd, ["a", "a b c d e f g"])


def test_prompts_and_seeds_must_pair(model):
  with pytest.raises(ValueError, match="5 prompts but 2 seeds"):
    images(model, seeds=[1, 2])
  with pytest.raises(ValueError, match="sampler='dimm'.*'ddim'"):
    images(model, sampler="dimm")
  with pytest.raises(ValueError, match="num_inference_steps=0"):
    images(model, num_inference_steps=0)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"unet": {"cross_attention_dim": 32}}, "width is 24, .* 32"),
    ({"unet": {"in_channels": 9}}, "latent_channels is 4, .*in_channels 9"),
    ({"unet": {"out_channels": 8}}, "is 4, the UNet's out_channels 8"),
    ({"vae": {"latent_channels": 8}}, "latent_channels is 8, .* 4"),
    ({"text_encoder": {"vocab_size": 54}}, "tokenizer has 55 tokens.* 54"),
  ],
)
def test_parts_of_different_models(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    stable_diffusion.from_files(make_files(tmp_path, **changes))


def test_a_model_without_tokenizer(files):
  with pytest.raises(ValueError, match="no tokenizer"):
    stable_diffusion.from_files(dataclasses.replace(files, tokenizer=None))


@pytest.mark.parametrize("name", ["sd.ckpt", "sd.safetensors"])
def test_a_file_is_refused_unread_with_the_way_to_a_folder(name, tmp_path):
  name_of_unet = "model.diffusion_model.input_blocks.0.0.weight"
  if name.endswith("ckpt"):
    import torch

    torch.save({name_of_unet: torch.zeros(3)}, tmp_path / name)
  else:
    safetensors.numpy.save_file({name_of_unet: np.zeros(3)}, tmp_path / name)
  way = rf"unlearning-jax convert --input=\S*{name} "
  with pytest.raises(ValueError, match=way):
    stable_diffusion.load(tmp_path / name)


def test_saved_and_loaded_it_is_the_same_model(model, expected, tmp_path):
  sd, params = model
  stable_diffusion.save(sd, params, tmp_path / "saved")
  again, reread = stable_diffusion.load(tmp_path / "saved")
  # Equal and hashed alike: what was compiled for one serves the other.
  assert again == sd and hash(again) == hash(sd)
  for one, other in zip(*map(jax.tree.leaves, (reread, params)), strict=True):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(images((again, reread)), expected)


@pytest.mark.parametrize(
  "sampler, said, words",
  [
    ("lms", {}, None),
    ("lms", {"timestep_spacing": "trailing"},
     "draws with timestep_spacing='trailing'.*published.*'linspace'"),
    ("ddim", {}, None),
    ("ddim", {"clip_sample": None},
     "draws with clip_sample=False; diffusers.* has clip_sample=True"),
    ("euler", {"clip_sample": None}, None),
  ],
)  # fmt: skip
def test_samplers_that_published_runs_set_otherwise(
  sampler, said, words, model, recwarn
):
  sd, params = model
  scheduler = sd.files.configs["scheduler"] | said
  scheduler = {k: v for k, v in scheduler.items() if v is not None}
  configs = {**sd.files.configs, "scheduler": scheduler}
  sd = dataclasses.replace(
    sd,
    schedule=stable_diffusion.Schedule.of_folder(
      scheduler | {"clip_sample": False}
    ),
    files=dataclasses.replace(sd.files, configs=configs),
  )
  context = jnp.zeros((1, *sd.context_shape))
  noise = jnp.zeros((1, *sd.latent_shape))

  def draw():
    stable_diffusion.sample_latents(
      sd, params, context, context, noise,
      num_inference_steps=2, sampler=sampler,
    )  # fmt: skip

  # Traced, which compiles nothing.
  if words is None:
    jax.eval_shape(draw)
    assert not recwarn.list
  else:
    with pytest.warns(UserWarning, match=words):
      jax.eval_shape(draw)
