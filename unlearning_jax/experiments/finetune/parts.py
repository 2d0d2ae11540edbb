"""The parts of a fine-tuning run: partition, step, first state, result."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, PRNGKeyArray

from unlearning_jax import finetune, lora, models, sharding, stable_diffusion
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.experiments.finetune.settings import (
  Loss,
  Optimizer,
  Settings,
)
from unlearning_jax.finetune import defenses
from unlearning_jax.record import Recorder
from unlearning_jax.stable_diffusion import Params, StableDiffusion

Batch = Mapping[str, Array]
# What a step reads and does not train, see `prepare`.
Frozen = Mapping[str, Any]
Step = Callable[..., tuple[finetune.TrainState, finetune.Metrics]]


class Prepared(NamedTuple):
  """A run before its first step.

  Attributes:
    part: which parameters train.
    step: the pure step, which similar runs share.
    state: the first state, laid out over the mesh.
    frozen: all else that the step reads.
  """

  part: finetune.Partition
  step: Step
  state: finetune.TrainState
  frozen: dict[str, Any]


def check_start(base: Params, params: Params, name: str):
  """Refuses to tune the base where an erased model is meant.

  Raises:
    ValueError: no leaf of `params` differs from `base`.
  """
  before, after = map(jax.tree.leaves, (base, params))
  same = (
    a is b or np.array_equal(a, b) for a, b in zip(before, after, strict=True)
  )
  if all(same):
    raise ValueError(
      f"{name}: the model to tune is the base itself, and nothing is erased in "
      "it; give the edit of an erasure"
    )


def with_remat(sd: StableDiffusion, remat: bool) -> StableDiffusion:
  """The model with a UNet that computes activations twice, to save memory."""
  config = dataclasses.replace(sd.unet.config, remat=remat, lean=False)
  return dataclasses.replace(sd, unet=models.UNet2DCondition(config))


def phrase_states(
  sd: StableDiffusion, params: Params, phrases: Sequence[str]
) -> np.ndarray:
  """The text states of all tokens of some phrases, (n l, d)."""
  ids = stable_diffusion.tokenize(sd, phrases)
  states = np.asarray(stable_diffusion.encode_text(sd, params, ids))
  return states.reshape(-1, states.shape[-1])


def split(
  params: Params, edit: Edit | None, settings: Settings
) -> finetune.Partition:
  """What trains, and what does not.

  Args:
    params: the base's parameters, with the edit in them.
    edit: the erasure that a defense protects; None where nothing is erased.
    settings: the settings of the run.

  Raises:
    ValueError: there is a defense but no erasure; or as `finetune.partition`.
  """
  kind = settings.defense.kind
  if kind != "none" and edit is None:
    raise ValueError(
      f"defense.kind={kind!r}: nothing is erased in the model; "
      "give an erased one (--edit), or defense.kind='none'"
    )
  # The cached latents hold all that the VAE does.
  parts = {name: params[name] for name in ("text_encoder", "unet")}
  return finetune.partition(
    parts, settings.train, jax.random.key(settings.seed),
    **dataclasses.asdict(settings.lora),
  )  # fmt: skip


def prepare(
  sd: StableDiffusion,
  params: Params,
  edit: Edit | None,
  settings: Settings,
  mesh: sharding.Mesh,
) -> Prepared:
  """The partition, step, first state and frozen values of a run.

  Args:
    params: the base's parameters, with the edit in them.
    edit: the erasure that a defense protects; None where nothing is erased.
    settings: the settings of the run.
    mesh: the mesh over which the state is laid out.

  Raises:
    ValueError: as `split`.
  """
  part = split(params, edit, settings)
  ids = stable_diffusion.tokenize(sd, [""])
  empty = stable_diffusion.encode_text(sd, params, ids)
  trained, defense = part.trained, settings.defense
  frozen: dict[str, Any] = {
    "params": part.frozen,
    "empty": ids if settings.train == "text_encoder" else empty,
    "learning_rate": np.float32(settings.optimizer.learning_rate),
  }
  if edit is not None and defense.kind != "none":
    states = phrase_states(sd, params, [c.erase for c in edit.concepts])
    if defense.kind == "project":
      mean = phrase_states(sd, params, [""]).mean(0)
      basis = defenses.erased_basis(
        states,
        defense.num_directions,
        mean if defense.center else None,
        defense.energy,
      )
      frozen["basis"] = np.asarray(basis, np.float32)
      if settings.train == "lora":
        trained = defenses.outside(trained, basis)
    elif defense.kind == "anchor":
      frozen["anchor"] = defenses.anchor(params, states)
      frozen["anchor_weight"] = np.float32(defense.weight)
  start, step = programs(sd, part.join, settings)
  of_optimizer = {k: frozen.get(k) for k in ("learning_rate", "basis")}
  state = _laid_out(start, mesh, trained, of_optimizer)
  return Prepared(part, step, state, frozen)


def _laid_out(
  start: Callable[..., finetune.TrainState],
  mesh: sharding.Mesh,
  trained: Params,
  frozen: dict[str, Any],
) -> finetune.TrainState:
  """The first state; no device ever holds more than its share of it."""
  trained = sharding.place(trained, sharding.param_sharding(mesh, trained))
  shapes = jax.eval_shape(start, trained, frozen)
  layout = sharding.param_sharding(mesh, shapes)
  # One jitted program instead of hundreds of small ones.
  return jax.jit(start, out_shardings=layout)(trained, frozen)


def programs(
  sd: StableDiffusion, join: Callable[..., Params], settings: Settings
) -> tuple[Callable[..., finetune.TrainState], Step]:
  """The first state and the step as functions that similar runs share.

  Model, data, learning rate and defended directions are their arguments. So a
  similar run gets the same functions and compiles nothing.
  """
  kind, optimizer = settings.defense.kind, settings.optimizer
  # A flag cannot say None, so 0 stands for no clipping.
  clip_norm = optimizer.clip_norm or None
  optimizer = dataclasses.replace(
    optimizer, learning_rate=0.0, clip_norm=clip_norm
  )
  return _programs(
    sd, join, kind if kind in ("project", "anchor") else "none",
    settings.num_steps, settings.ema_decay or None, settings.accumulate,
    settings.loss, optimizer,
  )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _programs(
  sd: StableDiffusion,
  join: Callable[..., Params],
  kind: str,
  num_steps: int,
  ema_decay: float | None,
  accumulate: int,
  loss: Loss,
  optimizer: Optimizer,
) -> tuple[Callable[..., finetune.TrainState], Step]:
  plain: finetune.Loss = functools.partial(
    finetune.diffusion_loss, sd, join, **dataclasses.asdict(loss)
  )
  options = dataclasses.asdict(optimizer)
  del options["learning_rate"]

  def held(
    params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
  ) -> tuple[Array, finetune.Metrics]:
    weight = frozen["anchor_weight"]
    return defenses.anchored(plain, join, weight)(params, frozen, batch, key)

  def tx(frozen: Frozen) -> optax.GradientTransformation:
    made = finetune.optimizer(frozen["learning_rate"], num_steps, **options)
    if kind != "project":
      return made
    return optax.chain(made, defenses.project(frozen["basis"]))

  def step(
    state: finetune.TrainState, frozen: Frozen, batch: Batch, key: PRNGKeyArray
  ) -> tuple[finetune.TrainState, finetune.Metrics]:
    one = finetune.make_step(
      held if kind == "anchor" else plain, tx(frozen), ema_decay,
      accumulate=accumulate,
    )  # fmt: skip
    return one(state, frozen, batch, key)

  def start(trained: Params, frozen: Frozen) -> finetune.TrainState:
    ema = ema_decay is not None
    return finetune.init_state(trained, tx(frozen), ema=ema)

  return start, step


def _measured(state: finetune.TrainState) -> Params:
  """What was trained, or its average where there is one, on the host."""
  return sharding.gather(state.ema or state.params)


def tuned_params(
  sd: StableDiffusion,
  params: Params,
  part: finetune.Partition,
  state: finetune.TrainState,
  edit: Edit | None,
  settings: Settings,
) -> Params:
  """The model of a state. All processes must call it together."""
  tuned = {**params, **part.join(_measured(state), part.frozen)}
  if settings.defense.kind != "reassert" or edit is None:
    return tuned
  kept = [phrase for c in edit.concepts for phrase in c.preserve]
  return defenses.reassert(
    tuned,
    params,
    phrase_states(sd, params, [c.erase for c in edit.concepts]),
    phrase_states(sd, params, sorted({"", *kept})),
    weight=settings.defense.weight,
  )


def as_edit(base: Params, tuned: Params, edit: Edit | None, name: str) -> Edit:
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
  run: Recorder,
  part: finetune.Partition,
  state: finetune.TrainState,
  settings: Settings,
):
  """Writes a LoRA run's adapters in the format of diffusers.

  They are those of the last `tuned_params`. All processes must call it at once.
  """
  if settings.train != "lora":
    return
  if settings.defense.kind == "reassert":
    logging.warning(
      "no lora.safetensors: defense.kind='reassert' changes more than adapters "
      "can say; export the last edit of steps/ instead"
    )
    return
  adapters = _measured(state)
  if run.is_writer:
    scale = float(part.frozen["lora/scale"])
    lora.save(run.path / "lora.safetensors", adapters, scale)
