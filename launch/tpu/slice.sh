#!/bin/bash
# A slice, a run on all its workers, and a new slice if it is taken away.
set -u
name={{ job.name | quoted }}
zone={{ job.zone | quoted }}

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
workers() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
state() { queued describe --format='value(state.state)'; }
remove() { queued delete --force --quiet; }

make() {
  queued create --node-id="$name" --accelerator-type={{ job.type | quoted }} \
    --runtime-version={{ job.version | quoted }}{{ " --spot" if job.spot }} || exit
{% if not job.keep %}
  # From here on there is something of ours to delete.
  trap remove EXIT
{% endif %}
  local now=WAITING_FOR_RESOURCES
  until [ "$now" = ACTIVE ]; do
    case "$now" in FAILED|SUSPENDING|SUSPENDED) echo "the slice is $now" >&2; return 1 ;; esac
    sleep "${UNLEARNING_JAX_POLL_S:-30}"
    now=$(state) || return
  done
  gcloud compute tpus tpu-vm scp {{ job.wheel | quoted }} "$name": --zone="$zone" --worker=all || return
  workers {{ install | quoted }}
}

trap 'exit 75' INT TERM
for start in $(seq 0 {{ job.max_restarts }}); do
  if [ "$start" -gt 0 ]; then remove; fi
  make && workers {{ run | quoted }}
  status=$?
  # Whatever failed while the slice stands is the run's own failure.
  if [ "$status" -eq 0 ] || [ "$(state)" = ACTIVE ]; then break; fi
  echo "the slice is gone; the run goes on with a new one" >&2
done
exit "$status"
