#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a partial restore of arrays that the checkpoint lacks
# gives back what it was given.
#
# Most expect: `partial_restore=True` lets the checkpoint hold more than the
# tree that is asked for. A name that the checkpoint does not hold is an error,
# as it is without the setting.
# Seen: no error, and no line of the log. Such a leaf comes back as it was
# passed in. So restoring an erased model onto the base's arrays gives the base
# itself where a layer has another name, or everywhere if the outermost name
# differs. An attack on it then measures the base. Where the tree holds shapes,
# the shape comes back in the array's place. `partial_load` of orbax's second
# interface does the same.
# What works: pass shapes, and look for leaves that are no arrays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu bin/python - <<'EOF'
import importlib.metadata
import logging
import os
import sys
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as second

LINES = []


class Lines(logging.Handler):
  def emit(self, record):
    LINES.append(record.getMessage())


logging.getLogger().addHandler(Lines(logging.WARNING))
warnings.simplefilter("ignore")
here = os.getcwd()
BASE, ERASED = np.zeros(2, np.float32), np.full(2, 7, np.float32)
saved = {"unet": {"attn": ERASED, "ff": ERASED}, "step": ERASED}
handler = ocp.PyTreeCheckpointer()
handler.save(f"{here}/erased", saved)
second.save(f"{here}/second", saved)


def restore(item, partial=True):
  words = {"item": item, "partial_restore": partial}
  return handler.restore(f"{here}/erased", args=ocp.args.PyTreeRestore(**words))


def first_values(tree):
  return jax.tree.map(lambda leaf: float(leaf[0]), tree)


def refused(item):
  try:
    restore(item, partial=False)
  except ValueError as error:
    return "do not match" in str(error)
  return False


fewer = first_values(restore({"unet": {"attn": BASE}}))
layer = first_values(restore({"unet": {"attn": BASE, "mlp": BASE}}))
whole = first_values(restore({"model": {"attn": BASE, "ff": BASE}}))
shape = jax.ShapeDtypeStruct((2,), np.float32)
shapes = restore({"unet": {"attn": shape, "mlp": shape}})
context = second.Context()
context.pytree.loading.partial_load = True
with context:
  again = second.load(f"{here}/second", {"model": {"attn": BASE, "ff": BASE}})
again = first_values(again)
strict = refused({"model": {"attn": BASE, "ff": BASE}})
print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))
print("The erased model holds 7, the base 0.")
print("A part of it:", fewer)
print("Other names without the setting: refused,", strict)
print("Expected with it: refused as well")
print("Seen, a layer renamed:", layer)
print("Seen, the outermost name is another:", whole, "and", again)
print("Seen with shapes:", shapes["unet"]["mlp"])
print("Lines of the log at level WARNING:", LINES)
same = fewer == {"unet": {"attn": 7.0}} and strict and not LINES
same = same and layer == {"unet": {"attn": 7.0, "mlp": 0.0}}
same = same and whole == again == {"model": {"attn": 0.0, "ff": 0.0}}
same = same and shapes["unet"]["mlp"] is shape
sys.exit(0 if same else "The behaviour changed.")
EOF
