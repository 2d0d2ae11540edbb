"""Works of `side_by_side` that run networks: the Shapes model, a large UNet.

Each function yields works, and for each what prepares a call. Preparing is not
timed. Works of one function share their weights.
"""

from collections.abc import Callable, Iterator
from typing import Any

Works = Iterator[tuple[str, Callable[[], Callable[[], Any]]]]
ROWS = (1, 8, 32)
STEPS, SCALE = 15, 4.0
PROMPT = "a red star on a gray background"
CONTEXT = (1, 77, 768)


def shapes_ours(kernels: str) -> Works:
  """Draws so many pictures at once with the Shapes model."""
  from unlearning_jax import sampling, shapes, stable_diffusion

  sd, params = stable_diffusion.load(shapes.model_folder(), kernels=kernels)

  def draw(rows: int):
    drawn = sampling.generate(
      sd, params, [PROMPT] * rows, range(rows), batch_size=rows,
      num_inference_steps=STEPS, guidance_scale=SCALE, sampler="ddim",
    )  # fmt: skip
    return list(drawn)

  for rows in ROWS:
    yield f"shapes {rows}", lambda rows=rows: lambda: draw(rows)


def shapes_peer(side: str) -> Works:
  """The same with diffusers' pipeline, as it is or compiled."""
  import diffusers
  import torch

  from unlearning_jax import shapes

  torch.set_num_threads(1)
  diffusers.utils.logging.disable_progress_bar()
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(
    shapes.model_folder(), safety_checker=None, torch_dtype=torch.float32
  )
  pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
  pipe.set_progress_bar_config(disable=True)
  if side == "compiled":
    # One program for each number of rows, as ours.
    pipe.unet = torch.compile(pipe.unet, dynamic=False)
    pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)

  def draw(rows: int):
    return pipe(
      [PROMPT] * rows, num_inference_steps=STEPS, guidance_scale=SCALE,
      generator=[torch.Generator().manual_seed(i) for i in range(rows)],
      output_type="np",
    )  # fmt: skip

  for rows in ROWS:
    yield f"shapes {rows}", lambda rows=rows: lambda: draw(rows)


def unet_ours(dtype: str, kernels: str) -> Works:
  """A row through a UNet of Stable Diffusion 1.4's size, random weights.

  The weights are stored in `dtype`. With fast kernels and float32 it also gives
  the gradient to the text.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from unlearning_jax import models
  from unlearning_jax.convert.sd1 import CONFIGS
  from unlearning_jax.models import fast

  rng = np.random.default_rng(0)
  net = models.UNet2DCondition.from_config(
    CONFIGS["unet"], dtype=fast.computed_dtype(dtype, kernels), kernels=kernels
  )
  given = [jnp.zeros((1, 64, 64, 4)), jnp.array([500]), jnp.zeros(CONTEXT)]
  shapes = jax.eval_shape(net.init, jax.random.key(0), *given)["params"]

  def fill(leaf: Any) -> Any:
    values = rng.standard_normal(leaf.shape, np.float32)
    values *= np.prod(leaf.shape[:-1]) ** -0.5
    return jax.block_until_ready(jnp.asarray(values, dtype))

  params = jax.tree.map(fill, shapes)

  def forward(params, latents, t, context):
    return models.apply(net, params, latents, t, context)

  def slope(params, latents, t, context):
    return jax.grad(lambda c: forward(params, latents, t, c).sum())(context)

  def prepare(function: Callable) -> Callable[[], Callable[[], Any]]:
    compiled = jax.jit(function).lower(params, *given).compile()
    return lambda: lambda: jax.block_until_ready(compiled(params, *given))

  yield f"unet {dtype}", prepare(forward)
  if dtype == "float32" and kernels == "fast":
    yield f"gradient {dtype}", prepare(slope)


def unet_peer(dtype: str) -> Works:
  """The same in diffusers and torch."""
  import diffusers
  import torch

  from unlearning_jax.convert.sd1 import CONFIGS

  torch.set_num_threads(1)
  torch.set_default_dtype(getattr(torch, dtype))
  net = diffusers.UNet2DConditionModel.from_config(CONFIGS["unet"]).eval()
  net.requires_grad_(False)
  latents = torch.zeros(1, 4, 64, 64)

  def forward():
    return net(latents, 500, torch.zeros(*CONTEXT)).sample

  def slope():
    context = torch.zeros(*CONTEXT, requires_grad=True)
    out = net(latents, 500, context).sample
    return torch.autograd.grad(out.sum(), context)

  yield f"unet {dtype}", lambda: forward
  if dtype == "float32":
    yield f"gradient {dtype}", lambda: slope
