#!/usr/bin/env bash
# One worker a node, each with all of the node's GPUs: sbatch slurm.sh PACKED RUN [--epochs 100 …]
# Five minutes before its time is over the job is told to stop: the run is saved, and the job put back into the queue to go on.
#SBATCH --job-name=p2phd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

here=${P2PHD_CLUSTER:-$SLURM_SUBMIT_DIR/examples/cluster}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export here hosts_line="${hosts[*]}"
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from sbatch by itself.

# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 bash -c '
    TF_CONFIG=$(python "$here/tf_config.py" "$SLURM_PROCID" $hosts_line) exec p2phd train "$@" --resume' p2phd "$@"
code=$?

if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
