"""What attacks a table: its rows, their targets, the judge, the record."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from unlearning_jax import (
  attacks,
  concepts,
  durable,
  sampling,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import insertion, rows, vocabulary
from unlearning_jax.attacks.engine import lanes as driver
from unlearning_jax.attacks.engine.victim import Pool
from unlearning_jax.experiments import comparison
from unlearning_jax.metrics import attack_success
from unlearning_jax.noise import SOURCES
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.shapes import prompts as erasure

# The last: prompts that ask for another class of the same head.
_GROUPS = ("explicit", "synonyms", "paraphrases", "implied", "others")


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
  for key in ("k", "blocks", "iterations"):
    if config.hparams.get(key, 1) < 1:
      raise ValueError(
        f"hparams.{key}={config.hparams[key]}: must be at least 1"
      )


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
  targets = comparison.targets(config)
  # Of all others a part is of the same head: portraits, three in ten.
  count = 10 * config.per_group if "others" in config.groups else 0
  drawn = erasure.prompt_rows(targets, config.per_group, count, config.seed)
  own = [row for row in drawn if row["group"] != "others"]
  rest = [row for row in drawn[len(own) :] if _is_of(row, targets)]
  return [
    {
      "id": row["id"],
      "number": number,
      "prompt": row["prompt"],
      "seed": row["seed"],
      "guidance": None,
    }
    for number, row in enumerate(own + rest[: config.per_group])
    if row["group"] in config.groups
  ]


def _is_of(row: Mapping[str, Any], targets: Sequence[erasure.Target]) -> bool:
  """Whether a prompt's picture has a class under the targets' head."""
  return any(row["attributes"][t.head] is not None for t in targets)


def check_targets(
  config: Any,
  sd: stable_diffusion.StableDiffusion,
  listed: Sequence[Mapping[str, Any]],
):
  """Refuses target images that are missing, damaged or of another size.

  Raises:
    ValueError: naming the file.
  """
  height, width = rows.image_size(sd)
  for row in listed if config.target_images else ():
    path = _target(config.target_images, row)
    if not path.is_file():
      raise ValueError(
        f"target_images: no file {path}; each row needs its <id>.png, or leave "
        "target_images empty to have the original model draw them"
      )
    try:
      with Image.open(path) as image:
        size = image.size
        image.verify()
    # What it raises of a damaged file depends on where the damage is.
    except (OSError, SyntaxError, ValueError) as error:
      raise ValueError(f"target_images: cannot read {path}: {error}") from error
    if size != (width, height):
      raise ValueError(
        f"target_images: {path} is {size[0]}x{size[1]}; the model's images are "
        f"{width}x{height}"
      )


def hashes(config: Any, listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """A sha256 of the rows and of the target images that come from files."""
  found = {}
  if config.table:
    text = json.dumps(listed)
    found["table"] = hashlib.sha256(text.encode()).hexdigest()
  if config.target_images:
    digest = hashlib.sha256()
    for row in listed:
      image = _target(config.target_images, row).read_bytes()
      digest.update(f"{row['id']} {len(image)}\n".encode() + image)
    found["target_images"] = digest.hexdigest()
  return found


def targeted(
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  table: Sequence[Mapping[str, Any]],
  config: Any,
  mesh: Any,
  folder: pathlib.Path,
) -> list[rows.Row]:
  """The rows with the latents of their target images.

  The original model draws them from each row's prompt and seed into `folder`,
  those that are not there yet, with `config.target_sampling` if there is one;
  `config.target_images` names another folder that has a `<id>.png` for each.
  Prompts longer than a `config.max_tokens` are left out of the attack.
  """
  if config.target_images:
    folder = pathlib.Path(config.target_images)
  else:
    _draw_targets(sd, params, table, config, mesh, folder)
  images = (_read(_target(folder, row))[None] for row in table)
  latents = rows.target_latents(sd, params, images)
  found = [
    rows.Row(**row, latents=x) for row, x in zip(table, latents, strict=True)
  ]
  return rows.limited(sd, found, config.get("max_tokens"))


def _draw_targets(sd, params, table, config, mesh, folder):
  left = [row for row in table if not _target(folder, row).exists()]
  length = sd.context_shape[0]
  batches = sampling.generate(
    sd,
    params,
    [vocabulary.shortened(sd.tokenizer, row["prompt"], length) for row in left],
    [row["seed"] for row in left],
    **_drawing(config, mesh) | dict(config.get("target_sampling", {})),
  ) if left else ()  # fmt: skip
  images = (image for batch in batches for image in batch)
  for row, image in zip(left, images, strict=True):
    with durable.replacing(_target(folder, row)) as file:
      Image.fromarray(image).save(file, format="png")


def checker(
  run: Workdir,
  sd: stable_diffusion.StableDiffusion,
  victim: Victim,
  config: Any,
  mesh: Any,
  listed: Sequence[Mapping[str, Any]],
) -> rows.Check:
  """Draws and judges; without a judge, it only keeps the images.

  With a judge it keeps the rows' own images, those that show the concept, and
  all of the first `config.grid` rows: what a report can show.
  """
  judge = comparison.load_judge(config)
  options = victim.drawing | _drawing(config, mesh)
  own = {(row["prompt"], row["seed"]) for row in listed}
  shown = {row["seed"] for row in listed[: config.grid]}

  def keep(request: rows.Request, verdict: rows.Verdict, image: np.ndarray):
    wanted = verdict.success or (request.prompt, request.seed) in own
    if judge is None or wanted or request.seed in shown:
      return run.save_image(attack_success.image_name(request), image)
    return None

  if judge is None:
    return attack_success.keep_images(sd, victim.params, keep, **options)
  return attack_success.shapes_check(
    sd, victim.params, judge, *comparison.targets(config),
    on_image=keep, **options,
  )  # fmt: skip


def remembering(
  check: rows.Check,
  records: Iterable[Mapping[str, Any]],
  folder: str,
) -> rows.Check:
  """A check that does not draw again what another attack's rows tell.

  Args:
    check: asked about everything else.
    records: of any attack on the same victim: what its rows' own prompts gave.
    folder: theirs, relative to this run's.
  """
  known = {
    (r["prompt"], r["seed"], r["guidance"]): rows.Verdict(
      r["pre_success"],
      r["pre_score"],
      r["pre_image"] and f"{folder}/{r['pre_image']}",
    )
    for r in records
  }

  def checked(requests: Sequence[rows.Request]) -> list[rows.Verdict]:
    found = [known.get(r[:3]) if r.context is None else None for r in requests]
    new = [r for r, old in zip(requests, found, strict=True) if old is None]
    fresh = iter(check(new) if new else ())
    return [next(fresh) if old is None else old for old in found]

  return checked


def attack_rows(
  run: Workdir,
  sd: stable_diffusion.StableDiffusion,
  victim: Victim,
  original: Victim,
  attack: attacks.Attack,
  table: Sequence[rows.Row],
  check: rows.Check,
  config: Any,
  mesh: Any,
  *,
  name: str,
  lanes: int,
  pool: Pool | None = None,
  proxy: Any = None,
) -> Iterator[dict[str, Any]]:
  """Attacks rows and records each as it ends.

  Args:
    run: gets the rows.
    sd: the model.
    victim: under attack.
    original: the model before unlearning.
    attack: from `attacks.bind`.
    table: this process's rows that are not recorded yet.
    check: from `checker`.
    config: the run's.
    mesh: of this process's own devices.
    name: the victim's fingerprint.
    lanes: rows side by side, as many after a kill as before it.
    pool: images that all rows learn from, if the attack does.
    proxy: from `victims.proxy_of`.
  """
  found = driver.attack_rows(
    sd, victim, original, attack, table, check, jax.random.key(config.seed),
    lanes=lanes, mesh=mesh, mode=config.vocabulary, pool=pool, proxy=proxy,
    threshold=config.proxy.threshold, too_long=config.too_long,
  ) if table else ()  # fmt: skip
  calls = config.sampling.num_steps * victim.image_rows
  for record in found:
    spent = record["iterations"] * attack.unet_calls(victim)
    spent += record["images"] * calls + record.get("proxy_calls", 0)
    record["unet_calls"] = spent
    record["victim"] = name[:12]
    run.append_row(record)
    yield record


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


def _target(folder: str | pathlib.Path, row: Mapping[str, Any]) -> pathlib.Path:
  return pathlib.Path(folder) / f"{row['id']}.png"


def _read(path: pathlib.Path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"))
