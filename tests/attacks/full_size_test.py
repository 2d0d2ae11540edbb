"""An attack's step at the real size of Stable Diffusion 1.4, as compiled.

Shapes only: nothing is allocated, so no weights are needed. The floor is what
the networks cost op by op, a multiplication and an addition being two: 0.803
TFLOP a UNet row, 1.669 with its gradient to the text, 0.04 the text encoder's
pass there and back. A gradient of any weight would show as 2.4.
"""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from unlearning_jax import sharding
from unlearning_jax.attacks import unlearn_diff_atk
from unlearning_jax.attacks.engine.victim import Batch, Problem, Victim
from unlearning_jax.experiments.programs.build import make_sd

pytestmark = pytest.mark.slow
FLOOR = 1.71e12
# A laptop's memory must do for an attack of one row.
PEAK_GIB = 12
K = 5


def abstract(sd, lanes=1):
  """Shapes of a victim and of its rows."""
  key = jax.random.key(0)
  ids = jnp.zeros((1, 77), jnp.int32)
  text = jax.eval_shape(sd.text_encoder.init, key, ids)
  context = jax.ShapeDtypeStruct((1, 77, 768), jnp.float32)
  latents = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.int32)
  unet = jax.eval_shape(sd.unet.init, key, latents, t, context)
  params = {"text_encoder": text["params"], "unet": unet["params"]}
  shape = jax.ShapeDtypeStruct
  return Victim(params), Batch(
    shape((49408,), jnp.int32),
    shape((lanes,), jnp.uint32),
    shape((lanes, 77), jnp.int32),
    shape((lanes, 77), jnp.int32),
    shape((lanes, 64, 64, 4), jnp.float32),
  )


@functools.cache
def lowered(attention, lanes=1, mesh=None):
  sd = make_sd("sd14", "float32", attention)
  victim, batch = abstract(sd, lanes)
  h = unlearn_diff_atk.Hparams(num_tokens=K)
  start = functools.partial(unlearn_diff_atk.init, h=h)
  # The original takes no part in this loss.
  state = jax.eval_shape(
    start, Problem(sd, victim, None, batch), key=jax.random.key(0)
  )
  step = functools.partial(unlearn_diff_atk.step, h=h)
  if mesh:
    # As the driver lays them out: rows are shared out, all else is everywhere.
    every, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    victim, words = placed((victim, batch.vocabulary), every)
    batch, state = placed((batch, state), split)
    batch = batch._replace(vocabulary=words)
  return jax.jit(step).lower(Problem(sd, victim, None, batch), state)


def compiled(*arguments):
  """Its memory and its collectives are settled before any machine code is."""
  fast = {"xla_backend_optimization_level": 0}
  return lowered(*arguments).compile(compiler_options=fast)


def placed(tree, where):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
  )


def test_a_step_costs_its_floor():
  """Dense attention: what is computed in chunks is computed twice."""
  flops = lowered("dense", 1).cost_analysis()["flops"]
  print(json.dumps({"tflop": flops / 1e12, "of_floor": flops / FLOOR}))
  assert abs(flops / FLOOR - 1) < 0.05


def test_lanes_cost_their_sum():
  one, two = (lowered("dense", n).cost_analysis()["flops"] for n in (1, 2))
  assert abs(two / one - 2) < 0.01


def test_eight_devices_do_not_talk():
  mesh = sharding.make_mesh(devices=jax.devices()[:8])
  program = compiled("auto", 8, mesh)
  text = program.as_text()
  for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
    assert word not in text, word
  # A row a device: each needs what one device needs for one row.
  temp = program.memory_analysis().temp_size_in_bytes / 2**30
  print(json.dumps({"temp_of_a_device": round(temp, 2)}))
  assert temp < PEAK_GIB - 3.7


def test_a_step_compiles_and_its_memory_is_known():
  memory = compiled("auto").memory_analysis()
  sizes = {
    name: getattr(memory, f"{name}_size_in_bytes") / 2**30
    for name in ("argument", "output", "temp")
  }
  print(json.dumps({name: round(size, 2) for name, size in sizes.items()}))
  # All weights but the VAE's, in float32.
  assert 3.6 < sizes["argument"] < 4.1
  assert sum(sizes.values()) < PEAK_GIB
