"""The training step against torch diffusers', same weights and same draws."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import tiny_pipelines
from unlearning_jax import finetune, sharding, stable_diffusion
from unlearning_jax.convert.names import torch_name

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

STEPS, ROWS = 20, 4
RATE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """One level, norms over two channels.

  A norm over one channel takes a bias before it away again: its gradient is
  rounding alone, of which Adam makes whole steps, other ones in each library.
  """
  path = tmp_path_factory.mktemp("tiny")
  unet, *others = tiny_pipelines.CONFIGS["one_level"]
  wider = {"wide_groups": (unet | {"norm_num_groups": 16}, *others)}
  with mock.patch.dict(tiny_pipelines.CONFIGS, wider):
    tiny_pipelines.write(path, "wide_groups")
  return path


@pytest.fixture(scope="module")
def model(folder):
  sd, params = stable_diffusion.load(folder)
  # Standard deviation 0.2 everywhere makes a network whose gradients are
  # thousands: at a quarter of it they are of the size of a trained one's.
  return sd, jax.tree.map(lambda leaf: leaf / 4, params)


def leaf(value):
  return torch.nn.Parameter(torch.tensor(np.asarray(value)))


class Theirs:
  """The model in torch, and the step of diffusers' text-to-image example."""

  def __init__(self, folder, train, partition, snr_gamma, prediction):
    load = diffusers.UNet2DConditionModel.from_pretrained
    self.unet = load(folder, subfolder="unet")
    with torch.no_grad():
      for parameter in self.unet.parameters():
        parameter.div_(4)
    self.schedule = diffusers.DDPMScheduler.from_pretrained(
      folder, subfolder="scheduler", prediction_type=prediction
    )
    self.snr_gamma, self.factors = snr_gamma, {}
    if train == "lora":
      self.factors = {
        path: {k: leaf(v) for k, v in factors.items()}
        for path, factors in partition.trained.items()
      }
      self.trained = [
        f for pair in self.factors.values() for f in pair.values()
      ]
    else:
      self.trained = list(self.unet.parameters())

  def loss(self, batch):
    nchw = {k: torch.tensor(v).movedim(-1, 1) for k, v in batch.items()
            if v.ndim == 4}  # fmt: skip
    t = torch.tensor(batch["t"]).long()
    noisy = self.schedule.add_noise(nchw["latents"], nchw["noise"], t)
    target = nchw["noise"]
    if self.schedule.config.prediction_type == "v_prediction":
      target = self.schedule.get_velocity(nchw["latents"], nchw["noise"], t)
    weights = dict(self.unet.named_parameters())
    for path, pair in self.factors.items():
      name = torch_name(path.split("/"))
      # Twice: the adapters' alpha is twice their rank.
      weights[name] = weights[name] + 2 * (pair["down"] @ pair["up"]).T
    predicted = torch.func.functional_call(
      self.unet, weights, (noisy, t, torch.tensor(batch["context"]))
    ).sample
    if self.snr_gamma is None:
      return torch.nn.functional.mse_loss(predicted, target)
    snr = diffusers.training_utils.compute_snr(self.schedule, t)
    floor = torch.stack([snr, self.snr_gamma * torch.ones_like(t)], 1).min(1)[0]
    by_v = self.schedule.config.prediction_type == "v_prediction"
    weight = floor / (snr + 1 if by_v else snr)
    errors = torch.nn.functional.mse_loss(predicted, target, reduction="none")
    return (errors.mean(dim=(1, 2, 3)) * weight).mean()

  def leaves(self, of=lambda parameter: parameter):
    """path -> array in our layout."""
    if self.factors:
      return {
        path: {k: of(v).detach().numpy() for k, v in pair.items()}
        for path, pair in self.factors.items()
      }
    named = dict(self.unet.named_parameters())
    return lambda path: flax_layout(
      path, of(named[torch_name(path.split("/")[1:])]).detach().numpy()
    )


def flax_layout(path, value):
  if not path.endswith("kernel"):
    return value
  return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def pairs(ours, theirs):
  if callable(theirs):
    return [(path, value, theirs(path)) for path, value in ours.items()]
  return [
    (f"{path}/{name}", value, theirs[path][name])
    for path, factors in ours.items()
    for name, value in factors.items()
  ]


def batch(sd, step):
  rng = np.random.default_rng(step)
  normal = functools.partial(rng.standard_normal, dtype=np.float32)
  return {
    "latents": normal((ROWS, *sd.latent_shape)),
    "noise": normal((ROWS, *sd.latent_shape)),
    "context": normal((ROWS, *sd.context_shape)),
    "t": rng.integers(0, 1000, ROWS).astype(np.int32),
  }


class Batches:
  def __init__(self, sd):
    self.sd = sd

  def __getitem__(self, step):
    return batch(self.sd, step)


def make_loss(sd, part, snr_gamma):
  def loss(trained, frozen, rows, key):
    return finetune.denoising_loss(
      sd,
      part.join(trained, frozen),
      rows["latents"],
      rows["noise"],
      rows["t"],
      rows["context"],
      snr_gamma=snr_gamma,
    )

  return loss


def setting(model, folder, train, snr_gamma, prediction):
  """The two versions of one training problem."""
  sd, params = model
  schedule = dataclasses.replace(sd.schedule, prediction_type=prediction)
  sd = dataclasses.replace(sd, schedule=schedule)
  part = finetune.partition(
    {"unet": params["unet"]}, train, jax.random.key(0), rank=3, alpha=6
  )
  if train == "lora":
    # Past the first step, where one factor has no gradient.
    rng = np.random.default_rng(1)
    filled = jax.tree.map(
      lambda x: np.float32(0.1 * rng.normal(size=x.shape)), part.trained
    )
    part = part._replace(trained=filled)
  return sd, part, Theirs(folder, train, part, snr_gamma, prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_the_loss_is_torchs(snr_gamma, prediction, model, folder):
  sd, part, theirs = setting(model, folder, "full", snr_gamma, prediction)
  loss = jax.jit(make_loss(sd, part, snr_gamma))
  value, metrics = loss(part.trained, part.frozen, batch(sd, 0), None)
  wanted = float(theirs.loss(batch(sd, 0)).detach())
  assert abs(float(value) / wanted - 1) < 1e-5
  assert (float(metrics["mse"]) == float(value)) == (snr_gamma is None)


@pytest.mark.parametrize(
  "train, snr_gamma, prediction",
  [
    ("lora", 5.0, "v_prediction"),
    pytest.param("full", None, "epsilon", marks=pytest.mark.slow),
  ],
)
def test_steps_are_torchs(train, snr_gamma, prediction, model, folder):
  sd, part, theirs = setting(model, folder, train, snr_gamma, prediction)
  # Keeps the gradients that pass through it.
  record = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (updates, updates),
  )
  tx = optax.chain(
    record,
    finetune.optimizer(
      RATE, STEPS, schedule="constant", warmup=0, b2=0.999, decay_all=True
    ),
  )
  adamw = torch.optim.AdamW(theirs.trained, lr=RATE, weight_decay=0.01)

  def compare(step, values):
    adamw.zero_grad()
    wanted = theirs.loss(batch(sd, step - 1))
    wanted.backward()
    # Bounds for a step that starts from the same weights, and for later ones.
    within = 1e-5 if step == 1 else 1e-4
    assert abs(values["loss"] / float(wanted.detach()) - 1) < within

  def follow(step, state):
    if step == 1:
      ours = jax.device_get(state.opt_state[0])
      for path, mine, other in pairs(ours, theirs.leaves(lambda p: p.grad)):
        gap = np.abs(mine - other).max()
        assert gap < 1e-5 * max(1, np.abs(other).max()), (path, gap)
    torch.nn.utils.clip_grad_norm_(theirs.trained, 1.0)
    adamw.step()

  state = finetune.train(
    finetune.init_state(part.trained, tx, ema=False),
    finetune.make_step(make_loss(sd, part, snr_gamma), tx, None),
    part.frozen,
    Batches(sd),
    jax.random.key(0),
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    num_steps=STEPS,
    watch=finetune.Watch(every=1, on_metrics=compare, on_state=follow),
  )
  moved = 0.0
  for path, ours, other in pairs(state.params, theirs.leaves()):
    np.testing.assert_allclose(ours, other, atol=1e-4, err_msg=path)
  for _, ours, other in pairs(part.trained, theirs.leaves()):
    moved = max(moved, float(np.abs(ours - other).max()))
  assert moved > 5 * 1e-4


def test_cached_moments_are_torchs(model, folder):
  sd, params = stable_diffusion.load(folder)
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  cached = finetune.encode_examples(
    sd, params, images, ["a b", "c", ""], flip=True, batch_size=2
  )
  vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
  scale = vae.config.scaling_factor
  for view, pixels in enumerate((images, images[:, :, ::-1])):
    x = torch.tensor(pixels.copy()).movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
      posterior = vae.encode(x).latent_dist
    for name in ("mean", "std"):
      wanted = scale * getattr(posterior, name).movedim(1, -1).numpy()
      ours = cached[name][:, view]
      gap = np.abs(ours - wanted).max() / max(1, np.abs(wanted).max())
      assert gap < 1e-5
  ids = stable_diffusion.tokenize(sd, ["c"])
  states = stable_diffusion.encode_text(sd, params, jnp.asarray(ids))
  np.testing.assert_allclose(cached["context"][1:2], states, atol=1e-5)
