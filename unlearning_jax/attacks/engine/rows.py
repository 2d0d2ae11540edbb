"""The rows of a run: prompts with seeds, target images and layouts."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unlearning_jax import stable_diffusion
from unlearning_jax.attacks.engine import insertion, vocabulary
from unlearning_jax.concepts import check_choice
from unlearning_jax.sampling import Request as Request
from unlearning_jax.stable_diffusion import Params, StableDiffusion

LONG_PROMPTS = ("drop", "error", "truncate")


class Verdict(NamedTuple):
  """What a judge found in one image.

  Attributes:
    success: whether the image shows the concept; None without a judge.
    score: how sure the judge is, 0 to 1; None without a judge.
    image: the kept file's path, or None.
  """

  success: bool | None
  score: float | None
  image: str | None = None


# Makes and judges images, one for each request, in order.
Check = Callable[[Sequence[Request]], Sequence[Verdict]]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """A prompt to attack.

  Attributes:
    id: the row's name in the records.
    number: 0 to 2^32 - 1, the only source of the row's randomness.
    prompt: the text to attack.
    seed: draws the initial noise of the row's images.
    guidance: guidance scale of the images; None leaves it to the checker.
    latents: x_0 of the target image.
    left_out: why the row counts without being attacked; "" if it is attacked.
  """

  id: str
  number: int
  prompt: str
  seed: int
  guidance: float | None
  latents: Float[np.ndarray, "h w c"]
  left_out: str = ""

  def request(
    self,
    text: str,
    seed: int | None = None,
    context: Float[np.ndarray, "l d"] | None = None,
  ) -> Request:
    """Asks for an image of `text` with this row's settings."""
    seed = self.seed if seed is None else seed
    return Request(text, seed, self.guidance, context)


class Prepared(NamedTuple):
  """A row with its padded ids and layout; `lost` tokens were cut off."""

  row: Row
  ids: Int[np.ndarray, " l"]
  source: Int[np.ndarray, " l"]
  lost: int = 0

  @property
  def cut(self) -> dict[str, int]:
    """The record's fields about tokens that were cut off."""
    return {"lost_tokens": self.lost} if self.lost else {}

  def words(self, ids: Sequence[int]) -> tuple[int, ...]:
    """The inserted tokens of ids that were laid out for this row."""
    slots = self.source >= len(self.ids)
    return tuple(i for i, new in zip(ids, slots, strict=True) if new)

  def text(
    self, sd: StableDiffusion, tokens: Int[np.ndarray, " k"]
  ) -> dict[str, Any]:
    """The prompt with `tokens` inserted: its ids, text, and ids once more.

    `survived` says whether decoding and encoding gave the same ids back.
    """
    ids = insertion.splice(self.ids[None], tokens[None], self.source[None])[0]
    text = vocabulary.to_text(sd.tokenizer, ids)
    text, again = vocabulary.reencode(sd.tokenizer, text, len(ids))
    return {
      "text": text,
      "ids": ids.tolist(),
      "ids_again": again.tolist(),
      "roundtrip": bool(np.array_equal(ids, again)),
    }


def check_rows(rows: Sequence[Row], latent_shape: tuple[int, ...]):
  """Checks every row of a table.

  Raises:
    ValueError: no rows, a repeated id or number, a number out of range, or
      latents that are not finite or do not have the model's shape.
  """
  if not rows:
    raise ValueError("rows: the prompt table is empty")
  for what in ("id", "number"):
    seen: set[Any] = set()
    for row in rows:
      value = getattr(row, what)
      if value in seen:
        raise ValueError(f"rows: {what} {value!r} is repeated")
      seen.add(value)
  for row in rows:
    if not 0 <= row.number < 2**32:
      raise ValueError(f"row {row.id}: number={row.number} is not in 0..2^32-1")
    if row.latents.shape != latent_shape:
      raise ValueError(
        f"row {row.id}: the target's latents have the shape "
        f"{row.latents.shape}; the model's have {latent_shape}"
      )
    if not np.isfinite(row.latents).all():
      raise ValueError(f"row {row.id}: the target's latents are not finite")


def prepare(
  sd: StableDiffusion,
  rows: Iterable[Row],
  mode: str,
  k: int,
  long_prompts: str = "drop",
) -> tuple[list[Prepared], dict[str, str]]:
  """Lays out every row's prompt with room for the adversarial tokens.

  Args:
    rows: the table.
    mode: where the tokens go, see `insertion`.
    k: the number of adversarial tokens.
    long_prompts: what to do with a prompt that leaves no room: `drop` it, raise
      an `error`, or `truncate` whole words at its end.

  Returns:
    The rows that fit, and {id: reason} of the others.

  Raises:
    ValueError: `long_prompts="error"` and rows that do not fit; the message
      names each with its reason.
  """
  check_choice("long_prompts", long_prompts, LONG_PROMPTS)
  fitting: list[Prepared] = []
  dropped: dict[str, str] = {}
  for row in rows:
    # A dropped row still counts in every denominator, and its record says why.
    if row.left_out:
      dropped[row.id] = row.left_out
      continue
    try:
      fitting.append(_prepared(sd, row, mode, k, long_prompts == "truncate"))
    except ValueError as error:
      dropped[row.id] = str(error)
  if dropped and long_prompts == "error":
    raise ValueError(
      "rows that leave no room for the attack (long_prompts='error'; 'drop' "
      "counts "
      "them as failures, 'truncate' cuts them): "
      + "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
    )
  return fitting, dropped


def image_size(sd: StableDiffusion) -> tuple[int, ...]:
  """Height and width of the model's images, in pixels."""
  scale = 2 ** (len(sd.vae.config.block_out_channels) - 1)
  return tuple(scale * size for size in sd.latent_size)


def _prepared(sd, row, mode, k, truncate) -> Prepared:
  """The row's ids and layout, with its end cut off if `truncate` allows it.

  Raises:
    ValueError: the prompt leaves no room.
  """
  length, text = sd.context_shape[0], row.prompt
  every = sd.tokenizer(text)["input_ids"][1:-1]
  kept = _fitting(sd, every, mode, k, length) if truncate else len(every)
  if kept < len(every):
    text = vocabulary.to_text(sd.tokenizer, [0, *every[:kept]])
  ids = stable_diffusion.tokenize(sd, [text])[0]
  n = int((ids == sd.tokenizer.eos_token_id).argmax()) - 1
  source = insertion.layout(mode, n, k, length, row.prompt)
  return Prepared(row, ids, source, len(every) - kept)


def _fitting(sd, every, mode, k, length) -> int:
  """How many tokens of whole words fit; all tokens if no word does."""
  for kept in range(min(len(every), length - 2), 0, -1):
    (last,) = sd.tokenizer.convert_ids_to_tokens([every[kept - 1]])
    whole = kept == len(every) or last.endswith(vocabulary.WORD_END)
    if whole and insertion.total(mode, kept, k) <= length - 2:
      return kept
  return len(every)


def limited(
  sd: StableDiffusion, rows: Sequence[Row], max_tokens: int | None
) -> list[Row]:
  """Leaves out rows with long prompts, as UnlearnDiffAtk's loader does.

  Args:
    rows: the table.
    max_tokens: the most tokens of a prompt, start and end included; None leaves
      no row out.
  """
  if max_tokens is None:
    return [*rows]
  found = []
  for row in rows:
    count = len(sd.tokenizer(row.prompt)["input_ids"])
    if count > max_tokens:
      reason = f"prompt {row.prompt!r} has {count} tokens; max_tokens="
      row = dataclasses.replace(row, left_out=f"{reason}{max_tokens}")
    found.append(row)
  return found


def target_latents(
  sd: StableDiffusion,
  params: Mapping[str, Any],
  images: Iterable[np.ndarray],
) -> Float[np.ndarray, "n h w c"]:
  """x_0 of the target images: the mean of the VAE's posterior, scaled.

  Args:
    images: batches of uint8 images, (b, height, width, 3).

  Raises:
    ValueError: images of another dtype or size.
  """
  wanted = (*image_size(sd), 3)
  found = []
  for batch in images:
    if batch.dtype != np.uint8 or batch.shape[1:] != wanted:
      raise ValueError(
        f"target images: {batch.dtype} {batch.shape[1:]}; allowed: uint8 "
        f"{wanted}"
      )
    # One at a time: in a batch, an image's latents change in the last bit.
    for image in batch:
      found.append(np.asarray(_encode(sd, {"vae": params["vae"]}, image[None])))
  return np.concatenate(found or [np.zeros((0, *sd.latent_shape), np.float32)])


@functools.partial(jax.jit, static_argnums=0)
def _encode(sd: StableDiffusion, params: Params, images: Array) -> Array:
  scaled = images.astype(jnp.float32) / 127.5 - 1
  return stable_diffusion.encode_images(sd, params, scaled)
