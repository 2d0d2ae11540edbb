"""Whom `launch.attack` attacks, and what the attack starts with."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unlearning_jax import (
  attacks,
  convert,
  guidance,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import rows
from unlearning_jax.attacks.engine.victim import through_guidance
from unlearning_jax.concepts import check_choice
from unlearning_jax.edits import (
  Edit,
  apply_to_context,
  apply_to_params,
  check_base,
  edit_hash,
)
from unlearning_jax.experiments import attack_summary, comparison
from unlearning_jax.experiments.attack_pool import MARK
from unlearning_jax.metrics import diffusion_classifier
from unlearning_jax.projections import cross_attention_kernels

SCRAMBLED = "scrambled"


def check(config: Any):
  """Finds what is wrong with the victim's part of a config.

  Raises:
    ValueError: naming the key.
  """
  given = config.guidance
  check_choice("too_long", config.too_long, rows.TOO_LONG)
  if config.proxy.timesteps < 0:
    raise ValueError(
      f"proxy.timesteps={config.proxy.timesteps}: must not be negative"
    )
  if given.safe:
    check_choice("guidance.safe", given.safe, guidance.PRESETS)
  elif given.concept:
    raise ValueError(
      f"guidance.concept={given.concept!r}: is of Safe Latent Diffusion; set "
      f"guidance.safe to one of {', '.join(guidance.PRESETS)}"
    )
  if config.sampling.guidance_scale <= 1:
    for key in ("safe", "negative_prompt", "in_loss"):
      if given[key]:
        raise ValueError(
          f"guidance.{key}={given[key]!r}: needs sampling.guidance_scale above "
          f"1, got {config.sampling.guidance_scale}"
        )
  pool = config.hparams.get("pool", "")
  if pool and config.pool.images < 1:
    raise ValueError(f"pool.images={config.pool.images}: must be at least 1")
  for template in config.pool.templates if pool else ():
    if template.count(MARK) != 1:
      raise ValueError(
        f"pool.templates: {template!r} must hold one {MARK}, where the word "
        "goes"
      )
  if pool and config.pool.first_seed < 0:
    raise ValueError(
      f"pool.first_seed={config.pool.first_seed}: must not be negative"
    )
  if pool and not config.pool.concept:
    raise ValueError("pool.concept: name what the images show")


def check_guidance(config: Any, listed: Sequence[dict[str, Any]]):
  """Refuses rows of a table whose images would not be guided as the loss is.

  Raises:
    ValueError: naming the row.
  """
  for row in listed:
    if row["guidance"] is not None and row["guidance"] <= 1:
      raise ValueError(
        f"row {row['id']}: evaluation_guidance={row['guidance']} guides "
        "nothing; must exceed 1"
      )
    scale = config.sampling.guidance_scale
    if config.guidance.in_loss and row["guidance"] not in (None, scale):
      raise ValueError(
        f"row {row['id']}: evaluation_guidance={row['guidance']}, but the loss "
        f"goes through sampling.guidance_scale={scale}: set "
        "guidance.in_loss=False, or give this scale a table of its own"
      )


def bind(config: Any) -> attacks.Attack:
  """The attack, with the words of the run that `config.words` names.

  Raises:
    ValueError: as `attacks.bind`; or words for another method, none where they
      are needed, or a run that learnt none.
  """
  hparams = dict(config.hparams)
  if (config.method == "new_word") != bool(config.words):
    raise ValueError(
      f"words={config.words!r}: names the concept_inversion run whose words "
      f"method 'new_word' draws with; method={config.method!r}"
    )
  if config.words:
    found = attack_summary.finished(config.words).rows
    hparams["words"] = tuple(
      tuple(map(tuple, row["embeds"])) for row in found if "embeds" in row
    )
    if not hparams["words"]:
      raise ValueError(f"words: the run {config.words} has learnt none")
  return attacks.bind(config.method, hparams)


def words_hash(attack: attacks.Attack) -> dict[str, str]:
  """A sha256 of the words that `new_word` draws with; empty for others."""
  words = getattr(attack.h, "words", None)
  if words is None:
    return {}
  return {"words": hashlib.sha256(json.dumps(words).encode()).hexdigest()}


def safe_of(config: Any) -> guidance.Safe | None:
  """Safe Latent Diffusion as the config has it, if it does."""
  given = config.guidance
  if not given.safe:
    return None
  return guidance.preset(given.safe, given.concept or guidance.CONCEPT)


class Loaded(NamedTuple):
  """A model on the host, and its victim.

  Attributes:
    sd: the model.
    params: the original's.
    edits: by name; at most one.
    victim: under attack.
    name: its fingerprint.
    held: component -> how much of it the victim's file holds.
  """

  sd: stable_diffusion.StableDiffusion
  params: Any
  edits: dict[str, Edit]
  victim: Victim
  name: str
  held: dict[str, str]


def load(config: Any, edit: str) -> Loaded:
  """Reads the model and its victim, and prints what the victim's file holds.

  Args:
    config: the run's.
    edit: an edit file or an erase run's folder; "" for none.

  Raises:
    ValueError: both an edit and another victim, or as `victim_of`.
  """
  edits = comparison.load_edits([edit] if edit else [])
  if edits and config.victim:
    raise ValueError("victim: give either --edit or --config.victim")
  sd, params = comparison.load_model(config)
  victim, held = victim_of(config, sd, params, edits)
  if held and jax.process_index() == 0:
    told = ", ".join(f"{count} of {part}" for part, count in held.items())
    print(f"victim={config.victim}: {told}; all else is the model's")
  return Loaded(sd, params, edits, victim, fingerprint(victim, edits), held)


def victim_of(
  config: Any,
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  edits: dict[str, Edit],
) -> tuple[Victim, dict[str, str]]:
  """The attacked model: the one named, the edited one, or the original.

  `config.victim` is a model, or the part of one that differs: a UNet, a text
  encoder, some layers, a LoRA, over `config.model`; or `scrambled`.

  Returns:
    The victim, and of each component that its file changes, how many tensors
    that file holds.

  Raises:
    ValueError: a file none of whose tensors belong to the model, that changes
      nothing, or with a part of a text encoder alone; another model's shapes;
      another base's edit.
  """
  victim, held = Victim(params), {}
  if config.victim == SCRAMBLED:
    victim = Victim(scrambled(params, config.seed))
  elif config.victim:
    other, held = _named(config, sd, params)
    if jax.tree.map(jnp.shape, other) != jax.tree.map(jnp.shape, params):
      raise ValueError(f"victim={config.victim!r}: not of the model's shapes")
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), other, params)
    if all(jax.tree.leaves(same)):
      raise ValueError(
        f"victim={config.victim!r}: has the very weights of model="
        f"{config.model!r}; leave it empty to attack the model itself"
      )
    # What they share is on the devices once.
    victim = Victim(
      jax.tree.map(lambda s, a, b: b if s else a, same, other, params)
    )
  for edit in edits.values():
    check_base(edit, params)
    # Text states rather than weights: all edits of a base share its UNet.
    if edit.context_map is not None:
      mapped = functools.partial(apply_to_context, edit)
      victim = Victim(params, mapped)
    else:
      victim = Victim(apply_to_params(edit, params))
  victim = dataclasses.replace(
    victim,
    negative_prompt=config.guidance.negative_prompt,
    safe=safe_of(config),
  )
  if config.guidance.in_loss:
    scale = config.sampling.guidance_scale
    victim = through_guidance(sd, victim, Victim(params), scale)
  return victim, held


def _named(config, sd, params) -> tuple[Any, dict[str, str]]:
  """The parameters that `config.victim` names, and what its file holds."""
  states = {part: convert.to_torch(tree) for part, tree in params.items()}
  base = dataclasses.replace(sd.files, states=states)
  files = convert.load(config.victim, base)
  other = stable_diffusion.from_files(files)[1]
  held = {}
  for part, old in states.items():
    new = files.states[part]
    # What the file does not hold is the base's own array.
    missing = [name for name in old if new[name] is old[name]]
    count = f"{len(old) - len(missing)} of {len(old)} tensors"
    if len(missing) < len(old):
      held[part] = count
    # Edited layers of a UNet are published so; a text encoder is whole.
    few = part == "text_encoder" and 0 < len(missing) < len(old)
    if few and not convert.is_delta(config.victim):
      raise ValueError(
        f"victim={config.victim!r}: holds {count} of text_encoder, without "
        f"{', '.join(missing[:3])}; give it whole. If it is meant to be laid "
        "over the model: python -m launch.convert makes a folder of both"
      )
  return other, held


def scrambled(params: Any, seed: int) -> Any:
  """The model with its readers of the text drawn anew: no word means anything.

  A control for attacks on embeddings: what they make this model draw, they
  taught it. Keys and values of the cross-attention keep their spread.
  """
  leaves = traverse_util.flatten_dict(params["unet"], sep="/")
  rng = np.random.default_rng([seed, 7])
  kernels = cross_attention_kernels(params)
  for path, kernel in sorted(kernels.items()):
    drawn = rng.normal(size=kernel.shape) * np.asarray(kernel).std()
    leaves[path] = drawn.astype(np.float32)
  return {**params, "unet": traverse_util.unflatten_dict(leaves, sep="/")}


def place(victim: Victim, host: Any, placed: Any, mesh: Any) -> Victim:
  """The victim on the devices; what it shares with `host` is there already.

  Args:
    victim: on the host.
    host: the original's parameters there.
    placed: the same on the devices.
    mesh: of this process's devices.
  """
  pairs = zip(jax.tree.leaves(host), jax.tree.leaves(placed), strict=True)
  there = {id(leaf): copy for leaf, copy in pairs}
  victim = jax.tree.map(lambda leaf: there.get(id(leaf), leaf), victim)
  return jax.device_put(victim, sharding.replicated(mesh))


def fingerprint(victim: Victim, edits: dict[str, Edit]) -> str:
  """A sha256 of all that tells victims apart: weights, edit, guidance."""
  parts = {
    "weights": convert.params_fingerprint(victim.params),
    "edits": {name: edit_hash(e) for name, e in edits.items()},
    "negative_prompt": victim.negative_prompt,
    "safe": dataclasses.asdict(victim.safe) if victim.safe else None,
  }
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def proxy_of(
  config: Any,
  sd: stable_diffusion.StableDiffusion,
  victim: Victim,
  original: Victim,
) -> diffusion_classifier.Proxy | None:
  """What says whether a prompt is worth an image, if it is asked for.

  Raises:
    ValueError: more timesteps than the model has, or one that predicts no
      noise.
  """
  count = config.proxy.timesteps
  if not count:
    return None
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  try:
    return diffusion_classifier.Proxy(sd, victim, original, count, key)
  except ValueError as error:
    raise ValueError(f"proxy.timesteps={count}: {error}") from error
