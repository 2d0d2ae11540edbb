#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --nodes={{ job.nodes }}
#SBATCH --ntasks-per-node={{ job.tasks }}
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
#SBATCH --signal=USR2@{{ job.notice }}
{% for option in job.sbatch %}
#SBATCH --{{ option }}
{% endfor %}
{% if job.setup %}
{{ job.setup }}
{% endif %}

# A process that ends early, or fails, leaves the others a minute.
srun --wait=60 {{ command }}
status=$?

# 75: a signal stopped the run, and its record is whole. The job waits for its
# next turn, and goes on from there.
if [ "$status" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt {{ job.max_restarts }} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
