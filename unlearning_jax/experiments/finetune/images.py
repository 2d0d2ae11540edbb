"""The captioned images of a fine-tuning run: found, checked, encoded."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from unlearning_jax import data, extensions, finetune, sharding
from unlearning_jax.concepts import check_choice, same_phrase
from unlearning_jax.edits import Edit
from unlearning_jax.experiments.finetune.settings import Data, Settings
from unlearning_jax.model import Model
from unlearning_jax.processes import together
from unlearning_jax.stable_diffusion import Params, StableDiffusion

# The number of classes in a set `near` or `far`.
_NEIGHBOURS = 4


def data_of(
  text: str, model: Model, targets: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
  """The fields of `Data` that a short text stands for.

  Args:
    text: a world and one of its tuning sets for what the model's edit erased,
      such as `shapes:near`; `shapes` or `shapes:all` for everything but what
      was erased; a folder or a WebDataset; a table; or `tfds:` and the folder
      of a prepared dataset.
    model: the model that will be tuned.
    targets: what was erased, of the world's classes; () reads it from the
      model's edit.

  Raises:
    ValueError: the text is none of these, or names a set although nothing is
      erased in the model; or it is guided.
  """
  check_unguided(model)
  source, colon, rest = text.partition(":")
  if source in extensions.worlds():
    world, kind = extensions.world(source), rest if colon else "all"
    check_choice("data", kind, ("all", *world.SETS))
    erased, every = targets or world.erased_by(model.edit), kind == "all"
    if not erased and not every:
      raise ValueError(
        f"data={text!r}: nothing of {source} is erased in the model, so "
        f"nothing is near or far; give data={source!r}, or an erased model"
      )
    only = without = ""
    if erased:
      found = world.tuning_set(
        model.sd, model.params, erased, "in" if every else kind, _NEIGHBOURS
      )
      only, without = "" if every else found.only, found.without
    return {"source": source, "flip": False, "only": only, "without": without}
  if colon and source == "tfds":
    return {"source": source, "path": rest, "caption": "caption"}
  path = pathlib.Path(text)
  if not path.exists():
    known = ", ".join(f"{name}:SET" for name in extensions.worlds())
    raise ValueError(
      f"data={text!r}: no such folder or CSV; give one, tfds:FOLDER, or {known}"
    )
  folder = path.is_dir() or path.suffix == ".tar"
  return {"source": "folder" if folder else "csv", "path": text}


def check_unguided(model: Model):
  """Refuses a model that acts by guidance.

  Raises:
    ValueError: saying what to tune instead.
  """
  if model.guidance is not None:
    raise ValueError(
      "finetune: guidance changes no weight, so tuning cannot undo it; tune "
      "model.base, and give the result its guidance again"
    )


def examples(given: Data) -> list[data.Example]:
  """The captioned images that settings name.

  Raises:
    ValueError: the folder cannot be read, or a class is unknown.
  """
  if given.source == "folder":
    return data.image_folder(given.path, caption=given.caption)
  if given.source == "csv":
    return data.image_table(given.path, caption=given.caption)
  if given.source == "tfds":
    return data.prepared_dataset(given.path, given.split, caption=given.caption)
  return extensions.world(given.source).examples(
    given.count, given.seed, given.only, given.without
  )


def check_batch(
  settings: Settings, images: int, mesh: sharding.Mesh, processes: int
):
  """Refuses a batch that devices cannot share, or that the data cannot fill.

  Raises:
    ValueError: naming the sizes that can be used.
  """
  shares = processes * sharding.local_rows_multiple(mesh)
  # Gradients are added up over parts, and each device has rows of every part.
  if settings.batch_size % (shares * settings.accumulate):
    raise ValueError(
      f"batch_size={settings.batch_size} with accumulate={settings.accumulate} "
      f"is not a multiple of accumulate times the {shares} device(s) that "
      "share it; change either, or use fewer devices"
    )
  if settings.batch_size > images:
    raise ValueError(
      f"batch_size={settings.batch_size} is more than the {images} images of "
      "the data"
    )


def check_overlap(
  rows: Sequence[data.Example],
  edit: Edit | None,
  allowed: bool,
  also: Sequence[str] = (),
):
  """Refuses captions that name what was erased: they are no innocent data.

  Args:
    rows: the captioned images.
    edit: the erasure, whose concepts no caption may name; None erases nothing.
    allowed: True accepts such captions.
    also: other words for what was erased.

  Raises:
    ValueError: naming the caption and the phrase.
  """
  if edit is None or allowed:
    return
  names = {same_phrase(concept.erase) for concept in edit.concepts}
  names |= set(map(same_phrase, also))
  if not names:
    return
  # Plurals count too.
  end = r"(?:s|(?:(?<=[sxzo])|(?<=[cs]h))es)?\b"
  pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))}){end}")
  for caption in (one for row in rows for one in row.captions):
    if match := pattern.search(same_phrase(caption)):
      raise ValueError(
        f"the caption {caption!r} says {match[1]!r}, which was erased; "
        "leave such images out (of a world's renders, with "
        "--config.data.without=KIND/NAME, as object/star), or accept them with "
        "--config.allow_overlap=True"
      )


def encode(
  sd: StableDiffusion,
  params: Params,
  rows: Sequence[data.Example],
  settings: Settings,
) -> dict[str, np.ndarray]:
  """The images and captions as the loss reads them, at the model's size."""
  empty = sum("" in row.captions for row in rows)
  if empty:
    logging.info("%d of %d images train the empty prompt", empty, len(rows))
  scale = 2 ** (len(sd.vae.config.block_out_channels) - 1)
  height, width = (scale * side for side in sd.latent_size)
  return finetune.encode_examples(
    sd,
    params,
    data.read_images(rows, (height, width)),
    [row.captions for row in rows],
    flip=settings.data.flip,
    token_ids=settings.train == "text_encoder",
  )


def gathered(share: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """All rows in every process, as one process would have encoded them.

  This is a collective: all processes must call it. Each then holds all rows,
  for SD 1.4 about 0.5 MB an image.

  Args:
    share: from `encode`, of this process's `data.share`.
  """
  if jax.process_count() == 1:
    return dict(share)
  # As in a step: who waits here cannot hear that another has failed.
  with together(True):
    if not sharding.on_all_processes(data.COUNT not in share):
      share = _counted(share)
    parts = [sharding.of_each(rows) for rows in share.values()]
  return joined(
    [dict(zip(share, one, strict=True)) for one in zip(*parts, strict=True)]
  )


def joined(shares: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The inverse of `data.share`, of what `encode` makes of the shares."""
  whole: dict[str, np.ndarray] = {}
  texts, count = (), len(shares)
  if any(data.COUNT in share for share in shares):
    shares, texts = [*map(_counted, shares)], data.TEXTS
  for name in shares[0]:
    parts = [share[name] for share in shares]
    if name in texts:
      # Behind one another; `first_caption` says where an image's are.
      whole[name] = np.concatenate(parts)
      continue
    rows = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    before = 0
    for i, part in enumerate(parts):
      rows[i::count] = part + before if name == data.FIRST else part
      before += int(shares[i][data.COUNT].sum()) if texts else 0
    whole[name] = rows
  return whole


def _counted(share: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """A share that says how many captions an image has, where all have one."""
  if data.COUNT in share:
    return share
  rows = np.arange(len(share["mean"]))
  return {**share, data.FIRST: rows, data.COUNT: np.ones_like(rows)}
