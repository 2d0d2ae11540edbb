#!/bin/bash
# A slice, a run on all its workers, and a new slice if it is taken away.
set -u
name=pod
zone=us-west4-a

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
workers() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
pause() { sleep "${UNLEARNING_JAX_POLL_S:-30}"; }

# What the cloud says. One answer that does not come is no slice that is lost.
state() {
  local found=
  for _ in 1 2 3 4 5; do
    found=$(queued describe --format='value(state.state)') && break
    pause
  done
  echo "${found:-UNKNOWN}"
}

remove() {
  # A second Ctrl-C must not break this off.
  trap '' INT TERM HUP
  queued delete --force --quiet
  trap 'exit 75' INT TERM HUP
}

make() {
  if queued describe > /dev/null 2>&1; then
    echo "there is a queued resource $name already; take another --name, or delete it" >&2
    exit 1
  else
    # From here on there may be something of ours to delete.
    trap remove EXIT
    queued create --node-id="$name" --accelerator-type=v5litepod-16 \
      --runtime-version=v2-alpha-tpuv5-lite --spot || exit
  fi
  while :; do
    case "$(state)" in
      ACTIVE) break ;;
      SUSPENDING | SUSPENDED) return 1 ;;
      FAILED | UNKNOWN) echo "there is no slice to be had: $(state)" >&2; exit 1 ;;
    esac
    pause
  done
  gcloud compute tpus tpu-vm scp dist/unlearning_jax-1-py3-none-any.whl "$name": --zone="$zone" --worker=all &&
    workers 'python3 -m pip install --quiet --user uv && { [ -e ~/run/bin/python ] || ~/.local/bin/uv venv --quiet --python 3.12 ~/run; } && ~/.local/bin/uv pip install --quiet --python ~/run/bin/python ~/unlearning_jax-1-py3-none-any.whl'"'"'[tpu]'"'"'' || { [ "$(state)" != ACTIVE ] || exit 1; return 1; }
}

trap 'exit 75' INT TERM HUP
made=
status=1
for start in $(seq 0 10); do
  if [ -z "$made" ]; then
    if [ "$start" -gt 0 ]; then remove; fi
    make || continue
    made=1
  fi
  workers 'flock -w 600 -E 75 ~/run.lock ~/run/bin/python -m unlearning_jax.launch.main erase --config=erase_uce:tiny,name=star '"'"'--workdir=/shared/a b'"'"' --distributed'
  status=$?
  # The run has ended: well, with an error, with failed parts, with a verdict.
  case "$status" in 0 | 1 | 3 | 4) break ;; esac
  # A slice that is taken away is ACTIVE for a while yet.
  for _ in 1 2 3 4 5 6; do
    if [ "$(state)" != ACTIVE ]; then made=; break; fi
    pause
  done
  echo "the run was cut off; it goes on" >&2
done
exit "$status"
