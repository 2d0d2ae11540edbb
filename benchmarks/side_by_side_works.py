"""What `side_by_side` times: each side computes the same work in its process.

  python benchmarks/side_by_side_works.py "unet float32" fast 4

prints a line of JSON: CPU seconds of a unit, the process's peak memory, and the
version of what computed. A side whose package is not installed says so instead.
`side_by_side` sets the environment for one thread of a CPU.
"""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

STEPS, SCALE = 15, 4.0
PROMPT = "a red star on a gray background"
CONTEXT = (1, 77, 768)


def shapes_ours(rows: int, kernels: str) -> Callable[[], Any]:
  """Draws `rows` pictures at once with the Shapes model."""
  from unlearning_jax import sampling, shapes, stable_diffusion

  sd, params = stable_diffusion.load(shapes.model_folder(), kernels=kernels)

  def call():
    drawn = sampling.generate(
      sd, params, [PROMPT] * rows, range(rows), batch_size=rows,
      num_inference_steps=STEPS, guidance_scale=SCALE, sampler="ddim",
    )  # fmt: skip
    return list(drawn)

  return call


def shapes_peer(rows: int, kind: str) -> Callable[[], Any]:
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
  if kind == "compiled":
    pipe.unet = torch.compile(pipe.unet)
    pipe.vae.decode = torch.compile(pipe.vae.decode)

  def call():
    return pipe(
      [PROMPT] * rows, num_inference_steps=STEPS, guidance_scale=SCALE,
      generator=[torch.Generator().manual_seed(i) for i in range(rows)],
      output_type="np",
    )  # fmt: skip

  return call


def unet_ours(dtype: str, gradient: bool, kernels: str) -> Callable[[], Any]:
  """A row through a UNet of Stable Diffusion 1.4's size, random weights.

  The weights are stored in `dtype`.
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

  compiled = jax.jit(slope if gradient else forward).lower(params, *given)
  compiled = compiled.compile()
  return lambda: jax.block_until_ready(compiled(params, *given))


def unet_peer(dtype: str, gradient: bool, _: str) -> Callable[[], Any]:
  """The same in diffusers and torch."""
  import diffusers
  import torch

  from unlearning_jax.convert.sd1 import CONFIGS

  torch.set_num_threads(1)
  torch.set_default_dtype(getattr(torch, dtype))
  net = diffusers.UNet2DConditionModel.from_config(CONFIGS["unet"]).eval()
  net.requires_grad_(False)
  latents = torch.zeros(1, 4, 64, 64)
  context = torch.zeros(*CONTEXT, requires_grad=gradient)

  def call():
    out = net(latents, 500, context).sample
    return torch.autograd.grad(out.sum(), context) if gradient else out

  return call


def start(_: str, side: str) -> Callable[[], Any]:
  """Imports what draws pictures."""
  ours = "from unlearning_jax import model, sampling"
  peer = "from diffusers import StableDiffusionPipeline"
  words = peer if side == "eager" else ours
  return lambda: subprocess.run([sys.executable, "-c", words], check=True)


def prepared(work: str, side: str) -> Callable[[], Any]:
  """The call that a side makes for a work."""
  ours = side in ("exact", "fast")
  kind, _, size = work.partition(" ")
  if kind == "start":
    return start(size, side)
  if kind == "shapes":
    return (shapes_ours if ours else shapes_peer)(int(size), side)
  make = unet_ours if ours else unet_peer
  return make(size, kind == "gradient", side)


def cpu_seconds() -> float:
  """CPU seconds of this process and of those it waited for."""
  return sum(os.times()[:4])


def measure(work: str, side: str, seconds: float) -> dict[str, Any]:
  """CPU seconds of calls after the first, one at least."""
  peers = ("torch", "diffusers") if side in ("eager", "compiled") else ()
  missing = [name for name in peers if not importlib.util.find_spec(name)]
  if missing:
    return {"missing": f"not installed: {', '.join(missing)}"}
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  call, taken = prepared(work, side), []
  first = cpu_seconds()
  call()
  first = cpu_seconds() - first
  while len(taken) < 1 or (sum(taken) < seconds and len(taken) < 9):
    begun = cpu_seconds()
    call()
    taken.append(cpu_seconds() - begun)
  names = peers or ("jax",)
  kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "seconds": statistics.median(taken),
    "first": first,
    "peak_gib": kibibytes / 2**20,
    "version": " ".join(f"{n} {metadata.version(n)}" for n in names),
  }


if __name__ == "__main__":
  print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
