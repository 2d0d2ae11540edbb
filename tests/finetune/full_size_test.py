"""Tuning steps at the real size of Stable Diffusion 1.4, as compiled.

Shapes only: nothing of the 860 million parameters is allocated. Settings are
those of the published protocol, in float32 with rematerialized blocks. What is
split and what is gathered the partitioner decides, the same for every device.
One device's program is compiled only for docs/performance.md: BESIDES=1.
When a gather is done, and so the peak of memory, each compiler decides: the one
for CPUs drops rematerialization's barriers and gathers early. All figures are
with one of its passes left out, which launch scripts do not do: it would hoist
the gathers of all parameters out of the accumulating scan (`_OPTIONS`).
"""

import dataclasses
import json
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest

from tests.support.tunings import given
from unlearning_jax import finetune, sharding
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.experiments.programs.build import make_sd

pytestmark = pytest.mark.slow
GIB = 2**30
PARAMETERS = 859_520_964
_OPTIONS = {
  # Machine code is not what is looked at, and takes minutes to make well.
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
  # It moves the gathers of all parameters in front of the accumulating scan.
  "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}
# A gather's shape in the compiled program.
_GATHER = re.compile(r"= (?:\()?\w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(")
# What a loop hands from one turn to the next.
_CARRY = re.compile(r"= (\(.*\)) while\(")


def shaped(tree, layout):
  """The tree's shapes, laid out over the mesh."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    tree,
    layout,
  )


def lowered(train, mesh):
  """One step, as `launch.finetune` runs it; and its trained and frozen."""
  changes = {}
  if mesh.size > 1:
    # A row a device and part, however the mesh is.
    changes = {"batch_size": 32, "accumulate": 4}
  chosen = given(train, "sd14", **changes)
  sd = tuning.with_remat(make_sd("sd14", "float32", "auto"), True)
  shape = jax.ShapeDtypeStruct
  context, latents = (77, 768), (64, 64, 4)
  unet = jax.eval_shape(
    sd.unet.init, jax.random.key(0), shape((1, *latents), jnp.float32),
    shape((1,), jnp.int32), shape((1, *context), jnp.float32),
  )  # fmt: skip
  part = finetune.partition(
    {"unet": unet["params"]},
    train,
    jax.random.key(0),
    **dataclasses.asdict(chosen.lora),
  )
  start, step = tuning.programs(sd, part.join, chosen)
  frozen = {
    "params": part.frozen,
    "empty": shape((1, *context), jnp.float32),
    "learning_rate": shape((), jnp.float32),
  }
  state = jax.eval_shape(start, part.trained, {**frozen, "basis": None})
  rows = (chosen.batch_size,)
  batch = {
    "mean": shape((*rows, 1, *latents), jnp.float32),
    "std": shape((*rows, 1, *latents), jnp.float32),
    "context": shape((*rows, *context), jnp.float32),
  }
  layout = sharding.param_sharding(mesh, state)
  everywhere = sharding.replicated(mesh)
  split = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
  program = jax.jit(
    step, donate_argnums=0, out_shardings=(layout, everywhere)
  ).lower(
    shaped(state, layout),
    shaped(frozen, sharding.param_sharding(mesh, frozen)),
    shaped(batch, split),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  return state, frozen, program


def size(leaf):
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def share(tree):
  """GiB of a tree on one of eight devices."""
  return sum(
    size(leaf) / (8 if size(leaf) >= sharding.FSDP_MIN_BYTES else 1)
    for leaf in jax.tree.leaves(tree)
  ) / GIB  # fmt: skip


def carried_bytes(shapes):
  """Bytes of a tuple of float32 and whatever else, which is small."""
  found = re.findall(r"f32\[([\d,]+)\]", shapes)
  return sum(4 * math.prod(map(int, dims.split(","))) for dims in found)


def given_gib(program):
  """GiB of the arguments that a lowered program keeps."""
  (line,) = re.findall(r"func public @main\((.*)\) ->", program.as_text())
  found = re.findall(r"%arg\d+: tensor<((?:\d+x)*)u?[fi](\d+)>", line)
  assert len(found) == line.count("%arg")
  return sum(
    math.prod(int(n) for n in dims.split("x")[:-1]) * int(bits) / 8
    for dims, bits in found
  ) / GIB  # fmt: skip


def memory(compiled):
  """GiB of one device: what it is given, and the most it holds besides."""
  found = compiled.memory_analysis()
  return {
    "arguments": found.argument_size_in_bytes / GIB,
    "besides": found.temp_size_in_bytes / GIB,
  }


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_step_on_one_device(train):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state, frozen, step = lowered(train, mesh)
  trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert trained == {"full": PARAMETERS, "lora": 797_184}[train]
  given = sum(map(size, jax.tree.leaves((state, frozen)))) / GIB
  # Besides, a batch of latents and text states.
  assert given < given_gib(step) < given + 0.1
  if "BESIDES" in os.environ:
    found = memory(step.compile(_OPTIONS))
    print(json.dumps({"train": train, "devices": 1, **found}))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_step_on_eight_devices(train):
  mesh = sharding.make_mesh(data=1, fsdp=8)
  state, frozen, step = lowered(train, mesh)
  compiled = step.compile(_OPTIONS)
  found = memory(compiled)
  # Everything large is split: parameters, both moments, the average.
  given = share((state, frozen))
  assert given <= found["arguments"] < given + 0.1
  text = compiled.as_text() or ""
  gathered = [
    math.prod(map(int, dims.split(","))) for dims in _GATHER.findall(text)
  ]
  carried = max(map(carried_bytes, _CARRY.findall(text))) / GIB
  print(
    json.dumps({
      "train": train, "devices": 8, **found,
      "gathers": len(gathered), "gathered": 4 * sum(gathered) / GIB,
      "carried": carried,
    })
  )  # fmt: skip
  # Forward and backward, each parameter once at most; small activations are
  # gathered instead where that is less.
  assert 0 < sum(gathered) < 2.1 * PARAMETERS
  assert max(gathered) <= max(x.size for x in jax.tree.leaves((state, frozen)))
  # The scan adds up shares of the gradient, and hands on no whole network.
  assert carried < share(frozen) + 2 * share(state.params) + 0.1
