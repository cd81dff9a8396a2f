# Sourced by the other scripts here: the working directory and Python of a job, and how it stops and resumes.
set -euo pipefail

cd "${DIST_IMSR_HOME:-$SLURM_SUBMIT_DIR}"
environment=${DIST_IMSR_ENVIRONMENT:-.venv/bin/activate}
if [[ ! -r $environment ]]; then
  echo "$SLURM_JOB_NAME: $environment cannot be read in $PWD: run make setup, or set DIST_IMSR_ENVIRONMENT" >&2
  exit 2
fi
set +u # activation scripts of modules and conda read unset variables
source "$(realpath "$environment")"
set -u
if ! python -c 'import importlib.util as a, sys; sys.exit(not (a.find_spec("torch") and a.find_spec("deepspeed")))'; then
  echo "$SLURM_JOB_NAME: $environment gives a Python without torch or deepspeed: $(command -v python)" >&2
  exit 2
fi

# Runs a command that resumes when it is started again, and requeues the job if the command was stopped.
#
# Slurm sends SIGUSR1 to this script when the time is nearly over (--signal); a user can do so to free the nodes
# (scancel --signal=USR1 --batch). The signal is passed on; the command saves its state and exits with status 75.
run_until_signal() {
  local signalled= status=0
  "$@" &
  local command=$!
  trap 'signalled=1; kill -s USR1 "$command" 2>/dev/null || true' USR1 TERM
  while kill -0 "$command" 2>/dev/null; do wait "$command" || true; done # a signal ends the wait, not the command
  wait "$command" || status=$?
  trap - USR1 TERM
  if ((status != 75)) && [[ -z $signalled || $status == 0 || $status == 130 ]]; then return "$status"; fi
  # A task of an array has two numbers; the first alone would mean all tasks.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} state
  job=${job:-$SLURM_JOB_ID} state=$(squeue --noheader --jobs "$job" --format %T 2>/dev/null) || true
  if [[ -n $state && $state != RUNNING ]]; then return "$status"; fi # a cancelled job must not be requeued
  echo "$SLURM_JOB_NAME: stopped; the job is requeued and resumes when it starts again"
  scontrol requeue "$job" ||
    echo "$SLURM_JOB_NAME: this cluster cannot requeue the job: submit the same command again to resume" >&2
  return "$status"
}
