"""The programs that a run compiles, of shapes alone: nothing is allocated.

sd = make_sd("sd14", "float32", "auto")
program = BUILD["attack"](sd, 8, shapes(sd), None)
lowered(program, shapes(sd), mesh).compile()
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from unlearning_jax import (
  attacks,
  casting,
  finetune,
  models,
  samplers,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks.engine import insertion, lanes
from unlearning_jax.attacks.engine.victim import Batch, Victim
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.models import fast
from unlearning_jax.sampling import Sampling
from unlearning_jax.schedules import Schedule
from unlearning_jax.stable_diffusion import Params, StableDiffusion

TINY: dict[str, dict[str, Any]] = {
  "text_encoder": {
    "hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3,
    "num_hidden_layers": 1, "vocab_size": 64,
  },
  "unet": {
    "block_out_channels": (32,), "attention_head_dim": 4,
    "cross_attention_dim": 24, "layers_per_block": 1, "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
  },
  "vae": {
    "block_out_channels": (16,), "norm_num_groups": 8, "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
  },
}  # fmt: skip
SIZES = ("sd14", "tiny")
STEPS = 50
# Where an argument lies: on every device whole, its rows split, or its large
# leaves split over `fsdp`.
SAME, ROWS, SHARES = "same", "rows", "shares"
# What says how a program computes: an attack, a tuning or a sampling.
How = attacks.Attack | tuning.Settings | Sampling | None
_ATTACK = attacks.bind("unlearn_diff_atk", {})


class Program(NamedTuple):
  """A function, and what makes its arguments, or their shapes, of parameters.

  Attributes:
    function: what is compiled.
    arguments: of parameters; arrays or, under `jax.eval_shape`, shapes.
    where: of each argument, or of its parts: `SAME`, `ROWS` or `SHARES`.
      Results are rows, but of a first argument in shares its next value and
      numbers.
    carries: whether the first argument's memory becomes the first result's.
    takes_chips: whether the function takes the number of devices that share
      rows, `chips`.
  """

  function: Callable[..., Any]
  arguments: Callable[[Any], tuple[Any, ...]]
  where: tuple[Any, ...]
  carries: bool = False
  takes_chips: bool = False


def make_sd(
  size: str, dtype: str, attention: str, *, lean: bool | None = None
) -> StableDiffusion:
  """The networks, `sd14` or `tiny`, without tokenizer or files.

  Args:
    lean: whether gradients take less memory, as in runs on accelerators; None
      asks the machine.
  """
  lean = fast.has_accelerator() if lean is None else lean
  small = TINY if size == "tiny" else {}
  configs = {name: c | small.get(name, {}) for name, c in CONFIGS.items()}
  side = configs["unet"]["sample_size"]
  return StableDiffusion(
    text_encoder=models.ClipTextModel.from_config(configs["text_encoder"]),
    unet=models.UNet2DCondition.from_config(
      configs["unet"], dtype=dtype, attention=attention, lean=lean
    ),
    vae=models.AutoencoderKL.from_config(configs["vae"], dtype=dtype),
    schedule=Schedule.from_config(configs["scheduler"]),
    latent_size=(side, side),
    tokenizer=None,  # type: ignore
    files=None,  # type: ignore
  )


@functools.partial(jax.jit, static_argnums=1)
def normal(
  seed: int, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0
):
  """Random numbers, made on the device; one program a shape."""
  return mean + std * jax.random.normal(jax.random.key(seed), shape)


def shapes(sd: StableDiffusion) -> Params:
  """What the parameters look like."""
  number, ids = jnp.zeros(1), jnp.zeros((1, sd.context_shape[0]), jnp.int32)
  latents, context = (
    jnp.zeros((1, *shape)) for shape in (sd.latent_shape, sd.context_shape)
  )
  inputs = {
    "text_encoder": (ids,),
    "unet": (latents, number, context),
    "vae": (jnp.zeros((1, 16, 16, 3)),),
  }
  return {
    part: models.parameter_shapes(getattr(sd, part), *given)
    for part, given in inputs.items()
  }


def weights(like: Params) -> Params:
  """Random ones: 0.02 around zero, norms' scales around one."""
  leaves, tree = jax.tree_util.tree_flatten_with_path(like)
  return tree.unflatten(
    normal(i, leaf.shape, float(path[-1].key == "scale"), 0.02)
    for i, (path, leaf) in enumerate(leaves)
  )


def unet(sd: StableDiffusion, rows: int, like: Params, how: How) -> Program:
  """A forward pass; nothing says how."""
  del like, how

  def forward(unet: Params, latents: Array, t: Array, context: Array):
    return stable_diffusion.predict_noise(
      sd, {"unet": unet}, latents, t, context
    )

  def arguments(params: Params):
    latents = normal(0, (rows, *sd.latent_shape))
    context = normal(1, (rows, *sd.context_shape))
    own = casting.as_computed(sd, {"unet": params["unet"]})["unet"]
    return own, latents, jnp.full((rows,), 500), context

  return Program(forward, arguments, (SAME, ROWS, ROWS, ROWS))


def attack(sd: StableDiffusion, rows: int, like: Params, how: How) -> Program:
  """A block of an attack; its step is compiled once, whatever their number.

  Args:
    how: the attack; None is UnlearnDiffAtk with all tokens allowed.
  """
  del like
  method = how if isinstance(how, attacks.Attack) else _ATTACK
  length, size = sd.context_shape[0], sd.text_encoder.config.vocab_size
  places = Batch(SAME, *[ROWS] * 4)  # type: ignore

  def problem(victim: Victim, base: Victim, batch: Batch):
    return lanes.Problem(sd, victim, base, batch)

  def block(state: Any, *given: Any):
    return lanes.iterate(method, problem(*given), state)

  def arguments(params: Params):
    read = {name: params[name] for name in ("text_encoder", "unet")}
    who = Victim(casting.as_computed(sd, read))
    ids = jax.random.randint(jax.random.key(2), (rows, length), 0, size)
    source = jnp.arange(length)
    if isinstance(count := getattr(method.h, "num_tokens", None), int):
      source = jnp.asarray(
        insertion.layout(method.h.insertion, 5, count, length, "")
      )
    latents, pool = normal(0, (rows, *sd.latent_shape)), None
    if getattr(method.h, "pool", ""):
      pool = lanes.Pool(latents, ids, ids, ids)
    batch = Batch(
      jnp.arange(size), jnp.arange(rows, dtype=jnp.uint32), ids,
      jnp.broadcast_to(source, (rows, length)), latents, pool,
    )  # fmt: skip
    given = who, who, batch
    return method.init(problem(*given), jax.random.key(0)), *given

  if getattr(method.h, "pool", ""):
    places = places._replace(pool=SAME)  # type: ignore
  return Program(block, arguments, (ROWS, SAME, SAME, places), carries=True)


def tune(sd: StableDiffusion, rows: int, like: Params, how: How) -> Program:
  """A step of a fine-tuning.

  Args:
    rows: of a part, of which a step has `how.accumulate`.
    how: its settings.
  """
  assert isinstance(how, tuning.Settings)
  given = dataclasses.replace(how, batch_size=rows * how.accumulate)
  sd = tuning.with_remat(sd, given.remat)
  kept = (
    ("text_encoder", "unet") if given.train == "text_encoder" else ("unet",)
  )
  rows = given.batch_size

  def parted(params: Params) -> finetune.Partition:
    return finetune.partition(
      {name: params[name] for name in kept}, given.train, jax.random.key(0),
      **dataclasses.asdict(given.lora),
    )  # fmt: skip

  start, step = tuning.programs(sd, parted(like).join, given)
  start = jax.jit(start)

  def arguments(params: Params):
    part, rate = parted(params), jnp.float32(given.optimizer.learning_rate)
    states = functools.partial(normal, 1)
    if given.train == "text_encoder":
      states = functools.partial(jnp.zeros, dtype=jnp.int32)
    text = sd.context_shape[: 1 if given.train == "text_encoder" else 2]
    frozen = {
      "params": part.frozen,
      "empty": states((1, *text)),
      "learning_rate": rate,
    }
    batch = {
      "mean": normal(0, (rows, 1, *sd.latent_shape)),
      "std": jnp.full((rows, 1, *sd.latent_shape), 0.1),
      "context": states((rows, *text)),
    }
    state = start(part.trained, {"learning_rate": rate, "basis": None})
    return state, frozen, batch, jax.random.key(1)

  where = (SHARES, SHARES, ROWS, SAME)
  return Program(step, arguments, where, carries=True)


def sample(sd: StableDiffusion, rows: int, like: Params, how: How) -> Program:
  """Guided sampling, and decoding.

  Args:
    how: a `sampling.Sampling`; None is 50 steps of the checkpoint's sampler.
  """
  del like
  steps = getattr(how, "num_inference_steps", STEPS)
  sampler = getattr(how, "sampler", None)

  def draw(params: Params, *given: Array, chips: int = 1):
    return stable_diffusion.sample(
      sd, params, *given, num_inference_steps=steps, sampler=sampler,
      chips=chips,
    )  # fmt: skip

  def arguments(params: Params):
    used = {name: params[name] for name in ("unet", "vae")}
    used = casting.as_computed(sd, used)
    context, noise = (
      normal(i, (rows, *shape))
      for i, shape in enumerate((sd.context_shape, sd.latent_shape))
    )
    return used, context, context[:1], noise

  return Program(draw, arguments, (SAME, ROWS, SAME, ROWS), takes_chips=True)


def closed_form(
  sd: StableDiffusion, rows: int, like: Params, how: How
) -> Program:
  """The text states of phrases, which a closed form is computed from.

  What follows is small: sums and solve are d x d in float64, on the host or,
  for a long list, 14 MB a device.
  """
  del like, how

  def states(params: Params, ids: Array):
    return stable_diffusion.encode_text(sd, params, ids)

  def arguments(params: Params):
    ids = jnp.zeros((rows, sd.context_shape[0]), jnp.int32)
    return {"text_encoder": params["text_encoder"]}, ids

  return Program(states, arguments, (SAME, ROWS))


BUILD: dict[str, Callable[[StableDiffusion, int, Params, How], Program]] = {
  "unet": unet,
  "attack": attack,
  "full": tune,
  "lora": tune,
  "sample": sample,
  "closed_form": closed_form,
}


def lowered(
  program: Program,
  like: Params,
  mesh: sharding.Mesh,
  min_bytes: int = sharding.FSDP_MIN_BYTES,
) -> jax.stages.Lowered:
  """The program as it is compiled for a mesh.

  Args:
    like: the parameters' shapes.
    min_bytes: smaller leaves are not split.
  """
  layout = {
    SAME: sharding.replicated(mesh),
    ROWS: sharding.batch_sharding(mesh),
  }

  def placed(where: str, leaf: jax.ShapeDtypeStruct):
    if where == SHARES:
      return sharding.param_sharding(mesh, leaf, min_bytes)
    return layout[where]

  def shaped(where: str, leaf: jax.ShapeDtypeStruct):
    lies = placed(where, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies)

  given = jax.eval_shape(program.arguments, like)
  over = jax.tree.map(shaped, jax.tree.broadcast(program.where, given), given)
  out = layout[ROWS]
  if program.where[0] == SHARES:
    # The state lies as it lay; its metrics are everywhere.
    out = (jax.tree.map(lambda x: x.sharding, over[0]), layout[SAME])
  function = program.function
  if program.takes_chips:
    function = functools.partial(function, chips=mesh.size)
  return jax.jit(
    function,
    donate_argnums=(0,) if program.carries else (),
    out_shardings=out,
  ).lower(*over)


@functools.cache
def flops(part: str, size: str, dtype: str, how: How = None) -> float:
  """Of a row; counted on a CPU, as other backends may not count at all."""
  sd = make_sd(size, dtype, "dense")
  like = shapes(sd)
  if isinstance(how, tuning.Settings):
    # What is computed twice is no work.
    how = dataclasses.replace(how, remat=False)
  program = BUILD[part](sd, 1, like, how)
  function, given = program.function, jax.eval_shape(program.arguments, like)
  if part == "sample":
    # A loop's body would count once.
    calls = len(samplers.make_sampler(sd.schedule, STEPS, None).timesteps)
    function = functools.partial(stable_diffusion.decode, sd)
    given = (given[0], given[3])
  with jax.default_device(jax.devices("cpu")[0]):
    cost: Any = jax.jit(function).lower(*given).cost_analysis()
  found = cost["flops"]
  if part == "sample":
    found += 2 * calls * flops("unet", size, dtype)
  return found
