#!/usr/bin/env bash
# Runs edlm as several processes on this machine, which form one mesh: to try what runs on many machines, or to give
# each GPU a process of its own.
#
#   launch/local.sh --processes=2 -- train --config=configs/quickstart.py --workdir=runs/two
#   launch/local.sh --processes=8 --device=gpu -- train --config=configs/qwen3_0_6b.py --workdir=runs/eight
#
#   --processes=N      how many processes                                          (EDLM_PROCESSES, 2)
#   --device=KIND      cpu or gpu                                                  (EDLM_DEVICE, cpu)
#   --devices-each=N   CPU devices, or GPUs, of each process                       (EDLM_DEVICES_EACH, 1)
#   --port=N           port of process 0, where the others find it                 (EDLM_PORT, any free one)
#   --edlm=COMMAND     how edlm is called                                          (EDLM_COMMAND, edlm)
#   --grace=SECONDS    when one has failed: how long the others may take to end    (EDLM_GRACE, 10)
#   --dry-run          print the commands and run none
#
# Lines on stderr begin with the number of their process; stdout is that of process 0. SIGTERM is passed on: all
# processes stop at the same step with one checkpoint, exit code 143, and the same command continues. When one of them
# fails the others are ended, and its exit code is that of the launcher; 137, where one was killed and others failed of it.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

PROCESSES=${EDLM_PROCESSES:-2} DEVICE=${EDLM_DEVICE:-cpu} DEVICES_EACH=${EDLM_DEVICES_EACH:-1} PORT=${EDLM_PORT:-}
EDLM=${EDLM_COMMAND:-edlm} GRACE=${EDLM_GRACE:-10} ACTION=start
parse "processes device devices-each port edlm grace" "$@"
[[ $ACTION == start ]] || die "unexpected word '$ACTION': edlm's arguments follow --"
number processes devices-each grace
[[ $DEVICE == cpu || $DEVICE == gpu ]] || die "--device must be cpu or gpu, not '$DEVICE'"
need_command

# A port below those that the kernel hands out by itself, on which nobody listens.
free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# The GPUs of process $1: consecutive ones.
gpus() { seq -s, $(($1 * DEVICES_EACH)) $(($1 * DEVICES_EACH + DEVICES_EACH - 1)); }

ADDRESS=127.0.0.1:${PORT:-$(free_port)}
read -r -a CALL <<<"$EDLM"
PIDS=() LABELS=()

# Starts process $1 in the background, or prints how.
start() {
  local call=(env "JAX_COORDINATOR_ADDRESS=$ADDRESS" "JAX_NUM_PROCESSES=$PROCESSES" "JAX_PROCESS_ID=$1")
  if [[ $DEVICE == cpu ]]; then
    call+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$DEVICES_EACH")
  else
    call+=("JAX_LOCAL_DEVICE_IDS=$(gpus "$1")")
  fi
  call+=("${CALL[@]}" "${COMMAND[@]}")
  if [[ $DRY_RUN ]]; then
    run "${call[@]}"
    return
  fi
  local lines
  exec {lines}> >(label "$1" >&2)
  LABELS+=($!)
  if (($1 == 0)); then
    "${call[@]}" 2>&"$lines"- &
  else
    "${call[@]}" >&"$lines"- 2>&1 &
  fi
  PIDS+=($!)
  exec {lines}>&-
}

# Puts the number of the process before its lines; outlives a SIGTERM or Ctrl-C, as there is more to read.
label() {
  trap '' TERM INT
  sed -u "s/^/[$1] /"
}

# Passes a signal on.
stop() {
  STOPPED=yes
  kill -TERM "${PIDS[@]}" 2>/dev/null || true
}

STOPPED=
trap stop TERM INT
for ((index = 0; index < PROCESSES; index++)); do start "$index"; done
[[ $DRY_RUN ]] && exit 0
[[ $STOPPED ]] && sleep 0.5 && stop # those that were started since, or were still this shell when it came

# Asks who is alive, as `wait -n` loses one of two that end together.
CODE=0 DEADLINE='' OUT_OF_TIME=''
while ((${#PIDS[@]})); do
  sleep 0.2 &
  wait $! || true # which a signal ends at once
  for place in "${!PIDS[@]}"; do
    kill -0 "${PIDS[place]}" 2>/dev/null && continue
    code=0
    wait "${PIDS[place]}" || code=$?
    unset "PIDS[place]"
    if ((code != 0 && code != 143)) && [[ ! $DEADLINE ]]; then
      DEADLINE=$((SECONDS + GRACE)) # not stopped but failed: the others wait for it in vain
    fi
    if ((code != 0 && CODE == 0)); then
      CODE=$code
    elif ((code == 137 && CODE != 143)) && [[ ! $OUT_OF_TIME ]]; then
      CODE=$code # killed by another hand, which is why the first one failed: both had ended before we looked
    fi
  done
  if [[ $DEADLINE ]] && ((SECONDS > DEADLINE && ${#PIDS[@]})); then
    OUT_OF_TIME=yes
    kill -KILL "${PIDS[@]}" 2>/dev/null || true
  fi
done
# The last lines, which say why it failed, may still be on their way. What a process has left behind may never end them.
for _ in {1..20}; do
  kill -0 "${LABELS[@]}" 2>/dev/null || break
  sleep 0.1
done
exit "$CODE"
