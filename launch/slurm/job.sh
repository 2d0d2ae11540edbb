#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --nodes={{ job.nodes }}
#SBATCH --ntasks-per-node={{ job.tasks }}
{% if job.cpus_per_task %}
#SBATCH --cpus-per-task={{ job.cpus_per_task }}
{% endif %}
{% if job.gpus_per_node %}
#SBATCH --gpus-per-node={{ job.gpus_per_node }}
{% endif %}
{% if job.time %}
#SBATCH --time={{ job.time }}
{% endif %}
{% if job.partition %}
#SBATCH --partition={{ job.partition }}
{% endif %}
{% if job.array %}
#SBATCH --array={{ job.array }}
#SBATCH --output=%x-%A_%a.log
{% else %}
#SBATCH --output=%x-%j.log
{% endif %}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@{{ job.notice }}
{% for option in job.sbatch %}
#SBATCH --{{ option }}
{% endfor %}
{% if job.setup %}
{{ job.setup }}
{% endif %}

{% if job.cpus_per_task %}
# srun does not take it from the job.
export SRUN_CPUS_PER_TASK={{ job.cpus_per_task }}
{% endif %}
# A process that ends early, or fails, leaves the others a minute.
srun --wait=60 {{ command }} &
run=$!
# SLURM asks this script before the limit; srun hands it on to every process.
asked=
trap 'asked=1; kill -USR2 "$run"' USR2
while :; do
  wait "$run"
  status=$?
  # The signal ends the wait, and not the run.
  kill -0 "$run" 2> /dev/null || break
done

# 75: a signal stopped the run, and its record is whole. Of several processes
# some are killed where they wait for those that have stopped. The job waits for
# its next turn, and goes on from there.
if [ "$status" -eq 75 ] || { [ "$asked" ] && [ "$status" -gt 75 ]; }; then
  if [ "${SLURM_RESTART_COUNT:-0}" -lt {{ job.max_restarts }} ]; then
    # The number alone would be all jobs of an array.
    own=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "${own:-$SLURM_JOB_ID}"
  fi
fi
exit "$status"
