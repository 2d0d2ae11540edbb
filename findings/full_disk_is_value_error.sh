#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a checkpoint on a full disk raises a ValueError.
#
# Most expect: an OSError with errno ENOSPC, as from any write, so that code which
# catches OSError can say that the disk is full.
# Seen: a ValueError without an OSError in its chain. It begins with
# "RESOURCE_EXHAUSTED", the words of XLA for a device without enough memory, so
# code that halves a batch on these words halves it for a full disk too.
#
# Makes a file system of 300 KiB in a mount namespace of its own: Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2
mkdir "$folder/disk"
cat > "$folder/save.py" <<'EOF'
import importlib.metadata
import logging
import sys

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))
disk = sys.argv[1]
values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)


def raised(act):
  """The error of an action, and the errors that it came from."""
  try:
    act()
  except Exception as error:
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
      chain.append(chain[-1].__cause__ or chain[-1].__context__)
    return chain
  return []


def plain():
  with open(f"{disk}/plain", "wb") as file:
    file.write(values.tobytes())


def save():
  with ocp.CheckpointManager(f"{disk}/steps") as manager:
    manager.save(1, args=ocp.args.StandardSave({"a": values}))
    manager.wait_until_finished()


first = raised(plain)
open(f"{disk}/plain", "wb").close()
second = raised(save)
print("A plain write of 800 KB:", [type(one).__name__ for one in first])
print("Expected of orbax: OSError somewhere in the chain.")
print("Seen:", [type(one).__name__ for one in second])
print(str(second[0]).split(" [")[0][:160] if second else "no error")
same = (
  bool(first)
  and isinstance(first[0], OSError)
  and bool(second)
  and not any(isinstance(one, OSError) for one in second)
  and isinstance(second[0], ValueError)
  and "RESOURCE_EXHAUSTED" in str(second[0])
)
sys.exit(0 if same else "The behaviour changed.")
EOF
unshare --map-root-user --mount bash -c \
  'mount -t tmpfs -o size=300k tmpfs "$1/disk" && "$1/venv/bin/python" "$1/save.py" "$1/disk"' \
  _ "$folder"
