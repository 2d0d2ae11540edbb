"""Diffusion Classifier (Li et al., ICCV 2023): which prompt explains an image.

With uniform priors, and errors in place of likelihoods, the posterior of prompt
c_i is

  p(c_i | x_0) ~ exp(-E_{t, eps} |eps - eps_v(x_t, c_i)|^2) ,

so the image belongs to the prompt under which it is denoised best. Only
differences count, so all prompts see the same timesteps and noises. t lies on a
grid of n even values. Stage s evaluates the remaining prompts at n_s of these,
skips those that an earlier stage evaluated, and keeps the best k_s prompts.

It has two uses here. It diagnoses an erased model: on images of the concept,
compare the error gap between a neutral prompt and the concept's prompt. If the
victim's gap is near the base's, the knowledge is still there. And it is a proxy
for an attack's images: it estimates how much of the erased concept a prompt
brings back, for a few UNet rows where an image costs a hundred.
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

# The stages published for CIFAR-10, each (timesteps, prompts kept).
CIFAR10 = ((50, 5), (500, 1))
CRITERIA = ("l2", "l1")


class Classification(NamedTuple):
  """The prompt with the least error.

  Attributes:
    index: that prompt's.
    errors: each prompt's mean error.
    counts: how many timesteps each mean is over.
  """

  index: int
  errors: Float[np.ndarray, " p"]
  counts: Int[np.ndarray, " p"]


def grid(total: int, count: int) -> Int[np.ndarray, " n"]:
  """`count` evenly spaced timesteps below `total`, from half a stride on.

  Raises:
    ValueError: `count` is below 1 or above `total`.
  """
  if not 1 <= count <= total:
    raise ValueError(f"timesteps={count}: allowed: 1 to {total}")
  stride = total // count
  return np.arange(stride // 2, total, stride)[:count]


def stage_indices(most: int, count: int) -> Int[np.ndarray, " n"]:
  """Which `count` of the `most` timesteps a stage evaluates."""
  stride = most // count
  return np.arange(stride // 2, most, stride)[:count]


def check(
  schedule: schedules.Schedule,
  stages: Sequence[tuple[int, int]],
  criterion: str = "l2",
):
  """Checks that this model can classify with these stages.

  Args:
    schedule: the model's noise schedule.
    stages: (timesteps, prompts kept), timesteps rising.

  Raises:
    ValueError: unusable stages, an unknown criterion, or a model that does not
      predict the noise.
  """
  counts = [count for count, _ in stages]
  if not stages or sorted(counts) != counts or min(min(s) for s in stages) < 1:
    raise ValueError(
      f"stages={stages}: allowed: one or more (n, keep), both >= 1, n rising"
    )
  grid(schedule.num_train_timesteps, counts[-1])
  check_choice("criterion", criterion, CRITERIA)
  if schedule.prediction_type != "epsilon":
    raise ValueError(
      f"prediction_type={schedule.prediction_type!r}: the classifier compares "
      "noise predictions, which only a model with 'epsilon' makes"
    )


def classify(
  sd: StableDiffusion,
  victim: Victim,
  latents: Float[Array, "h w c"],
  contexts: Float[Array, "p l d"],
  *,
  stages: Sequence[tuple[int, int]] = CIFAR10,
  key: Array,
  criterion: str = "l2",
  batch_size: int = 32,
) -> Classification:
  """Finds the prompt under which the victim denoises an image best.

  Args:
    latents: x_0 of the image, the mean of the VAE's posterior.
    contexts: the victim's text states of the p prompts, edits applied.
    stages: (timesteps, prompts kept), timesteps rising.
    key: draws one noise for each timestep.
    batch_size: UNet rows in one call.

  Raises:
    ValueError: see `check`.
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
    # A stable sort keeps the first of two equal prompts.
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
  """Each row's mean error: one image, one prompt, one timestep.

  Args:
    latents: x_0 of each row's image.
    contexts: each row's text states, edits applied.
    index: each row's place on the grid of timesteps; it also picks the noise.
    timesteps: n, the grid's size.
    key: draws one noise for each timestep.
    batch_size: UNet rows in one call.

  Raises:
    ValueError: see `check`.
  """
  check(sd.schedule, ((timesteps, 1),), criterion)
  times = grid(sd.schedule.num_train_timesteps, timesteps)
  unet, count = {"unet": victim.params["unet"]}, len(index)
  found = []
  for start in range(0, count, batch_size):
    # The last batch repeats its last row, so that all calls share a program.
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
  """How much of the erased concept an adversarial prompt brings back.

  Let E be the mean error on the row's target image, v the victim, o the base,
  c the row's prompt and c' the adversarial one. Then

    share = (E_v(c) - E_v(c')) / (E_v(c) - E_o(c)) .

  It is 0 for a prompt without effect, and 1 for one under which the victim
  denoises the image as well as the base does. It is 1 if nothing was erased.

  Args:
    timesteps: how many timesteps each error is a mean over.
    key: draws the noises, the same for all rows.
    batch_size: UNet rows in one call.
  """

  def __init__(
    self,
    sd: StableDiffusion,
    victim: Victim,
    base: Victim,
    timesteps: int,
    key: Array,
    batch_size: int = 32,
  ):
    check(sd.schedule, ((timesteps, 1),))
    self._sd, self._victim, self._base = sd, victim, base
    self.timesteps, self._key, self._size = timesteps, key, batch_size
    self._ends: dict[str, tuple[float, float]] = {}

  def __call__(
    self, rows: Sequence[Row], requests: Sequence[Request]
  ) -> list[float]:
    """Each request's share; `rows` and `requests` go in pairs."""
    new = [row for row in rows if row.id not in self._ends]
    if new:
      own = [row.request(row.prompt) for row in new]
      before = self._errors(self._victim, new, own)
      wanted = self._errors(self._base, new, own)
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
