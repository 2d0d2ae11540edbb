"""The victim of an attack, and all else that the attack starts with."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unlearning_jax import (
  attacks,
  casting,
  convert,
  guidance,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks import Attack, Victim
from unlearning_jax.attacks.engine.victim import through_guidance
from unlearning_jax.convert import names
from unlearning_jax.experiments import common
from unlearning_jax.experiments.attack.control import finished
from unlearning_jax.experiments.attack.rows import Listed
from unlearning_jax.experiments.attack.settings import Guiding, Settings
from unlearning_jax.experiments.common import Made
from unlearning_jax.judges import Judge, Target
from unlearning_jax.metrics.diffusion_classifier import Proxy
from unlearning_jax.model import Model
from unlearning_jax.projections import cross_attention_kernels
from unlearning_jax.stable_diffusion import Params, StableDiffusion

SCRAMBLED = "scrambled"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
  """All that an attack works with; `placed` puts it on the devices.

  Attributes:
    given: the settings.
    attack: the method with its hyperparameters.
    base: the model before unlearning.
    victim: the model under attack.
    original: `base`, in the form that attacks read.
    mesh: this process's own devices; processes share no array.
    name: the victim's fingerprint.
    edits: name -> edit or guidance that the run was given.
    held: component -> how many of its tensors the victim's file holds.
    judge: looks at the images; None for no judge.
    target: the target that the judge looks for.
    network: the name of the control network that stands in the victim's place;
      "" for the victim itself.
  """

  given: Settings
  attack: Attack
  base: Model
  victim: Victim
  original: Victim
  mesh: sharding.Mesh
  name: str
  edits: Mapping[str, Made] = dataclasses.field(default_factory=dict)
  held: Mapping[str, str] = dataclasses.field(default_factory=dict)
  judge: Judge | None = None
  target: Target | None = None
  network: str = ""

  @property
  def sd(self) -> StableDiffusion:
    """The static bundle of base and victim."""
    return self.base.sd

  @property
  def diffusion_classifier(self) -> Proxy | None:
    """The classifier that decides which prompts get an image; None for none.

    Raises:
      ValueError: the model has fewer timesteps, or does not predict noise.
    """
    count = self.given.diffusion_classifier.timesteps
    if not count:
      return None
    key = jax.random.fold_in(jax.random.key(self.given.seed), 1)
    try:
      return Proxy(self.sd, self.victim, self.original, count, key)
    except ValueError as error:
      raise ValueError(
        f"diffusion_classifier.timesteps={count}: {error}"
      ) from error


def setup(
  given: Settings,
  attack: Attack,
  model: Model | None = None,
  edit: str = "",
) -> Setup:
  """Reads the model and its victim; nothing is on the devices yet.

  Args:
    given: the settings.
    attack: from `bind`.
    model: the victim; None reads what settings and `edit` name.
    edit: an edit file or the folder of an erasure; "" for none.

  Raises:
    ValueError: two victims or two guidances are given, the judge cannot see the
      target, or as `victim_of`.
  """
  judge, targets = common.load_judge(given), common.targets_of(given)
  common.check_sees(judge, targets)
  if model is not None and (edit or given.victim):
    raise ValueError(
      "victim: a model is given; leave settings.victim and edit empty"
    )
  if edit and given.victim:
    raise ValueError("victim: give either --edit or --config.victim")
  made = common.read_edits([edit] if edit else [], "--edit")
  if model is None:
    model = common.load_model(given)
    for one in made.values():
      model = model.with_made(one)
  elif model.edit is not None:
    made = {model.name: model.edit}
  victim, held = victim_of(given, model)
  return Setup(
    given=given,
    attack=attack,
    base=model.base,
    victim=victim,
    original=Victim(model.params),
    mesh=sharding.make_mesh(devices=jax.local_devices()),
    name=fingerprint(victim, made),
    edits=made,
    held=held,
    judge=judge,
    target=targets[0] if judge is not None else None,
  )


def placed(host: Setup) -> Setup:
  """The setup on the devices; arrays that two models share are there once."""
  params = casting.placed(host.sd, host.base.params, host.mesh)
  victim = place(host.sd, host.victim, host.base.params, params, host.mesh)
  return dataclasses.replace(
    host,
    base=dataclasses.replace(host.base, params=params),
    victim=victim,
    original=Victim(params),
  )


def check_guidance(
  given: Settings, listed: Listed, victim: Victim | None = None
):
  """Refuses rows of a table that are guided otherwise than the loss is.

  Args:
    given: the settings, which may guide the victim.
    listed: all rows of the run.
    victim: where it is known, for it may be guided already.

  Raises:
    ValueError: naming the row.
  """
  own = given.guidance
  guided = bool(own.safe or own.negative_prompt.strip() or own.in_loss)
  if victim is not None:
    guided |= bool(victim.safe or victim.negative_prompt)
  for row in listed:
    if guided and row["guidance"] is not None and row["guidance"] <= 1:
      raise ValueError(
        f"row {row['id']}: evaluation_guidance={row['guidance']} guides "
        "nothing, and this victim acts by guidance; give a scale above 1, or "
        "leave the row out of the table"
      )
    scale = given.sampling.guidance_scale
    if given.guidance.in_loss and row["guidance"] not in (None, scale):
      raise ValueError(
        f"row {row['id']}: evaluation_guidance={row['guidance']}, but the loss "
        f"goes through sampling.guidance_scale={scale}: set "
        "guidance.in_loss=False, or give this scale a table of its own"
      )


def bind(given: Settings) -> Attack:
  """The method with its hyperparameters, and with the words of `new_words`.

  Raises:
    ValueError: as `attacks.bind`; words are given to another method or missing,
      or the run that is named has learnt none; or a probe lacks its control.
  """
  hparams = dict(given.hparams)
  if (given.method == "new_word") != bool(given.new_words):
    raise ValueError(
      f"new_words={given.new_words!r}: method='new_word' needs the folder of a "
      f"concept_inversion run, and no other does; method={given.method!r}"
    )
  if given.new_words:
    found = finished(given.new_words).rows
    hparams["words"] = tuple(
      tuple(map(tuple, row["embeds"])) for row in found if "embeds" in row
    )
    if not hparams["words"]:
      raise ValueError(f"new_words: the run {given.new_words} has learnt none")
  bound = attacks.bind(given.method, hparams)
  if bound.is_probe:
    _check_probe(given)
  return bound


def _check_probe(given: Settings):
  """Refuses a probe without its control, or with a classifier of prompts."""
  if not given.never_knew:
    raise ValueError(
      "never_knew='': a probe says nothing without a network that never knew "
      "the concept; name its folder or file (in the Shapes world launch.train "
      "makes one, with --config.data.without), or give 'none', and the page "
      "says what the rates cannot show"
    )
  if given.diffusion_classifier.timesteps:
    raise ValueError(
      f"diffusion_classifier.timesteps={given.diffusion_classifier.timesteps}: "
      "it scores prompts, and a probe searches for none; give 0"
    )


def words_hash(attack: Attack) -> dict[str, str]:
  """SHA-256 of the words that `new_word` draws with; empty for others."""
  words = getattr(attack.h, "words", None)
  if words is None:
    return {}
  return {"words": hashlib.sha256(json.dumps(words).encode()).hexdigest()}


def kept_from(given: Guiding) -> guidance.Guidance | None:
  """The guidance that settings ask for; None for none."""
  safe = None
  if given.safe:
    safe = guidance.preset(given.safe, given.concept or guidance.CONCEPT)
  if safe is None and not given.negative_prompt.strip():
    return None
  return guidance.Guidance(given.negative_prompt, safe)


def victim_of(given: Settings, model: Model) -> tuple[Victim, dict[str, str]]:
  """The victim: the model that settings name, or `model` with its edit.

  `given.victim` is a model, or a part of one laid over `model`: a UNet, a text
  encoder, some layers, a LoRA; or it is `scrambled`.

  Returns:
    The victim; and component -> how many of its tensors the victim's file
    holds, for the components that the file changes.

  Raises:
    ValueError: no tensor of the file belongs to the model; the file changes
      nothing, holds a part of a text encoder alone, or has other shapes; or
      both the model and the settings have guidance.
  """
  held = {}
  original = Victim(model.params)
  if given.victim == SCRAMBLED:
    params = scrambled(model.params, given.seed)
    model = dataclasses.replace(model, params=params)
  elif given.victim:
    params, held = laid_over(given.victim, model)
    model = dataclasses.replace(model, params=params)
  guided = kept_from(given.guidance)
  if guided is not None:
    if model.guidance is not None:
      raise ValueError(
        "guidance: the victim is guided already; leave guidance.* empty"
      )
    model = model.with_guidance(guided)
  victim = Victim.of(model)
  if given.guidance.in_loss:
    scale = given.sampling.guidance_scale
    victim = through_guidance(model.sd, victim, original, scale)
  return victim, held


def laid_over(
  path: str, model: Model, key: str = "victim"
) -> tuple[Params, dict[str, str]]:
  """A published model's parameters, and how much of them its file holds.

  Args:
    path: a model, or a part of one: a UNet, a text encoder, layers, a LoRA.
    model: what the file is laid over.
    key: the setting that names the file, for messages.

  Raises:
    ValueError: no tensor of the file belongs to the model; it changes nothing,
      holds a part of a text encoder alone, or has other shapes.
  """
  params = model.params
  states = {part: names.torch_views(tree) for part, tree in params.items()}
  base = dataclasses.replace(model.sd.files, states=states)
  files = convert.without_new_words(convert.load(path, base), base)
  other = stable_diffusion.from_files(files)[1]
  held = {}
  for part, old in states.items():
    new = files.states[part]
    # Tensors that the file lacks are the base's own arrays.
    missing = [name for name in old if new[name] is old[name]]
    count = f"{len(old) - len(missing)} of {len(old)} tensors"
    if len(missing) < len(old):
      held[part] = count
    # Edited layers of a UNet are published alone; a text encoder is whole.
    few = part == "text_encoder" and 0 < len(missing) < len(old)
    if few and not convert.is_delta(path):
      raise ValueError(
        f"{key}={path!r}: holds {count} of text_encoder, without "
        f"{', '.join(missing[:3])}; give it whole. If it is meant to be laid "
        "over the model: python -m launch.convert makes a folder of both"
      )
  if jax.tree.map(jnp.shape, other) != jax.tree.map(jnp.shape, params):
    shapes = (
      f"{part}'s {name} {files.states[part][name].shape}, the model's "
      f"{old[name].shape}"
      for part, old in states.items()
      for name in old
      if files.states[part][name].shape != old[name].shape
    )
    raise ValueError(
      f"{key}={path!r}: not of the model's shapes: {next(shapes, '')}"
    )
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), other, params)
  if all(jax.tree.leaves(same)):
    raise ValueError(
      f"{key}={path!r}: has the very weights of model={model.source!r}; "
      + (
        "leave it empty to attack the model itself"
        if key == "victim"
        else "name another"
      )
    )
  if held and jax.process_index() == 0:
    told = ", ".join(f"{count} of {part}" for part, count in held.items())
    print(f"{key}={path}: {told}; all else is the model's")
  # Arrays that both models share are on the devices once.
  shared = jax.tree.map(lambda s, a, b: b if s else a, same, other, params)
  return shared, held


def scrambled(params: Params, seed: int) -> Params:
  """The model with random readers of the text, to which no word means anything.

  It is a control for attacks on embeddings: whatever they make this model draw,
  they taught it. Keys and values of the cross-attention keep their spread.
  """
  leaves = traverse_util.flatten_dict(params["unet"], sep="/")
  rng = np.random.default_rng([seed, 7])
  kernels = cross_attention_kernels(params)
  for path, kernel in sorted(kernels.items()):
    drawn = rng.normal(size=kernel.shape) * np.asarray(kernel).std()
    leaves[path] = drawn.astype(np.float32)
  return {**params, "unet": traverse_util.unflatten_dict(leaves, sep="/")}


def place(
  sd: StableDiffusion, victim: Victim, host: Params, there: Params,
  mesh: sharding.Mesh,
) -> Victim:  # fmt: skip
  """Puts a victim on the devices, except for arrays that are there already.

  Args:
    victim: the victim, on the host.
    host: the original's parameters on the host.
    there: the same parameters on the devices, from `casting.placed`.
    mesh: this process's devices.
  """
  pairs = zip(jax.tree.leaves(host), jax.tree.leaves(there), strict=True)
  copies = {id(leaf): copy for leaf, copy in pairs}
  victim = jax.tree.map(lambda leaf: copies.get(id(leaf), leaf), victim)
  params = casting.as_computed(sd, victim.params)
  victim = dataclasses.replace(victim, params=params)
  return jax.device_put(victim, sharding.replicated(mesh))


def fingerprint(victim: Victim, made: Mapping[str, Made]) -> str:
  """SHA-256 of what makes a victim: weights, edits, guidance."""
  safe = dataclasses.asdict(victim.safe) if victim.safe else None
  # Records that are older than the clock have none.
  if safe and safe["clock"] == "steps":
    del safe["clock"]
  parts = {
    "weights": convert.params_fingerprint(victim.params),
    "edits": {name: common.made_hash(one) for name, one in made.items()},
    "negative_prompt": victim.negative_prompt,
    "safe": safe,
  }
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
