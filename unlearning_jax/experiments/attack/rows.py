"""The rows of an attack and their target images."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unlearning_jax import (
  durable,
  pictures,
  prompt_tables,
  sampling,
  sharding,
  stops,
)
from unlearning_jax.attacks.engine import rows, vocabulary
from unlearning_jax.experiments import common
from unlearning_jax.experiments.attack.settings import Settings
from unlearning_jax.model import Model
from unlearning_jax.stable_diffusion import StableDiffusion

# Rows with id, number, prompt, seed and guidance.
Listed = Sequence[Mapping[str, Any]]


def listed(given: Settings) -> list[dict[str, Any]]:
  """Every row of the run: id, number, prompt, seed, guidance.

  They come from `prompt_table`, or else from the world of the targets.

  Raises:
    ValueError: `prompt_table` is not a table of prompts.
  """
  if given.prompt_table:
    return [
      {
        "id": str(row.case_number),
        "number": row.case_number,
        "prompt": row.prompt,
        "seed": row.seed,
        "guidance": row.guidance,
      }
      for row in prompt_tables.read(given.prompt_table).prompts
    ]
  # Only some of the others are of the targets' head; three in ten portraits.
  count = 10 * given.rows_per_group if "others" in given.groups else 0
  world, targets = common.world_of(given), given.world_targets
  drawn = world.prompt_rows(targets, given.rows_per_group, count, given.seed)
  heads = {target.head for target in world.targets(targets)}
  own = [row for row in drawn if row["group"] != "others"]
  rest = [
    row
    for row in drawn[len(own) :]
    if any(row["attributes"][head] is not None for head in heads)
  ]
  return [
    {
      "id": row["id"],
      "number": number,
      "prompt": row["prompt"],
      "seed": row["seed"],
      "guidance": None,
    }
    for number, row in enumerate(own + rest[: given.rows_per_group])
    if row["group"] in given.groups
  ]


def notes(given: Settings, sd: StableDiffusion) -> list[str]:
  """What a reader must know of the rows: left out, assumed, or shared."""
  own, said = given.sharing, []
  if own.wave:
    said.append(
      f"Rows try up to {own.tries} words that won on earlier rows (waves from "
      f"{own.wave} rows on), and have no other images once so many are known. "
      "Intervals and p count rows as independent, so they are narrower than "
      "they should be."
    )
  if not given.prompt_table:
    return said
  table = prompt_tables.read(given.prompt_table)
  height, width = rows.image_size(sd)
  other = sum(row.size not in (None, (height, width)) for row in table.prompts)
  if other:
    said.append(
      f"{other} rows ask for images of another size: all are drawn at {width}x"
      f"{height}, the size of the target images."
    )
  return [*table.notes, *said]


def check_targets(given: Settings, sd: StableDiffusion, listed: Listed):
  """Refuses target images that are missing, damaged or of another size.

  Raises:
    ValueError: naming the file.
  """
  height, width = rows.image_size(sd)
  for row in listed if given.target_images else ():
    path = _target(given.target_images, row)
    if not path.is_file():
      raise ValueError(
        f"target_images: no file {path}; each row needs its <id>.png, or leave "
        "target_images empty to have the original model draw them"
      )
    try:
      size = pictures.read(path).size
    except ValueError as error:
      raise ValueError(f"target_images: cannot read {path}: {error}") from error
    if size != (width, height):
      raise ValueError(
        f"target_images: {path} is {size[0]}x{size[1]}; the model's images are "
        f"{width}x{height}"
      )


def hashes(given: Settings, listed: Listed) -> dict[str, str]:
  """SHA-256 of the rows and of the target images that come from files."""
  found = {}
  if given.prompt_table:
    text = json.dumps(listed)
    found["prompt_table"] = hashlib.sha256(text.encode()).hexdigest()
  if given.target_images:
    digest = hashlib.sha256()
    for row in listed:
      image = _target(given.target_images, row).read_bytes()
      digest.update(f"{row['id']} {len(image)}\n".encode() + image)
    found["target_images"] = digest.hexdigest()
  return found


def targeted(
  base: Model,
  table: Listed,
  given: Settings,
  mesh: sharding.Mesh,
  folder: pathlib.Path,
) -> list[rows.Row]:
  """The rows with the latents of their target images.

  Target images are read from `target_images`, or else drawn into `folder` by
  the original model from each row's prompt and seed. Images that are there
  already are not drawn again. Rows whose prompts are longer than `max_tokens`
  are marked as left out.

  Args:
    base: the original model.
    table: the rows of `listed` that are left.
    given: the settings.
    mesh: this process's devices.
    folder: the folder of the target images, `<id>.png` each.
  """
  if given.target_images:
    folder = pathlib.Path(given.target_images)
  else:
    _draw_targets(base, table, given, mesh, folder)
  images = (_read(_target(folder, row))[None] for row in table)
  latents = rows.target_latents(base.sd, base.params, images)
  found = [
    rows.Row(**row, latents=x) for row, x in zip(table, latents, strict=True)
  ]
  return rows.limited(base.sd, found, given.max_tokens)


def layout(
  mesh: sharding.Mesh, batch_size: int | None = None
) -> dict[str, Any]:
  """Arguments of `sampling.draw` that spread images over devices.

  Args:
    mesh: this process's devices.
    batch_size: images drawn at once, rounded up to what the devices share; None
      takes the least.
  """
  multiple = sharding.local_rows_multiple(mesh)
  where = sharding.batch_sharding(mesh)
  return {
    "batch_size": -(-(batch_size or 1) // multiple) * multiple,
    "place": lambda tree: sharding.place(tree, where),
    "fetch": sharding.local_rows,
  }


def _draw_targets(base, table, given, mesh, folder):
  left = [row for row in table if not _target(folder, row).exists()]
  length, cut = base.sd.context_shape[0], vocabulary.shortened
  asked = [
    sampling.Request(cut(base.sd.tokenizer, row["prompt"], length), row["seed"])
    for row in left
  ]
  batches = sampling.draw(
    base.sd, base.params, asked, given.target_drawing,
    **layout(mesh, given.batch_size),
  ) if left else ()  # fmt: skip
  images = (image for batch in batches for image in batch)
  for row, image in zip(left, images, strict=True):
    with durable.replacing(_target(folder, row)) as file:
      Image.fromarray(image).save(file, format="png")
    # Of several processes, each has its own rows.
    stops.check()


def _target(folder: str | pathlib.Path, row: Mapping[str, Any]) -> pathlib.Path:
  return pathlib.Path(folder) / f"{row['id']}.png"


def _read(path: pathlib.Path) -> np.ndarray:
  return np.asarray(pictures.read(path).convert("RGB"))
