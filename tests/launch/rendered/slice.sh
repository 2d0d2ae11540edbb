#!/bin/bash
# A slice, a run on all its workers, and a new slice if it is taken away.
set -u
name=pod
zone=us-west4-a

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
workers() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
state() { queued describe --format='value(state.state)'; }
remove() { queued delete --force --quiet; }

make() {
  queued create --node-id="$name" --accelerator-type=v5litepod-16 \
    --runtime-version=v2-alpha-tpuv5-lite --spot || exit
  # From here on there is something of ours to delete.
  trap remove EXIT
  local now=WAITING_FOR_RESOURCES
  until [ "$now" = ACTIVE ]; do
    case "$now" in FAILED|SUSPENDING|SUSPENDED) echo "the slice is $now" >&2; return 1 ;; esac
    sleep "${UNLEARNING_JAX_POLL_S:-30}"
    now=$(state) || return
  done
  gcloud compute tpus tpu-vm scp dist/unlearning_jax-1-py3-none-any.whl "$name": --zone="$zone" --worker=all || return
  workers 'python3 -m venv ~/run && ~/run/bin/pip install --quiet ~/unlearning_jax-1-py3-none-any.whl'"'"'[tpu]'"'"''
}

trap 'exit 75' INT TERM
for start in $(seq 0 10); do
  if [ "$start" -gt 0 ]; then remove; fi
  make && workers '~/run/bin/python -m unlearning_jax.launch.main erase --config=erase_uce:tiny,name=star '"'"'--workdir=/shared/a b'"'"' --distributed'
  status=$?
  # Whatever failed while the slice stands is the run's own failure.
  if [ "$status" -eq 0 ] || [ "$(state)" = ACTIVE ]; then break; fi
  echo "the slice is gone; the run goes on with a new one" >&2
done
exit "$status"
