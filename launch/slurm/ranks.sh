#!/usr/bin/env bash
# One task of train.sbatch's srun: starts the ranks of its node (LAUNCHER=deepspeed, torchrun) or is a rank (srun).
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
address=${MASTER_ADDR:-${nodes[0]}} port=${MASTER_PORT:-$((15000 + SLURM_JOB_ID % 14000))} # as in dist_imsr/launcher.py
case $LAUNCHER in
deepspeed)
  hostfile=$(mktemp)
  trap 'rm -f "$hostfile"' EXIT
  printf "%s slots=$RANKS_PER_NODE\n" "${nodes[@]}" >"$hostfile"
  start=(deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$SLURM_NODEID" --master_addr "$address"
    --master_port "$port" --log_level warning)
  ;;
torchrun)
  start=(torchrun --nnodes "${#nodes[@]}" --nproc-per-node "$RANKS_PER_NODE" --node-rank "$SLURM_NODEID"
    --master-addr "$address" --master-port "$port")
  ;;
srun) start=(python) ;;
esac

# A launcher would die of SIGUSR1 before its ranks have saved anything, or would not pass it on. So launchers ignore the
# signal, and this script sends it to the ranks, which install their own handlers. It repeats the signal, because a rank
# that is still starting has no handler yet. On SIGTERM, launchers exit by themselves and kill their ranks half a minute
# later. Launchers do not return the ranks' status 75, so it is restored here; 130 is the status of ranks that keep no
# checkpoints.
signalled=
process_tree() {
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do process_tree "$child"; done
}
trap 'signalled=1 SECONDS=0' USR1 TERM
(trap '' USR1 TERM && exec "${start[@]}" "$@") &
ranks=$! status=0
while kill -0 "$ranks" 2>/dev/null; do
  if [[ -z $signalled ]]; then
    wait "$ranks" || true # until a signal ends the wait
  else
    ((SECONDS % 5)) || kill -s USR1 $(process_tree "$ranks") 2>/dev/null || true
    sleep 1
  fi
done
wait "$ranks" || status=$?
if [[ -n $signalled ]] && ((status != 0 && status != 130)); then status=75; fi
exit "$status"
