#!/usr/bin/env bash
# Checks and measures this project on a machine with a CUDA device, part by part; each part writes its results at its end.
#
#   launch/gpu_check.sh [--device cpu] OUT [PART ...]
#
# Parts, in their default order: doctor, quick, tests, figures, waits, span. The others still run after a part that
# fails or exceeds its time limit; OUT/summary.txt has a line for each.
set -u
cd "$(dirname "$0")/.."
device=cuda
if [[ ${1:-} == --device ]]; then device=$2; shift 2; fi
out=${1:?usage: launch/gpu_check.sh [--device cpu] OUT [PART ...]}; shift
mkdir -p "$out"; out=$(cd "$out" && pwd)
data=${DATA:-/tmp/dist_imsr_data}
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1
status=0

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  echo "== $name: $*"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  ((code)) && status=1
  echo "$name: status $code, $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
  ((code)) && tail -n 25 "$out/$name.log"
}

doctor() { part doctor 90 python3 launch/doctor.py; cat "$out/doctor.log"; }
quick() { part quick 150 python3 launch/bench.py all --device "$device" --quick --json "$out/quick.json"; }
tests() { # files with tests that need a device; one worker each, so that few processes share the device
  local files mark=cuda
  [[ $device == cuda ]] || mark='not slurm'
  files=$(grep -rlE 'pytest.mark.cuda|on_devices\(|def test.*\bdevice\b' tests --include='test_*.py')
  part tests 280 python3 -m pytest -m "$mark" -q -n "${WORKERS:-6}" --dist loadfile -p no:cacheprovider \
    --continue-on-collection-errors $files
  tail -n 60 "$out/tests.log" | cut -c 1-300
}
figures() {
  part figures_1 200 python3 launch/bench.py all --device "$device" --parts '[train, rank, kernel]' --json "$out/figures_1.json"
  part figures_2 150 python3 launch/bench.py all --device "$device" --parts '[store, checkpoint, strategies]' \
    --json "$out/figures_2.json"
}
drift() {
  [[ -e $data/drift/dataset.json ]] ||
    part drift_data 120 python3 launch/prepare.py --config configs/drift_data.yaml --output "$data/drift"
}
waits() { # where the host waits for the device, by line of code; seconds by phase; the cost of deterministic sums
  local train=(--config configs/drift.yaml --data.path "$data/drift" --overwrite true --training.epochs 1
    --training.incremental_epochs 1)
  local before='import runpy, sys, torch
if sys.argv[1] == "waits": torch.cuda.set_sync_debug_mode("warn")
del sys.argv[:2]
runpy.run_path("launch/train.py", run_name="__main__")'
  drift
  part profile 100 python3 launch/train.py "${train[@]}" --run_dir "$data/profile" --profile true
  cp "$data/profile/profile/phases.md" "$out/"
  [[ $device == cuda ]] && part waits 100 python3 -W always -c "$before" waits train.py "${train[@]}" --run_dir "$data/waits"
  grep -oE '[^ ]*\.py:[0-9]+: UserWarning: called a synchronizing' "$out/waits.log" | sort | uniq -c | sort -rn \
    >"$out/waits.txt"
  head -n 40 "$out/waits.txt"
  for order in true false; do
    part "order_$order" 100 python3 launch/train.py "${train[@]}" --run_dir "$data/$order" --training.deterministic "$order"
    grep -o '"train_seconds": [0-9.]*' "$data/$order/metrics.jsonl" | tee "$out/deterministic_$order.txt"
  done
}
span() {
  local waited=0
  while [[ ! -e $data/scale_taobao/dataset.json ]] && ((waited < 120)); do sleep 2; waited=$((waited + 2)); done
  part span 280 python3 launch/bench.py all --device "$device" --parts '[span]' --span.data "$data/scale_taobao" \
    --span.bases '[comirec_dr]' --json "$out/span_dr.json"
}

(($#)) || set -- doctor quick tests figures waits span
for name; do "$name"; done
exit "$status"
