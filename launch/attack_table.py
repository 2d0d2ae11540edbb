"""What an attack starts from and ends with: rows, targets, judge, summary."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from launch import comparison
from unlearning_jax import concepts, sharding, stable_diffusion
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.shared import insertion, rows, vocabulary
from unlearning_jax.evaluators import attack_success, erasure
from unlearning_jax.noise import SOURCES
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.workdir import Workdir

_GROUPS = ("explicit", "synonyms", "paraphrases", "implied")


def check(config: Any):
  """Finds what is wrong with a config before anything is loaded.

  Raises:
    ValueError: naming the key.
  """
  if config.judge not in (None, "shapes"):
    raise ValueError(f"judge={config.judge!r}: allowed are 'shapes' and None")
  if config.judge and len(comparison.targets(config)) != 1:
    raise ValueError("targets: the judge needs one target, what was erased")
  if not config.table and not config.judge:
    raise ValueError("table: name a CSV of prompts")
  concepts.check_choice("vocabulary", config.vocabulary, vocabulary.MODES)
  if "insertion" in config.hparams:
    mode = config.hparams.insertion
    concepts.check_choice("hparams.insertion", mode, insertion.MODES)
  for group in config.groups:
    concepts.check_choice("groups", group, _GROUPS)
  if config.sampling.sampler is not None:
    concepts.check_choice("sampling.sampler", config.sampling.sampler, SAMPLERS)
  source = config.sampling.noise_source
  concepts.check_choice("sampling.noise_source", source, SOURCES)
  for key in ("lanes", "batch_size", "per_group"):
    if config[key] < 1:
      raise ValueError(f"{key}={config[key]}: must be at least 1")


def listed(config: Any) -> list[dict[str, Any]]:
  """Every row of the run: id, number, prompt, seed, guidance.

  Raises:
    ValueError: the CSV that `config.table` names is not a table of prompts.
  """
  if config.table:
    return [
      {
        "id": str(row.case_number),
        "number": row.case_number,
        "prompt": row.prompt,
        "seed": row.seed,
        "guidance": row.guidance,
      }
      for row in concepts.read_prompts(config.table)
    ]
  drawn = erasure.prompt_rows(
    comparison.targets(config), config.per_group, 0, config.seed
  )
  return [
    {
      "id": row["id"],
      "number": number,
      "prompt": row["prompt"],
      "seed": row["seed"],
      "guidance": None,
    }
    for number, row in enumerate(drawn)
    if row["group"] in config.groups
  ]


def targeted(
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  table: Sequence[dict[str, Any]],
  config: Any,
  mesh: Any,
) -> list[rows.Row]:
  """The rows with the latents of their target images.

  The original model draws them from each row's prompt and seed, unless
  `config.target_images` names a folder that has a `<id>.png` for each.

  Raises:
    ValueError: an image is missing, or has another size than the model's.
  """
  if config.target_images:
    folder = pathlib.Path(config.target_images)
    images = (_read(folder / f"{row['id']}.png")[None] for row in table)
  else:
    length = sd.context_shape[0]
    images = stable_diffusion.generate(
      sd,
      params,
      [vocabulary.fitting(sd.tokenizer, r["prompt"], length) for r in table],
      [row["seed"] for row in table],
      **_drawing(config, mesh),
    )
  latents = rows.target_latents(sd, params, images)
  return [
    rows.Row(**row, latents=x) for row, x in zip(table, latents, strict=True)
  ]


def checker(
  run: Workdir,
  sd: stable_diffusion.StableDiffusion,
  victim: Victim,
  config: Any,
  mesh: Any,
) -> rows.Check:
  """Draws and judges; without a judge, it only keeps the images."""
  judge = comparison.load_judge(config)
  options = victim.drawing | _drawing(config, mesh)

  def keep(request: rows.Request, verdict: rows.Verdict, image: np.ndarray):
    # Without a judge the images are all there is; with one, what it found.
    if judge is None or verdict.success:
      name = attack_success.image_name(request)
      run.save_image(name, image)

  if judge is None:
    return attack_success.keep_images(sd, victim.params, keep, **options)
  return attack_success.shapes_check(
    sd, victim.params, judge, *comparison.targets(config),
    on_image=keep, **options,
  )  # fmt: skip


def finished_rows(folder: str) -> list[dict[str, Any]]:
  """The rows of another run, which must have ended; none if none is named.

  Raises:
    ValueError: it has not.
  """
  if not folder:
    return []
  path = pathlib.Path(folder)
  if not (path / "DONE").exists():
    raise ValueError(f"--control: {folder} is not a finished run")
  files = sorted(path.glob("results*.jsonl"))
  lines = [line for file in files for line in file.read_text().splitlines()]
  return [json.loads(line) for line in lines]


def summarize(
  run: Workdir, config: Any, control: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Rates, counts and, if a control is named, the comparison with it."""
  records = run.rows()
  document = {
    "title": config.title,
    "accounting": attack_success.accounting(records),
    "measures": [m._asdict() for m in attack_success.measure(records)],
    "curves": attack_success.curves(records),
  }
  if control:
    document["control"] = attack_success.against(records, control)
  return document


def printed(document: dict[str, Any]) -> str:
  """The summary for the terminal."""
  lines = [document["title"]]
  for m in document["measures"]:
    share = f"{m['k']}/{m['n']}"
    interval = f"[{m['low']:.2f}, {m['high']:.2f}]"
    lines.append(f"{m['name']:12} {m['value']:.2f} {interval} {share:>9}")
  for key in ("accounting", "control"):
    lines.append(f"{key}: {document.get(key, 'none')}")
  return "\n".join(lines)


def _drawing(config: Any, mesh: Any) -> dict[str, Any]:
  """How images are drawn, on this process's devices."""
  multiple = sharding.local_rows_multiple(mesh)
  where = sharding.batch_sharding(mesh)
  return {
    **config.sampling,
    "batch_size": -(-config.batch_size // multiple) * multiple,
    "place": lambda tree: sharding.place(tree, where),
    "fetch": sharding.local_rows,
  }


def _read(path: pathlib.Path) -> np.ndarray:
  if not path.is_file():
    raise ValueError(f"target_images: no file {path}")
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"))
