#!/bin/bash
#SBATCH --job-name=erase
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --partition=gpu
#SBATCH --array=0-9%4
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
#SBATCH --mem=64G
module load cuda

# A process that ends early, or fails, leaves the others a minute.
srun --wait=60 /opt/venv/bin/python -m unlearning_jax.launch.main erase --config=erase_uce:tiny,name=star '--workdir=/shared/a b' '--config.seed='"$SLURM_ARRAY_TASK_ID"'' --distributed &
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
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    # The number alone would be all jobs of an array.
    own=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "${own:-$SLURM_JOB_ID}"
  fi
fi
exit "$status"
