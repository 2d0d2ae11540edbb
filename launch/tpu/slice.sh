#!/bin/bash
# A slice, a run on all its workers, and a new slice if it is taken away.
set -u
name={{ job.name | quoted }}
zone={{ job.zone | quoted }}

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
{% if job.keep %}
    echo "using the slice $name that is there" >&2
  else
{% else %}
    echo "there is a queued resource $name already; take another --name, or delete it" >&2
    exit 1
  else
    # From here on there may be something of ours to delete.
    trap remove EXIT
{% endif %}
    queued create --node-id="$name" --accelerator-type={{ job.type | quoted }} \
      --runtime-version={{ job.version | quoted }}{{ " --spot" if job.spot }} || exit
  fi
  while :; do
    case "$(state)" in
      ACTIVE) break ;;
      SUSPENDING | SUSPENDED) return 1 ;;
      FAILED | UNKNOWN) echo "there is no slice to be had: $(state)" >&2; exit 1 ;;
    esac
    pause
  done
  gcloud compute tpus tpu-vm scp {{ job.wheel | quoted }} "$name": --zone="$zone" --worker=all &&
    workers {{ install | quoted }} || { [ "$(state)" != ACTIVE ] || exit 1; return 1; }
}

trap 'exit 75' INT TERM HUP
made=
status=1
for start in $(seq 0 {{ job.max_restarts }}); do
  if [ -z "$made" ]; then
    if [ "$start" -gt 0 ]; then remove; fi
    make || continue
    made=1
  fi
  workers {{ run | quoted }}
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
