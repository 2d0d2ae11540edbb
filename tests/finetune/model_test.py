"""Fine-tuning a model: what trains, on which devices, from where it resumes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stable_diffusion_test import make_files
from tests.support.tunings import SMALL
from unlearning_jax import checkpoints, finetune, sharding, stable_diffusion
from unlearning_jax.data import Batches

pytestmark = pytest.mark.usefixtures("quickest_compiler")
STEPS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  files = make_files(tmp_path_factory.mktemp("model"), **SMALL)
  return stable_diffusion.from_files(files)


@pytest.fixture(scope="module")
def data(model):
  return encoded(model)


def encoded(model):
  sd, params = model
  images = np.random.default_rng(0).integers(0, 256, (24, 12, 8, 3), np.uint8)
  captions = ["a b", "c", "d e"] * 8
  return finetune.encode_examples(sd, params, images, captions, flip=True)


@pytest.mark.parametrize("token_ids", [True, False])
def test_several_captions_of_an_image(token_ids, model, data):
  sd, params = model
  images = np.random.default_rng(0).integers(0, 256, (24, 12, 8, 3), np.uint8)
  captions = [["a b"], ("c", "d e"), "d e"] * 8
  found = finetune.encode_examples(
    sd, params, images, captions, flip=True, token_ids=token_ids
  )
  np.testing.assert_array_equal(found["mean"], data["mean"])
  assert found["captions"].tolist() == [1, 2, 1] * 8
  texts = found["ids" if token_ids else "context"]
  assert len(texts) == 32
  # The first of an image, and the second image's other one, which is the third
  # image's own.
  first, other = found["first_caption"], found["first_caption"][1] + 1
  np.testing.assert_array_equal(texts[other], texts[first[2]])
  if not token_ids:
    np.testing.assert_allclose(texts[first], data["context"], atol=1e-6)


def setup(model, train="kv", **options):
  sd, params = model
  part = finetune.partition(params, train, jax.random.key(7), rank=2)
  ids = stable_diffusion.tokenize(sd, [""])
  empty = stable_diffusion.encode_text(sd, params, ids)
  tx = finetune.optimizer(1e-3, STEPS)
  loss = functools.partial(
    finetune.diffusion_loss, sd, part.join, snr_gamma=5.0, caption_dropout=0.3
  )
  step = finetune.make_step(loss, tx, 0.9, **options)
  frozen = {"params": part.frozen, "empty": empty}
  return part, finetune.init_state(part.trained, tx), step, frozen


def run(model, data, state=None, num_steps=STEPS, mesh=None, states=None, **kw):
  _, fresh, step, frozen = setup(model, **kw)
  seen = {} if states is None else states
  metrics = {}
  state = finetune.train(
    fresh if state is None else state,
    step,
    frozen,
    Batches(data, 8, seed=3),
    jax.random.key(1),
    mesh=mesh or sharding.make_mesh(devices=jax.devices()[:1]),
    num_steps=num_steps,
    watch=finetune.Watch(
      every=100,
      at=(1, 4),
      on_metrics=metrics.__setitem__,
      on_state=lambda i, s: seen.__setitem__(i, jax.device_get(s)),
    ),
  )
  return state, metrics


@pytest.fixture(scope="module")
def alone(model, data):
  states = {}
  return (*run(model, data, states=states), states)


@pytest.mark.slow
def test_half_precision_computes_and_full_precision_trains(tmp_path):
  files = make_files(tmp_path)
  model = stable_diffusion.from_files(files)
  half = stable_diffusion.from_files(files, dtype=jnp.bfloat16)
  data = encoded(model)
  (full, wanted), (state, found) = (
    run(one, data, num_steps=4) for one in (model, half)
  )
  types = [jax.tree.map(lambda leaf: leaf.dtype, s) for s in (full, state)]
  # Parameters, both moments, the average.
  assert types[0] == types[1] and {*jax.tree.leaves(types[1])} == {
    jnp.dtype("float32"), jnp.dtype("int32"),
  }  # fmt: skip
  assert gap(state.params, setup(model)[1].params) > 1e-4
  for step, values in wanted.items():
    for name, value in values.items():
      # Eight bits: never the same, and never far off.
      assert 0 < abs(found[step][name] / value - 1) < 0.02


def gap(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(
    float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in leaves
  )


def test_what_trains(model):
  _, params = model
  wanted = {
    "full": lambda p: p.startswith("unet/"),
    "cross": lambda p: "/attn2/" in p,
    "kv": lambda p: p.endswith(("attn2/to_k/kernel", "attn2/to_v/kernel")),
    "no_kv": lambda p: wanted["full"](p) and not wanted["kv"](p),
    "no_attention": lambda p: "unet" in p and "/attn" not in p,
    "text_encoder": lambda p: p.startswith("text_encoder/"),
  }
  flat = jax.tree_util.tree_leaves_with_path(params)
  paths = {jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in flat}
  for train, rule in wanted.items():
    part = finetune.partition(params, train)
    assert set(part.trained) == {p for p in paths if rule(p)} != set()
    assert set(part.trained) | set(part.frozen) == paths
    joined = part.join(part.trained, part.frozen)
    jax.tree.map(np.testing.assert_array_equal, joined, params)
    same = jax.tree.map(lambda a, b: a is b, joined, params)
    assert all(jax.tree.leaves(same))


def test_lora_is_a_partition_too(model):
  part = finetune.partition(
    model[1], "lora", jax.random.key(0), rank=2, alpha=6, targets="kv"
  )
  filled = jax.tree.map(jnp.ones_like, part.trained)
  joined = part.join(filled, part.frozen)
  path = next(iter(filled))
  leaf, old = joined["unet"], model[1]["unet"]
  for name in path.split("/"):
    leaf, old = leaf[name], old[name]
  # alpha / rank times a product of ones over the rank.
  np.testing.assert_allclose(leaf, old + 3 * 2, atol=1e-5)
  with pytest.raises(ValueError, match="needs a key"):
    finetune.partition(model[1], "lora")


def test_unknown_parts(model):
  with pytest.raises(ValueError, match="train='unet'.*allowed: full, cross"):
    finetune.partition(model[1], "unet")
  with pytest.raises(ValueError, match="train='text_encoder': none of"):
    finetune.partition({"unet": model[1]["unet"]}, "text_encoder")


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape, train",
  [
    ((8, 1), "kv"),
    ((1, 8), "kv"),
    ((2, 4), "lora"),
    ((2, 4), "full"),
  ],
)
def test_every_mesh_computes_what_one_device_does(
  shape, train, model, data, alone, monkeypatch
):
  wanted = alone if train == "kv" else run(model, data, train=train)
  # Else everything here is too small to be split.
  always = functools.partial(sharding.param_sharding, min_bytes=0)
  monkeypatch.setattr(sharding, "param_sharding", always)
  mesh = sharding.make_mesh(data=shape[0], fsdp=shape[1])
  state, metrics = run(model, data, mesh=mesh, train=train)
  assert gap(state, wanted[0]) < 1e-5
  for i, values in wanted[1].items():
    for name, value in values.items():
      assert abs(metrics[i][name] / value - 1) < 1e-5
  for tree in (state.params, state.opt_state[1], state.ema):
    largest = max(jax.tree.leaves(tree), key=lambda leaf: leaf.size)
    shard = largest.addressable_shards[0].data
    assert shard.size * shape[1] == largest.size


@pytest.mark.slow
def test_a_resume_from_disk_is_bit_identical(model, data, alone, tmp_path):
  for stop in (1, 4):
    folder = tmp_path / str(stop)
    checkpoints.save(folder, stop, alone[2][stop])
    restored = checkpoints.restore(folder, setup(model)[1])
    state, _ = run(model, data, state=restored)
    jax.tree.map(np.testing.assert_array_equal, state, alone[0])


@pytest.mark.slow
def test_accumulation_is_the_mean_of_its_parts(model, data):
  part, state, step, frozen = setup(model, accumulate=2)
  sd, params = model
  batch = {k: jnp.asarray(v) for k, v in Batches(data, 8, seed=3)[0].items()}
  loss = functools.partial(
    finetune.diffusion_loss, sd, part.join, snr_gamma=5.0, caption_dropout=0.3
  )
  gradient = jax.jit(jax.grad(loss, has_aux=True))
  key = jax.random.key(1)
  keys = jax.random.split(jax.random.fold_in(key, 0), 2)
  halves = [
    gradient(part.trained, frozen, {n: v[i::2] for n, v in batch.items()}, k)[0]
    for i, k in enumerate(keys)
  ]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
  norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(mean)))
  _, metrics = jax.jit(step)(state, frozen, batch, key)
  assert abs(float(metrics["gradient_norm"] / norm) - 1) < 1e-5
  with pytest.raises(
    ValueError, match="accumulate=3 does not divide the 8 rows"
  ):
    odd = setup(model, accumulate=3)[2]
    jax.eval_shape(odd, state, frozen, batch, key)


def test_parts_of_a_batch_are_traced_once():
  traced = []

  def loss(params, frozen, batch, key):
    traced.append(batch["x"].shape)
    return (params * batch["x"]).sum(), {}

  tx = finetune.optimizer(1e-3, STEPS)
  step = finetune.make_step(loss, tx, 0.9, accumulate=2)
  state = finetune.init_state(jnp.ones(()), tx)
  batch, key = {"x": jnp.ones((4, 3))}, jax.random.key(0)
  jax.eval_shape(step, state, (), batch, key)
  assert traced == [(2, 3)]


def test_without_an_average_the_state_has_none(model):
  part, *_ = setup(model)
  tx = finetune.optimizer(1e-3, STEPS, clip_norm=None, schedule="constant")
  state = finetune.init_state(part.trained, tx, ema=False)
  assert state.ema == ()
  with pytest.raises(ValueError, match="schedule='linear'.*cosine, constant"):
    finetune.optimizer(1e-3, STEPS, schedule="linear")


@pytest.mark.slow
def test_dropped_captions_read_the_empty_prompt(model, data):
  sd, params = model
  part, _, _, frozen = setup(model)
  batch = {k: jnp.asarray(v[:8]) for k, v in data.items()}
  loss = jax.jit(
    functools.partial(finetune.diffusion_loss, sd, part.join),
    static_argnames="caption_dropout",
  )
  key = jax.random.key(0)
  dropped, _ = loss(part.trained, frozen, batch, key, caption_dropout=1.0)
  empty = jnp.broadcast_to(frozen["empty"], batch["context"].shape)
  blank, _ = loss(
    part.trained, frozen, batch | {"context": empty}, key, caption_dropout=0.0
  )
  kept, _ = loss(part.trained, frozen, batch, key, caption_dropout=0.0)
  assert float(dropped) == float(blank) != float(kept)


@pytest.mark.slow
def test_a_text_encoder_trains_on_token_ids(model):
  sd, params = model
  images = np.zeros((2, 12, 8, 3), np.uint8)
  rows = finetune.encode_examples(
    sd, params, images, ["a b", "c"], token_ids=True
  )
  part = finetune.partition(params, "text_encoder")
  frozen = {"params": part.frozen, "empty": stable_diffusion.tokenize(sd, [""])}
  loss = functools.partial(finetune.diffusion_loss, sd, part.join)
  (_, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    part.trained, frozen, rows, jax.random.key(0)
  )
  embedding = next(v for k, v in gradients.items() if "token_embedding" in k)
  touched = set(np.flatnonzero(np.abs(embedding).sum(1)))
  assert touched == set(rows["ids"].ravel())


@pytest.mark.slow
def test_rematerialized_blocks_give_the_same_gradient(model, data):
  sd, params = model
  config = dataclasses.replace(sd.unet.config, remat=True)
  other = dataclasses.replace(sd, unet=type(sd.unet)(config))
  part, _, _, frozen = setup(model)
  batch = {k: jnp.asarray(v[:4]) for k, v in data.items()}
  found = [
    jax.jit(
      jax.grad(
        functools.partial(
          finetune.diffusion_loss,
          net,
          part.join,
          snr_gamma=5.0,
          caption_dropout=0.3,
        ),
        has_aux=True,
      )
    )(part.trained, frozen, batch, jax.random.key(0))[0]
    for net in (sd, other)
  ]
  assert gap(*found) < 1e-6
