#!/usr/bin/env bash
# One task of train.sbatch's srun: starts the ranks of its node (LAUNCHER=deepspeed, torchrun), or is one (srun).
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
address=${MASTER_ADDR:-${nodes[0]}} port=${MASTER_PORT:-$((15000 + SLURM_JOB_ID % 14000))} # as dist_imsr/launcher.py
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

# Launchers would die of a signal before their ranks have saved anything, or pass none on: they ignore what they can, and
# the ranks, which set handlers of their own, are told from here, again and again: a rank that is still starting hears
# nothing. SIGTERM is another matter, of which launchers make their own end, and of their ranks half a minute later. What a
# launcher makes of the ranks' status 75 is put right; 130 is that of ranks that keep no checkpoints.
told=
family() {
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do family "$child"; done
}
trap 'told=1 SECONDS=0' USR1 TERM
(trap '' USR1 TERM && exec "${start[@]}" "$@") &
ranks=$! status=0
while kill -0 "$ranks" 2>/dev/null; do
  if [[ -z $told ]]; then
    wait "$ranks" || true # until a signal ends the wait
  else
    ((SECONDS % 5)) || kill -s USR1 $(family "$ranks") 2>/dev/null || true
    sleep 1
  fi
done
wait "$ranks" || status=$?
if [[ -n $told ]] && ((status != 0 && status != 130)); then status=75; fi
exit "$status"
