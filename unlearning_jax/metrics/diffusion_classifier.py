"""Diffusion Classifier (Li et al., ICCV 2023): which prompt explains an image.

With even priors, and errors for likelihoods, the posterior of prompt c_i is

  p(c_i | x_0) ~ exp(-E_{t, eps} |eps - eps_v(x_t, c_i)|^2) ,

so the image belongs to the prompt under which it is denoised best. All prompts
see the same timesteps and noises: only differences count. t is on a grid of n
even values; stages (n_s, k_s) evaluate n_s of them, those not done before, for
the prompts still in the race, and keep the best k_s.

As a diagnostic of an unlearned model: the gap between a neutral prompt and the
concept's on images of the concept. Where the victim's gap is near the
original's, the knowledge is still there. As an attack's proxy: the share of
what the erasure took away that an adversarial prompt brings back, which costs a
few UNet rows where an image costs a hundred.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unlearning_jax import schedules, stable_diffusion
from unlearning_jax.attacks.engine.rows import Request, Row
from unlearning_jax.attacks.engine.victim import Victim
from unlearning_jax.attacks.engine.vocabulary import shortened
from unlearning_jax.concepts import check_choice
from unlearning_jax.stable_diffusion import StableDiffusion

# Published stages (timesteps, prompts kept).
STAGES = {
  "cifar10": ((50, 5), (500, 1)),
  "pets": ((25, 5), (250, 1)),
  "stl10": ((100, 5), (500, 1)),
  "flowers": ((20, 20), (50, 10), (100, 5), (500, 1)),
  "imagenet": ((50, 500), (100, 50), (500, 10), (1000, 1)),
  "objectnet": ((50, 25), (100, 10), (500, 5), (1000, 1)),
}
CRITERIA = ("l2", "l1")


class Classification(NamedTuple):
  """The prompt of least error, and every prompt's mean error and count."""

  index: int
  errors: Float[np.ndarray, " p"]
  counts: Int[np.ndarray, " p"]


def grid(total: int, count: int) -> Int[np.ndarray, " n"]:
  """`count` even timesteps of `total`, from half a stride on.

  Raises:
    ValueError: more timesteps than there are.
  """
  if not 1 <= count <= total:
    raise ValueError(f"timesteps={count}: allowed: 1 to {total}")
  stride = total // count
  return np.arange(stride // 2, total, stride)[:count]


def stage_indices(most: int, count: int) -> Int[np.ndarray, " n"]:
  """Which of the `most` timesteps a stage of `count` looks at."""
  stride = most // count
  return np.arange(stride // 2, most, stride)[:count]


def check(
  schedule: schedules.Schedule,
  stages: Sequence[tuple[int, int]],
  criterion: str = "l2",
):
  """Refuses what no prompt can be held against, before anything compiles.

  Args:
    schedule: the model's.
    stages: as in `classify`.
    criterion: `l2` or `l1`.

  Raises:
    ValueError: unusable stages or criterion, or a model that does not predict
      the noise.
  """
  counts = [count for count, _ in stages]
  if not stages or sorted(counts) != counts or min(min(s) for s in stages) < 1:
    raise ValueError(f"stages={stages}: want (n, keep), both >= 1, n rising")
  grid(schedule.num_train_timesteps, counts[-1])
  check_choice("criterion", criterion, CRITERIA)
  if schedule.prediction_type != "epsilon":
    raise ValueError(
      f"prediction_type={schedule.prediction_type!r}: the classifier is "
      "written for 'epsilon'"
    )


def classify(
  sd: StableDiffusion,
  victim: Victim,
  latents: Float[Array, "h w c"],
  contexts: Float[Array, "p l d"],
  *,
  stages: Sequence[tuple[int, int]] = STAGES["cifar10"],
  key: Array,
  criterion: str = "l2",
  batch_size: int = 32,
) -> Classification:
  """The prompt that an image most likely has, as the victim sees it.

  Args:
    sd: the model.
    victim: whose UNet.
    latents: x_0 of the image, the posterior's mean.
    contexts: the victim's text states of the prompts, any edit applied.
    stages: (timesteps, prompts kept), timesteps rising.
    key: of the noises, one a timestep.
    criterion: `l2` or `l1`.
    batch_size: UNet rows of one call.

  Raises:
    ValueError: as `check`.
  """
  check(sd.schedule, stages, criterion)
  total, size = stages[-1][0], len(contexts)
  seen: list[list[float]] = [[] for _ in range(size)]
  racing, done = list(range(size)), np.zeros(0, int)
  for count, keep in stages:
    new = np.setdiff1d(stage_indices(total, count), done)
    done = np.union1d(done, new)
    which = np.repeat(racing, len(new))
    found = errors(
      sd,
      victim,
      jnp.broadcast_to(latents, (len(which), *latents.shape)),
      jnp.asarray(contexts)[which],
      np.tile(new, len(racing)),
      timesteps=total,
      key=key,
      criterion=criterion,
      batch_size=batch_size,
    ).reshape(len(racing), len(new))
    for prompt, values in zip(racing, found, strict=True):
      seen[prompt].extend(values.tolist())
    means = [float(np.mean(seen[prompt])) for prompt in racing]
    # Stable, so that of two equal prompts the first is kept.
    order = np.argsort(means, kind="stable")[:keep]
    racing = [racing[i] for i in order]
  mean = np.array([np.mean(values) for values in seen])
  return Classification(racing[0], mean, np.array([len(v) for v in seen]))


def errors(
  sd: StableDiffusion,
  victim: Victim,
  latents: Float[Array, "m h w c"],
  contexts: Float[Array, "m l d"],
  index: Int[np.ndarray, " m"],
  *,
  timesteps: int,
  key: Array,
  criterion: str = "l2",
  batch_size: int = 32,
) -> Float[np.ndarray, " m"]:
  """The mean error of denoising each image at one timestep with one prompt.

  Args:
    sd: the model.
    victim: whose UNet.
    latents: x_0.
    contexts: text states, any edit applied.
    index: which of the timesteps; it also picks the noise.
    timesteps: how many the grid has.
    key: of the noises.
    criterion: `l2` or `l1`.
    batch_size: UNet rows of one call.

  Raises:
    ValueError: as `check`.
  """
  check(sd.schedule, ((timesteps, 1),), criterion)
  times = grid(sd.schedule.num_train_timesteps, timesteps)
  unet, count = {"unet": victim.params["unet"]}, len(index)
  found = []
  for start in range(0, count, batch_size):
    # The last batch repeats its last row: one shape, one program.
    rows = np.minimum(np.arange(start, start + batch_size), count - 1)
    part = index[rows]
    arrays = (latents[rows], contexts[rows], times[part], part)
    values = np.asarray(_errors(sd, criterion, unet, *arrays, key))
    found.append(values[: count - start])
  return np.concatenate(found) if found else np.zeros(0, np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _errors(sd, criterion, unet, latents, contexts, t, index, key):
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
  noise = jax.vmap(lambda k: jax.random.normal(k, sd.latent_shape))(keys)
  noisy = schedules.add_noise(sd.schedule, latents, noise, t)
  out = stable_diffusion.predict_noise(sd, unet, noisy, t, contexts)
  error = noise - out.astype(jnp.float32)
  error = jnp.abs(error) if criterion == "l1" else jnp.square(error)
  return error.reshape(len(error), -1).mean(axis=1)


class Proxy:
  """How much of what was erased an adversarial prompt brings back.

  With E the mean error on the row's target image, v the victim, o the
  original, c the row's prompt and c' the adversarial one,

    share = (E_v(c) - E_v(c')) / (E_v(c) - E_o(c)) :

  0 for a prompt that does nothing, 1 for one under which the victim explains
  the image as well as the original does. Where nothing was erased it is 1.

  Args:
    sd: the model.
    victim: under attack.
    original: the model before unlearning.
    timesteps: how many each error is a mean of.
    key: of the noises, the same for all rows.
    batch_size: UNet rows of one call.
  """

  def __init__(
    self,
    sd: StableDiffusion,
    victim: Victim,
    original: Victim,
    timesteps: int,
    key: Array,
    batch_size: int = 32,
  ):
    check(sd.schedule, ((timesteps, 1),))
    self._sd, self._victim, self._original = sd, victim, original
    self.timesteps, self._key, self._size = timesteps, key, batch_size
    self._ends: dict[str, tuple[float, float]] = {}

  def __call__(
    self, rows: Sequence[Row], requests: Sequence[Request]
  ) -> list[float]:
    """The share of each request, which is of the row beside it."""
    new = [row for row in rows if row.id not in self._ends]
    if new:
      own = [row.request(row.prompt) for row in new]
      before = self._errors(self._victim, new, own)
      wanted = self._errors(self._original, new, own)
      for row, *ends in zip(new, before, wanted, strict=True):
        self._ends[row.id] = (float(ends[0]), float(ends[1]))
    found = self._errors(self._victim, rows, requests)
    shares = []
    for row, error in zip(rows, found, strict=True):
      high, low = self._ends[row.id]
      gap = high - low
      shares.append(float((high - error) / gap) if gap > 0 else 1.0)
    return shares

  def _errors(self, who, rows, requests):
    """Each request's mean error under `who` on its row's target."""
    length = self._sd.context_shape[0]
    states = [
      self._states(who, request.prompt, length)
      if request.context is None
      else jnp.asarray(request.context)
      for request in requests
    ]
    latents = np.stack([row.latents for row in rows])
    every = np.repeat(np.arange(len(rows)), self.timesteps)
    found = errors(
      self._sd,
      who,
      jnp.asarray(latents)[every],
      jnp.stack(states)[every],
      np.tile(np.arange(self.timesteps), len(rows)),
      timesteps=self.timesteps,
      key=self._key,
      batch_size=self._size,
    )
    return found.reshape(len(rows), -1).mean(axis=1)

  def _states(self, who, prompt, length):
    text = shortened(self._sd.tokenizer, prompt, length)
    return stable_diffusion.encode_prompts(
      self._sd, who.params, [text], who.edit_context
    )[0]
