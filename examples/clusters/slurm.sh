#!/bin/bash
# The program under SLURM: one worker on each of two nodes. Pre-empted, or short of time, it saves and is queued again.
#
#   sbatch examples/clusters/slurm.sh FOLDER [STEPS]
#
# From the folder that holds examples/. FOLDER and the secret's file are on a disk that all nodes see.
#SBATCH --job-name=rings
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -u
export SWARMSTEP_SECRET_FILE=${SWARMSTEP_SECRET_FILE:-$HOME/.swarmstep-secret}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

# shellcheck disable=SC2016  # the variables are those of each task
srun bash -c \
    'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "${PYTHON:-python}" "$@"' - \
    examples/clusters/program.py "$@"
code=$?
echo "restart ${SLURM_RESTART_COUNT:-0}: ended with $code"
# Asked to stop (130), or a worker was lost: queued again, which an error of the program's own must not be for ever.
if [ $code -eq 130 ] || { [ $code -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
