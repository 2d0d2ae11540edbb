"""What a fine-tuning run is made of: examples, loss, optimizer, start."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from unlearning_jax import (
  data,
  finetune,
  lora,
  models,
  sharding,
  stable_diffusion,
)
from unlearning_jax.concepts import check_choice, same_phrase
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.experiments import tuning_options
from unlearning_jax.finetune import defences
from unlearning_jax.record import training_log, workdir
from unlearning_jax.shapes import dataset, vocabulary

SOURCES = ("shapes", "folder", "csv", "tfds")
DEFENCES = ("none", "project", "anchor", "reassert")


def check(config: Any):
  """Finds what is wrong with a config before anything is loaded.

  Raises:
    ValueError: naming the key.
  """
  check_choice("train", config.train, finetune.TRAINABLE)
  check_choice("data.source", config.data.source, SOURCES)
  check_choice("defence.kind", config.defence.kind, DEFENCES)
  if config.defence.kind != "none" and config.train == "text_encoder":
    raise ValueError(
      f"defence.kind={config.defence.kind!r} holds what text states are mapped "
      "to; with train='text_encoder' the states themselves move"
    )
  counts = ("num_steps", "batch_size", "accumulate", "log_every")
  for key in (*counts, "checkpoint_every"):
    # Of a study, whose runs save what they measure, it is left out.
    if config.get(key, 1) < 1:
      raise ValueError(f"{key}={config[key]}: must be at least 1")
  tuning_options.check(config)
  finetune.optimizer(num_steps=config.num_steps, **config.optimizer)
  if config.tensorboard:
    training_log.events_package()
  late = [step for step in config.checkpoints if step > config.num_steps]
  if late:
    raise ValueError(f"checkpoints={late} beyond num_steps={config.num_steps}")
  if config.batch_size % config.accumulate:
    raise ValueError(
      f"batch_size={config.batch_size} is not a multiple of "
      f"accumulate={config.accumulate}"
    )


def check_batch(config: Any, images: int, mesh: Any, processes: int):
  """Finds a batch that devices cannot share, or that the data cannot fill.

  Raises:
    ValueError: with the sizes that can.
  """
  shares = processes * sharding.local_rows_multiple(mesh)
  # Of every part that gradients are added up over, each device has rows.
  if config.batch_size % (shares * config.accumulate):
    raise ValueError(
      f"batch_size={config.batch_size} with accumulate={config.accumulate} is "
      f"not a multiple of the {shares} device(s) that share it, times "
      "accumulate; change either, or let fewer devices be seen"
    )
  if config.batch_size > images // processes * processes:
    raise ValueError(
      f"batch_size={config.batch_size} is more than the {images} images of the "
      f"data, on {processes} process(es)"
    )


def examples(config: Any) -> list[data.Example]:
  """The captioned images that `config.data` names.

  Raises:
    ValueError: a folder that cannot be read, or a class that is unknown.
  """
  chosen = config.data
  if chosen.source == "folder":
    return data.image_folder(chosen.path, caption=chosen.caption)
  if chosen.source == "csv":
    return data.image_table(chosen.path, caption=chosen.caption)
  if chosen.source == "tfds":
    return data.prepared_dataset(
      chosen.path, chosen.split, caption=chosen.caption
    )
  only, without = (
    vocabulary.parse_classes(chosen[key], f"data.{key}")
    for key in ("only", "without")
  )
  found = []
  for index in range(200 * chosen.count):
    drawn = dataset.example(index, chosen.seed, "train")
    classes = vocabulary.labels(drawn.scene)
    inside = all(classes[head] in values for head, values in only.items())
    if inside and not any(classes[h] in v for h, v in without.items()):
      found.append(data.Example(drawn.image, drawn.caption))
    if len(found) == chosen.count:
      return found
  raise ValueError(
    f"data: only {len(found)} of {chosen.count} images are {dict(only)} "
    f"without {dict(without)}"
  )


def check_overlap(
  rows: Sequence[data.Example],
  edit: Edit | None,
  allowed: bool,
  also: Sequence[str] = (),
):
  """Refuses captions that say what was erased: that is no innocent tuning.

  Args:
    rows: what is tuned on.
    edit: whose concepts' phrases no caption may have.
    allowed: accept them all the same.
    also: other words for what was erased.

  Raises:
    ValueError: with the caption and the phrase.
  """
  if edit is None or allowed:
    return
  names = {same_phrase(concept.erase) for concept in edit.concepts}
  names |= set(map(same_phrase, also))
  if not names:
    return
  # In the plural too.
  end = r"(?:s|(?:(?<=[sxzo])|(?<=[cs]h))es)?\b"
  pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))}){end}")
  for row in rows:
    if match := pattern.search(same_phrase(row.caption)):
      raise ValueError(
        f"the caption {row.caption!r} says {match[1]!r}, which was erased; "
        "leave such images out, or set allow_overlap"
      )


def check_start(base: Any, params: Any, name: str):
  """Refuses to tune the base where an erased model is meant.

  Raises:
    ValueError: no leaf differs.
  """
  before, after = map(jax.tree.leaves, (base, params))
  same = (
    a is b or np.array_equal(a, b) for a, b in zip(before, after, strict=True)
  )
  if all(same):
    raise ValueError(
      f"{name}: the model to tune is the base itself, nothing is erased in it; "
      "give the edit of an erasure"
    )


def encode(
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  rows: Sequence[data.Example],
  config: Any,
) -> dict[str, np.ndarray]:
  """The rows as the loss reads them, at the size of the model's images."""
  scale = 2 ** (len(sd.vae.config.block_out_channels) - 1)
  height, width = (scale * side for side in sd.latent_size)
  return finetune.encode_examples(
    sd,
    params,
    data.read_images(rows, (height, width)),
    [row.caption for row in rows],
    flip=config.data.flip,
    token_ids=config.train == "text_encoder",
  )


def with_remat(
  sd: stable_diffusion.StableDiffusion, remat: bool
) -> stable_diffusion.StableDiffusion:
  """The model with a UNet that computes activations twice to save memory."""
  config = dataclasses.replace(sd.unet.config, remat=remat)
  return dataclasses.replace(sd, unet=models.UNet2DCondition(config))


def phrase_states(
  sd: stable_diffusion.StableDiffusion, params: Any, phrases: Sequence[str]
) -> np.ndarray:
  """All text states of some phrases, (n l, d)."""
  ids = stable_diffusion.tokenize(sd, phrases)
  states = np.asarray(stable_diffusion.encode_text(sd, params, ids))
  return states.reshape(-1, states.shape[-1])


def prepare(
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  edit: Edit | None,
  config: Any,
  mesh: Any,
) -> tuple[finetune.Partition, Any, finetune.TrainState, Any]:
  """Partition, step, first state and frozen values of a run.

  The state lies over the mesh as `finetune.train` wants it.

  Raises:
    ValueError: a defence without an erasure; see `finetune.partition`.
  """
  key = jax.random.key(config.seed)
  # What the VAE does is in the cached latents already.
  parts = {name: params[name] for name in ("text_encoder", "unet")}
  part = finetune.partition(parts, config.train, key, **config.lora)
  ids = stable_diffusion.tokenize(sd, [""])
  empty = stable_diffusion.encode_text(sd, params, ids)
  trained = part.trained
  kind = config.defence.kind
  frozen = {
    "params": part.frozen,
    "empty": ids if config.train == "text_encoder" else empty,
    "learning_rate": np.float32(config.optimizer.learning_rate),
  }
  if kind != "none":
    if edit is None:
      raise ValueError(f"defence.kind={kind!r}: there is no --edit to defend")
    states = phrase_states(sd, params, [c.erase for c in edit.concepts])
    if kind == "project":
      mean = phrase_states(sd, params, [""]).mean(0)
      mean = mean if config.defence.centre else None
      basis = defences.erased_basis(
        states, config.defence.k, mean, config.defence.energy
      )
      frozen["basis"] = np.asarray(basis, np.float32)
      if config.train == "lora":
        trained = defences.outside(trained, basis)
    elif kind == "anchor":
      frozen["anchor"] = defences.anchor(params, states)
      frozen["anchor_weight"] = np.float32(config.defence.weight)
  rest = {k: v for k, v in config.optimizer.items() if k != "learning_rate"}
  # Here 0 is for none, as a flag can say.
  rest["clip_norm"] = rest["clip_norm"] or None
  start, step = _programs(
    sd, part.join, kind if kind in ("project", "anchor") else "none",
    config.num_steps, config.ema_decay or None, config.accumulate,
    tuple(config.loss.items()), tuple(rest.items()),
  )  # fmt: skip
  of_optimizer = {k: frozen.get(k) for k in ("learning_rate", "basis")}
  return part, step, _laid_out(start, mesh, trained, of_optimizer), frozen


def _laid_out(start: Any, mesh: Any, trained: Any, frozen: Any) -> Any:
  """The first state, of which no device ever has more than its share."""
  trained = sharding.place(trained, sharding.param_sharding(mesh, trained))
  shapes = jax.eval_shape(start, trained, frozen)
  layout = sharding.param_sharding(mesh, shapes)
  # Jitted: one program, not hundreds of small ones.
  return jax.jit(start, out_shardings=layout)(trained, frozen)


@functools.lru_cache(maxsize=64)
def _programs(
  sd: stable_diffusion.StableDiffusion,
  join: Any,
  kind: str,
  num_steps: int,
  ema_decay: float | None,
  accumulate: int,
  loss_options: tuple[tuple[str, Any], ...],
  optimizer_options: tuple[tuple[str, Any], ...],
) -> tuple[Any, Any]:
  """First state and step, as functions of all in which like runs may differ.

  Model, data, learning rate and what is defended are arguments: the same
  functions come back for the next run, and it compiles nothing.
  """
  plain: Any = functools.partial(
    finetune.diffusion_loss, sd, join, **dict(loss_options)
  )

  def held(params: Any, frozen: Any, batch: Any, key: Any):
    weight = frozen["anchor_weight"]
    return defences.anchored(plain, join, weight)(params, frozen, batch, key)

  def tx(frozen: Any) -> optax.GradientTransformation:
    rate = frozen["learning_rate"]
    made = finetune.optimizer(rate, num_steps, **dict(optimizer_options))
    if kind != "project":
      return made
    return optax.chain(made, defences.project(frozen["basis"]))

  def step(state: Any, frozen: Any, batch: Any, key: Any):
    one = finetune.make_step(
      held if kind == "anchor" else plain, tx(frozen), ema_decay,
      accumulate=accumulate,
    )  # fmt: skip
    return one(state, frozen, batch, key)

  def start(trained: Any, frozen: Any) -> finetune.TrainState:
    ema = ema_decay is not None
    return finetune.init_state(trained, tx(frozen), ema=ema)

  return start, step


def _measured(state: finetune.TrainState, config: Any) -> Any:
  """What was trained, on the host: its average, where there is one."""
  return sharding.gather(state.ema if config.ema_decay else state.params)


def tuned_params(
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  part: finetune.Partition,
  state: finetune.TrainState,
  edit: Edit | None,
  config: Any,
) -> Any:
  """The model that a state stands for; a collective, as `sharding.gather`."""
  tuned = {**params, **part.join(_measured(state, config), part.frozen)}
  if config.defence.kind != "reassert" or edit is None:
    return tuned
  kept = [phrase for c in edit.concepts for phrase in c.preserve]
  return defences.reassert(
    tuned,
    params,
    phrase_states(sd, params, [c.erase for c in edit.concepts]),
    phrase_states(sd, params, sorted({"", *kept})),
    weight=config.defence.weight,
  )


def as_edit(base: Any, tuned: Any, edit: Edit | None, name: str) -> Edit:
  """A tuned model as an edit of the base, named after erasure and tuning."""
  method = f"{edit.method.split()[0]}+{name}" if edit else name
  return edit_between(
    base,
    tuned,
    method=method,
    concepts=edit.concepts if edit else (),
    diagnostics={},
  )


def export(
  run: workdir.Workdir,
  part: finetune.Partition,
  state: finetune.TrainState,
  config: Any,
):
  """Writes a LoRA run's adapters, as diffusers reads them.

  They are those of the last `tuned_params`; a collective, as that is.
  """
  if config.train != "lora":
    return
  if config.defence.kind == "reassert":
    logging.warning(
      "no lora.safetensors: defence.kind='reassert' changes more than adapters "
      "can say; export the last edit of steps/ instead"
    )
    return
  adapters = _measured(state, config)
  if run.is_writer:
    scale = float(part.frozen["lora/scale"])
    lora.save(run.path / "lora.safetensors", adapters, scale)
