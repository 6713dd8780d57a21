#!/usr/bin/env bash
# Runs edlm on GPU nodes under Slurm, one process per GPU.
#
#   launch/slurm.sh --name=qwen3 --nodes=2 --gpus=8 --partition=a100 --time=24:00:00 \
#     -- train --config=configs/qwen3_0_6b.py --workdir=/shared/runs/qwen3
#   launch/slurm.sh logs --name=qwen3
#
# What to do (start unless given; each needs --name):
#   start     queue the job. After the time limit, a preemption or a crash the same command again: edlm continues from
#             its newest checkpoint. Jobs of one name run one after the other, so several can be queued ahead
#   logs      follow its output
#   status    its state in the queue
#   stop      SIGTERM: a last checkpoint, then it ends
#   delete    cancel it, without one
#
#   --name=NAME        of the job                                                     (EDLM_NAME)
#   --nodes=N                                                                         (EDLM_NODES, 1)
#   --gpus=N           of each node                                                   (EDLM_GPUS, 8)
#   --cpus=N           CPU cores of each process                                      (EDLM_CPUS, 8)
#   --time=LIMIT       of the job, as hh:mm:ss                                        (EDLM_TIME, 24:00:00)
#   --notice=SECONDS   SIGTERM this long before the limit, for the last checkpoint    (EDLM_NOTICE, 300)
#   --partition=NAME                                                                  (EDLM_PARTITION, Slurm's default)
#   --account=NAME                                                                    (EDLM_ACCOUNT, Slurm's default)
#   --edlm=COMMAND     how edlm is called on a node, as in /shared/venv/bin/edlm      (EDLM_COMMAND, edlm)
#                      or inside the image of: docker build --target=cuda --tag=IMAGE .
#   --logdir=DIR       for NAME.log, on a disk that the nodes share                   (EDLM_LOGDIR, slurm-logs)
#   --dry-run          print the commands and run none
#
# The work directory must be on a disk that the nodes share. jax finds the other processes from Slurm's variables.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

NAME=${EDLM_NAME:-} NODES=${EDLM_NODES:-1} GPUS=${EDLM_GPUS:-8} CPUS=${EDLM_CPUS:-8} TIME=${EDLM_TIME:-24:00:00}
NOTICE=${EDLM_NOTICE:-300} PARTITION=${EDLM_PARTITION:-} ACCOUNT=${EDLM_ACCOUNT:-} EDLM=${EDLM_COMMAND:-edlm}
LOGDIR=${EDLM_LOGDIR:-slurm-logs} ACTION=start
parse "name nodes gpus cpus time notice partition account edlm logdir" "$@"
need name
number nodes gpus cpus notice

start() {
  local options=(
    --job-name="$NAME" --dependency=singleton --nodes="$NODES" --ntasks-per-node="$GPUS" --cpus-per-task="$CPUS"
    # All GPUs are visible to all processes of a node, and jax takes the one of its local rank: with Slurm's own
    # binding each process would see one GPU, numbered 0, and look for another.
    --gpus-per-node="$GPUS" --gpu-bind=none
    --time="$TIME" --signal="TERM@$NOTICE" --requeue --open-mode=append --output="$LOGDIR/$NAME.log"
  )
  local call step
  read -r -a call <<<"$EDLM"
  [[ $PARTITION ]] && options+=(--partition="$PARTITION")
  [[ $ACCOUNT ]] && options+=(--account="$ACCOUNT")
  run mkdir -p "$LOGDIR"
  # srun does not take over --cpus-per-task. When one process fails the others wait in vain: they are ended.
  step="exec srun --cpus-per-task=$CPUS --kill-on-bad-exit=1 --label --gpu-bind=none $(quoted "${call[@]}" "${COMMAND[@]}")"
  run sbatch "${options[@]}" --wrap="$step"
}

case $ACTION in
  start)
    need_command
    start
    ;;
  logs) run tail -n 100 -F "$LOGDIR/$NAME.log" ;;
  status) run squeue --me --name="$NAME" --long ;;
  stop) run scancel --me --name="$NAME" --signal=TERM ;;
  delete) run scancel --me --name="$NAME" ;;
  *) die "unknown word '$ACTION': one of start, logs, status, stop, delete" ;;
esac
