"""The programs that `full_size.py` times, and what they are given."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from unlearning_jax.configs import finetune_full, finetune_lora

from unlearning_jax import (
  attacks,
  finetune,
  models,
  samplers,
  settings,
  stable_diffusion,
)
from unlearning_jax.attacks.engine import insertion
from unlearning_jax.attacks.engine.victim import Batch, Problem, Victim
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.schedules import Schedule
from unlearning_jax.stable_diffusion import StableDiffusion

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
TUNED = {"full": finetune_full, "lora": finetune_lora}
STEPS, K = 50, 5


class Program(NamedTuple):
  """A function, and what makes its arguments, or their shapes, of parameters.

  One that carries gives its first argument's memory to its first result.
  """

  function: Callable[..., Any]
  arguments: Callable[[Any], tuple[Any, ...]]
  carries: bool = False


def make_sd(size: str, dtype: str, attention: str) -> StableDiffusion:
  """The networks, `sd14` or `tiny`, without tokenizer or files."""
  small = TINY if size == "tiny" else {}
  configs = {name: c | small.get(name, {}) for name, c in CONFIGS.items()}
  side = configs["unet"]["sample_size"]
  return StableDiffusion(
    text_encoder=models.ClipTextModel.from_config(configs["text_encoder"]),
    unet=models.UNet2DCondition.from_config(
      configs["unet"], dtype=dtype, attention=attention
    ),
    vae=models.AutoencoderKL.from_config(configs["vae"], dtype=dtype),
    schedule=Schedule.from_config(configs["scheduler"]),
    latent_size=(side, side),
    tokenizer=None,
    files=None,  # type: ignore
  )


@functools.partial(jax.jit, static_argnums=1)
def normal(seed: Any, shape: tuple[int, ...], mean: Any = 0.0, std: Any = 1.0):
  """Random numbers, made on the device; one program a shape."""
  return mean + std * jax.random.normal(jax.random.key(seed), shape)


def shapes(sd: StableDiffusion) -> dict[str, Any]:
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
    part: jax.eval_shape(getattr(sd, part).init, jax.random.key(0), *given)[
      "params"
    ]
    for part, given in inputs.items()
  }


def weights(like: Any) -> Any:
  """Random ones: 0.02 around zero, norms' scales around one."""
  leaves, tree = jax.tree_util.tree_flatten_with_path(like)
  return tree.unflatten(
    normal(i, leaf.shape, float(path[-1].key == "scale"), 0.02)
    for i, (path, leaf) in enumerate(leaves)
  )


def unet(sd: StableDiffusion, rows: int, like: Any) -> Program:
  """A forward pass."""
  del like

  def forward(unet: Any, latents: Any, t: Any, context: Any):
    return stable_diffusion.predict_noise(
      sd, {"unet": unet}, latents, t, context
    )

  def arguments(params: Any):
    latents = normal(0, (rows, *sd.latent_shape))
    context = normal(1, (rows, *sd.context_shape))
    return params["unet"], latents, jnp.full((rows,), 500), context

  return Program(forward, arguments)


def attack(sd: StableDiffusion, rows: int, like: Any) -> Program:
  """A step of UnlearnDiffAtk with all tokens allowed."""
  del like
  method = attacks.bind("unlearn_diff_atk", {"num_tokens": K})
  start = jax.jit(method.init)
  length, size = sd.context_shape[0], sd.text_encoder.config.vocab_size

  def step(state: Any, victim: Victim, batch: Batch):
    return method.step(Problem(sd, victim, None, batch), state)  # type: ignore

  def arguments(params: Any):
    victim = Victim({name: params[name] for name in ("text_encoder", "unet")})
    source = jnp.asarray(insertion.layout("prefix_k", 5, K, length, ""))
    batch = Batch(
      jnp.arange(size),
      jnp.arange(rows, dtype=jnp.uint32),
      jax.random.randint(jax.random.key(2), (rows, length), 0, size),
      jnp.broadcast_to(source, (rows, length)),
      normal(0, (rows, *sd.latent_shape)),
    )
    problem = Problem(sd, victim, None, batch)  # type: ignore
    return start(problem, jax.random.key(0)), victim, batch

  return Program(step, arguments, carries=True)


def tune(train: str, sd: StableDiffusion, rows: int, like: Any) -> Program:
  """A step of `launch.finetune`, as its published protocol sets it."""
  config = TUNED[train].get_config("sd14")
  config.batch_size, config.accumulate = rows, 1
  given = settings.build(tuning.Settings, config.to_dict())

  def parted(params: Any) -> finetune.Partition:
    return finetune.partition(
      {"unet": params["unet"]}, train, jax.random.key(0), **config.lora
    )

  start, step = tuning.programs(sd, parted(like).join, given)
  start = jax.jit(start)

  def arguments(params: Any):
    part, rate = parted(params), jnp.float32(config.optimizer.learning_rate)
    frozen = {
      "params": part.frozen,
      "empty": normal(1, (1, *sd.context_shape)),
      "learning_rate": rate,
    }
    batch = {
      "mean": normal(0, (rows, 1, *sd.latent_shape)),
      "std": jnp.full((rows, 1, *sd.latent_shape), 0.1),
      "context": normal(1, (rows, *sd.context_shape)),
    }
    state = start(part.trained, {"learning_rate": rate, "basis": None})
    return state, frozen, batch, jax.random.key(1)

  return Program(step, arguments, carries=True)


def sample(sd: StableDiffusion, rows: int, like: Any) -> Program:
  """Guided sampling by the checkpoint's sampler, and decoding."""
  del like

  def draw(params: Any, context: Any, empty: Any, noise: Any):
    return stable_diffusion.sample(
      sd, params, context, empty, noise, num_inference_steps=STEPS
    )

  def arguments(params: Any):
    used = {name: params[name] for name in ("unet", "vae")}
    context, noise = (
      normal(i, (rows, *shape))
      for i, shape in enumerate((sd.context_shape, sd.latent_shape))
    )
    return used, context, context[:1], noise

  return Program(draw, arguments)


BUILD: dict[str, Callable[[StableDiffusion, int, Any], Program]] = {
  "unet": unet,
  "attack": attack,
  "full": functools.partial(tune, "full"),
  "lora": functools.partial(tune, "lora"),
  "sample": sample,
}


def lowered(program: Program, like: Any, where: Any) -> Any:
  """The program of one device, as it is compiled."""

  def placed(leaf: Any):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  given = jax.tree.map(placed, jax.eval_shape(program.arguments, like))
  donated = (0,) if program.carries else ()
  return jax.jit(
    program.function, donate_argnums=donated, out_shardings=where
  ).lower(*given)


@functools.cache
def flops(part: str, size: str, dtype: str) -> float:
  """Of a row; counted on a CPU, as other backends may not count at all."""
  sd = make_sd(size, dtype, "dense")
  like = shapes(sd)
  program = BUILD[part](sd, 1, like)
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
