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
#SBATCH --signal=USR2@120
#SBATCH --mem=64G
module load cuda

# A process that ends early, or fails, leaves the others a minute.
srun --wait=60 /opt/venv/bin/python -m unlearning_jax.launch.main erase --config=erase_uce:tiny,name=star '--workdir=/shared/a b' --distributed
status=$?

# 75: a signal stopped the run, and its record is whole. The job waits for its
# next turn, and goes on from there.
if [ "$status" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
