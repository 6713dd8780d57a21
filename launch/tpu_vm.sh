#!/usr/bin/env bash
# Runs edlm on all hosts of a TPU slice: asks for it as a queued resource, waits, installs this checkout, starts.
#
#   launch/tpu_vm.sh --name=qwen3 --zone=us-central2-b --accelerator=v4-32 --runtime=tpu-ubuntu2204-base \
#     --bucket=my-bucket -- train --config=configs/qwen3_0_6b.py --workdir=/mnt/edlm/qwen3
#   launch/tpu_vm.sh logs --name=qwen3 --zone=us-central2-b
#
# What to do (start unless given; each needs --name and --zone):
#   start     everything; after a preemption, a crash or a lost connection the same command again. A slice that is
#             there is used, one that is gone is asked for anew, and edlm continues from its newest checkpoint
#   logs      follow the output of worker 0 (--worker=N, or all)
#   status    the state of the queued resource
#   stop      SIGTERM to edlm on every worker: a last checkpoint, then it ends; the slice stays
#   delete    give the slice back
#
#   --name=NAME          of queued resource and slice                                    (EDLM_NAME)
#   --project=PROJECT    of Google Cloud                           (EDLM_PROJECT, gcloud's own setting)
#   --zone=ZONE                                                                          (EDLM_ZONE)
#   --accelerator=TYPE   as in v5litepod-16                                              (EDLM_ACCELERATOR)
#   --runtime=VERSION    the machines' image                                  (EDLM_RUNTIME, tpu-ubuntu2204-base)
#   --capacity=KIND      spot, reserved or on-demand                                     (EDLM_CAPACITY, spot)
#   --bucket=BUCKET      mounted as /mnt/edlm on every host, for --workdir and data; with a hierarchical namespace, so
#                        that a checkpoint is renamed as one; empty: you mount what the hosts share      (EDLM_BUCKET)
#   --poll=SECONDS       between looks at the queue                                      (EDLM_POLL, 60)
#   --worker=N           whose output logs follows                                       (EDLM_WORKER, 0)
#   --dry-run            print the commands, as for a slice that is not there yet, and run none
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
ROOT=$(cd "$(dirname "$0")/.." && pwd)

NAME=${EDLM_NAME:-} PROJECT=${EDLM_PROJECT:-} ZONE=${EDLM_ZONE:-} ACCELERATOR=${EDLM_ACCELERATOR:-}
RUNTIME=${EDLM_RUNTIME:-tpu-ubuntu2204-base} CAPACITY=${EDLM_CAPACITY:-spot} BUCKET=${EDLM_BUCKET:-}
POLL=${EDLM_POLL:-60} WORKER=${EDLM_WORKER:-0} ACTION=start
parse "name project zone accelerator runtime capacity bucket poll worker" "$@"
need name zone
number poll
[[ $CAPACITY =~ ^(spot|reserved|on-demand)$ ]] || die "--capacity must be spot, reserved or on-demand, not '$CAPACITY'"
[[ $BUCKET =~ ^[a-z0-9._-]*$ ]] || die "--bucket is a name without gs://, not '$BUCKET'"

TPU=(gcloud compute tpus)
WHERE=(--zone="$ZONE")
[[ $PROJECT ]] && WHERE+=(--project="$PROJECT")
ARCHIVE=${TMPDIR:-/tmp}/edlm_jax-$NAME.tar.gz

queue() { run "${TPU[@]}" queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"; }
on_workers() { run "${TPU[@]}" tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --command="$2"; }

# The queued resource's state; empty if there is none.
state() {
  queue describe --format='value(state.state)' 2>/dev/null || true
}

create() {
  local options=(--node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME")
  [[ $CAPACITY == on-demand ]] || options+=("--$CAPACITY")
  queue create "${options[@]}"
}

# Until the slice is there. A queued resource that has lost its slice never gets it back: it is deleted and asked anew.
obtain() {
  local now
  if [[ $DRY_RUN ]]; then
    state
    create
    state
    return
  fi
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      '') create ;;
      SUSPENDED | FAILED)
        echo "$NAME is $now: asking for another" >&2
        queue delete --force --quiet
        ;;
      *)
        echo "$NAME: $now" >&2
        sleep "$POLL"
        ;;
    esac
  done
}

# This checkout, as it is, on every worker.
install() {
  run tar -C "$ROOT" --exclude-vcs --exclude='./.venv*' --exclude=./runs -czf "$ARCHIVE" .
  run "${TPU[@]}" tpu-vm scp "$ARCHIVE" "$NAME:edlm_jax.tar.gz" "${WHERE[@]}" --worker=all
  local unpack="mkdir -p edlm_jax && tar -C edlm_jax -xzf edlm_jax.tar.gz"
  on_workers all "$unpack && bash edlm_jax/launch/tpu_vm_host.sh $BUCKET"
}

# edlm in the background, once per worker: the lock is held by one that still runs. Without the braces the shell that
# changed directory would wait for it, and ssh for that shell.
start() {
  local call="flock --nonblock --no-fork ~/.edlm.lock ~/.edlm/bin/edlm"
  on_workers all "cd edlm_jax && { nohup $call $(quoted "${COMMAND[@]}") >> ~/edlm.log 2>&1 < /dev/null & sleep 1; }"
}

case $ACTION in
  start)
    need accelerator
    need_command
    obtain
    install
    start
    [[ $DRY_RUN ]] || echo "started; follow it with: launch/tpu_vm.sh logs $(quoted --name="$NAME" "${WHERE[@]}")" >&2
    ;;
  logs) on_workers "$WORKER" 'tail -n 100 -F edlm.log' ;;
  status) queue describe --format='value(state.state)' ;;
  stop) on_workers all "pkill -TERM -f '[.]edlm/bin/edlm'" ;;
  delete) queue delete --force --quiet ;;
  *) die "unknown word '$ACTION': one of start, logs, status, stop, delete" ;;
esac
