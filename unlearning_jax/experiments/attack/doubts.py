"""Where a low success rate says nothing.

The victim has collapsed and draws no pictures, or the base itself never shows
the concept.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import pictures
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import trust
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.metrics import collapse
from unlearning_jax.record import Recorder

Row = Mapping[str, Any]


def collapsed(
  record: Recorder,
  records: Sequence[Row],
  targets: pathlib.Path,
  setup: Setup,
) -> str:
  """Why a victim has collapsed, by its edit and by its pictures.

  The pictures are those of the rows' own prompts. They are compared with the
  target images of the same rows. What else a model can lose, `evaluate` sees:
  it draws other prompts too.

  Returns:
    The reasons; "" without any, or without pictures and edit.
  """
  base, victim, said = [], [], list[str]()
  for name, made in setup.edits.items():
    if (
      isinstance(made, Edit)
      and (far := trust.size(made, setup.base.params)) > trust.FAR
    ):
      said.append(f"{name} moves what it changes by {far:.1e} times its size")
  for row in records:
    files = (
      targets / f"{row['id']}.png",
      record.path / (row.get("pre_image") or "-"),
    )
    if not all(map(pathlib.Path.is_file, files)):
      continue
    for file, model, kept in zip(
      files, ("base", "victim"), (base, victim), strict=True
    ):
      image = np.asarray(pictures.read(file).convert("RGB"))
      (look,) = collapse.pixels(image[None])
      asked = {"id": row["id"], "group": "others", "attributes": {}}
      kept.append({**asked, "model": model, "pixels": look})
  said += collapse.reasons(base, victim)["reasons"] if base else ()
  return "; ".join(said)


def base_shows(
  setup: Setup, records: Sequence[Row], targets: pathlib.Path
) -> dict[str, int] | None:
  """How many of the base's own pictures of the rows show the concept.

  Returns:
    `k` of `n`; None without a judge, or where the target images are given and
    not drawn by the base.
  """
  judge, target = setup.judge, setup.target
  files = [targets / f"{row['id']}.png" for row in records]
  files = [file for file in files if file.is_file()]
  if judge is None or target is None or setup.given.target_images or not files:
    return None
  count, found = setup.given.batch_size, 0
  for part in (files[i : i + count] for i in range(0, len(files), count)):
    images = [np.asarray(pictures.read(one).convert("RGB")) for one in part]
    seen = judge.shows(judge(np.stack(images)), target)
    found += sum(bool(shown) for shown, _ in seen)
  return {"k": found, "n": len(files)}
