#!/usr/bin/env bash
# jax 0.10.2: of two processes, `broadcast_one_to_all` cuts numbers to 32 bits.
#
# Most expect: process 0's NumPy value arrives unchanged, as it does when the
# same program runs in one process.
# Seen: one process gets its int64 back; of two processes each gets the lower
# half as int32, and `process_allgather` does the same. A seed of 2**40 + 7
# becomes 7, and the hashes of two different settings can agree. float64
# becomes float32.
# What works: send bytes, `np.frombuffer(value.tobytes(), np.uint8)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
cat > two.py <<'EOF'
import sys

import jax

index, count, port = map(int, sys.argv[1:])
if count > 1:
  jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
import numpy as np
from jax.experimental import multihost_utils

seed = multihost_utils.broadcast_one_to_all(np.int64(2**40 + 7))
rate = multihost_utils.broadcast_one_to_all(np.float64(0.1))
hashes = multihost_utils.process_allgather(np.int64(index * 2**32 + 5))
raw = np.frombuffer(np.int64(2**40 + 7).tobytes(), np.uint8)
sent = multihost_utils.broadcast_one_to_all(raw).tobytes()
if index == 0:
  print(
    int(seed),
    seed.dtype,
    float(rate),
    np.ravel(hashes).tolist(),
    int(np.frombuffer(sent, np.int64)[0]),
  )
EOF
export JAX_PLATFORMS=cpu
port=$(bin/python -c "import socket as s
with s.socket() as one:
  one.bind(('127.0.0.1', 0)); print(one.getsockname()[1])")
one=$(bin/python two.py 0 1 0)
bin/python two.py 1 2 "$port" 2> /dev/null &
two=$(bin/python two.py 0 2 "$port" 2> /dev/null | tail -n 1)
wait
bin/pip list 2> /dev/null | grep -E "^jax(lib)? "
echo "Process 0 sends 2**40 + 7 = 1099511627783 and 0.1; process n gathers"
echo "n * 2**32 + 5; the last number was sent as bytes."
echo "Expected, and seen with one process: $one"
echo "Seen with two processes:             $two"
[ "$one" = "1099511627783 int64 0.1 [5] 1099511627783" ] &&
  [ "$two" = "7 int32 0.10000000149011612 [5, 5] 1099511627783" ] ||
  { echo "The behaviour changed." >&2; exit 1; }
