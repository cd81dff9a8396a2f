#!/usr/bin/env bash
# Checks and measures this project on a machine with a CUDA device, part by part; each part writes its results at its end.
#
#   launch/gpu_check.sh [--device cpu] OUT [PART ...]
#
# By default doctor, tests, quick and figures, in this order, within 10 minutes; span (5 minutes) and waits are run when
# they are named. Each part writes its results to OUT when it ends, and a line to OUT/summary.txt; the next one runs even
# if it fails or exceeds its time limit. With --device cpu, limits are ten times as long, and figures have tiny sizes.
set -u
cd "$(dirname "$0")/.."
device=cuda
if [[ ${1:-} == --device ]]; then device=$2; shift 2; fi
[[ $device == cpu || $device == cuda ]] || { echo "gpu_check.sh: --device $device: must be cpu or cuda" >&2; exit 2; }
out=${1:?usage: launch/gpu_check.sh [--device cpu] OUT [PART ...]}; shift
(($#)) || set -- doctor tests quick figures
for name; do
  [[ $name =~ ^(doctor|tests|quick|figures|waits|span)$ ]] || { echo "gpu_check.sh: $name is no part" >&2; exit 2; }
done
mkdir -p "$out"; out=$(cd "$out" && pwd)
data=${DATA:-/tmp/dist_imsr_data}
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1
status=0

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  [[ $device == cuda ]] || limit=$((10 * limit))
  echo "== $name: $*"
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  ((code)) && status=1
  echo "$name: status $code, $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
  ((code)) && tail -n 25 "$out/$name.log"
}

doctor() { part doctor 50 python3 launch/doctor.py; cat "$out/doctor.log"; }
tests() { # of files with tests that need a device, those or their cases for the CPU; one worker for each file
  local files cores chosen=(-m cuda)
  [[ $device == cuda ]] || chosen=(-k cpu)
  files=$(grep -rlE 'pytest.mark.cuda|on_devices\(|def test.*\bdevice\b' tests --include='test_*.py')
  cores=$(nproc)
  part tests 170 python3 -m pytest "${chosen[@]}" -q -n "${WORKERS:-$((cores < 11 ? cores : 11))}" --dist loadfile \
    -p no:cacheprovider --continue-on-collection-errors $files
  tail -n 60 "$out/tests.log" | cut -c 1-300
}
quick() { part quick 90 python3 launch/bench.py all --device "$device" --quick --json "$out/quick.json"; }
figures() {
  local all=(python3 launch/bench.py all --device "$device") first='[train, rank, kernel]'
  [[ $device == cuda ]] || { all+=(--quick); first='[train, rank]'; }
  part figures_1 140 "${all[@]}" --parts "$first" --json "$out/figures_1.json"
  part figures_2 140 "${all[@]}" --parts '[store, checkpoint, strategies]' --json "$out/figures_2.json"
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
  if [[ $device == cuda ]]; then
    part waits 100 python3 -W always -c "$before" waits train.py "${train[@]}" --run_dir "$data/waits"
    grep -oE '[^ ]*\.py:[0-9]+: UserWarning: called a synchronizing' "$out/waits.log" | sort | uniq -c | sort -rn \
      >"$out/waits.txt"
    head -n 40 "$out/waits.txt"
  fi
  for order in true false; do
    part "order_$order" 100 python3 launch/train.py "${train[@]}" --run_dir "$data/$order" --training.deterministic "$order"
    grep -o '"train_seconds": [0-9.]*' "$data/$order/metrics.jsonl" | tee "$out/deterministic_$order.txt"
  done
}
span() {
  [[ -e $data/scale_taobao/dataset.json ]] ||
    part span_data 120 python3 launch/prepare.py --config configs/scale_taobao.yaml --output "$data/scale_taobao"
  part span 180 python3 launch/bench.py all --device "$device" --parts '[span]' --span.data "$data/scale_taobao" \
    --span.bases '[comirec_dr]' --json "$out/span_dr.json"
}

for name; do "$name"; done
exit "$status"
