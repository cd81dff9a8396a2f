# Sourced by the scripts beside it: where a job works, with which Python, and how it ends and goes on.
set -euo pipefail

cd "${DIST_IMSR_HOME:-$SLURM_SUBMIT_DIR}"
environment=${DIST_IMSR_ENVIRONMENT:-.venv/bin/activate}
if [[ ! -r $environment ]]; then
  echo "$SLURM_JOB_NAME: $environment cannot be read in $PWD: run make setup, or set DIST_IMSR_ENVIRONMENT" >&2
  exit 2
fi
set +u # activation scripts of modules and conda read what is not set
source "$(realpath "$environment")"
set -u
if ! python -c 'import importlib.util as a, sys; sys.exit(not (a.find_spec("torch") and a.find_spec("deepspeed")))'; then
  echo "$SLURM_JOB_NAME: $environment gives a Python without torch or deepspeed: $(command -v python)" >&2
  exit 2
fi

# Runs a command that goes on when it is started again, and puts the job back into the queue where it was stopped.
#
# Slurm tells this script that the time is nearly over (SIGUSR1, by --signal), or a user does that the job is to make
# way (scancel --signal=USR1 --batch). The command hears of it, saves its state and ends with status 75.
until_told() {
  local told= status=0
  "$@" &
  local command=$!
  trap 'told=1; kill -s USR1 "$command" 2>/dev/null || true' USR1 TERM
  while kill -0 "$command" 2>/dev/null; do wait "$command" || true; done # a signal ends the wait, not the command
  wait "$command" || status=$?
  trap - USR1 TERM
  if ((status != 75)) && [[ -z $told || $status == 0 || $status == 130 ]]; then return "$status"; fi
  # One task of an array goes by two numbers: the first of them is all tasks where it stands alone.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} state
  job=${job:-$SLURM_JOB_ID} state=$(squeue --noheader --jobs "$job" --format %T 2>/dev/null) || true
  if [[ -n $state && $state != RUNNING ]]; then return "$status"; fi # who cancels a job does not want it back
  echo "$SLURM_JOB_NAME: stopped; the job goes back into the queue and goes on when it starts again"
  scontrol requeue "$job" ||
    echo "$SLURM_JOB_NAME: this cluster does not put it back: submit the same command again, and it goes on" >&2
  return "$status"
}
