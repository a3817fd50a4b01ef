#!/usr/bin/env bash
# Everything that waits for a GPU, in less than eight minutes on one card.
#
#   benchmarks/gpu.sh                        # on the machine with the GPU, from the checkout
#   benchmarks/gpu.sh --rehearse             # the same on a CPU with tiny sizes: do all parts run?
#   benchmarks/gpu.sh --only tests,half      # some of the parts
#
# The parts are: machine, tests, step-640, step-800, half. Each has a time limit. If a part fails, the next one begins
# all the same. The end says which failed, and the exit code is then 1. Results go to benchmarks/results/gpu/, or to the
# folder $OUT: summary.md, and a log for each part. With AUTOTIMM_SHARED_DATA, `half` also takes the photos in its folder
# fruits_nuts.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${AUTOTIMM_PYTHON:-.venv/bin/python}
out=${OUT:-benchmarks/results/gpu}
parts=machine,tests,step-640,step-800,half
rehearse=
while (($#)); do
  case $1 in
    --rehearse) rehearse=1 ;;
    --only) parts=${2:?--only needs names of parts, such as tests,half} && shift ;;
    *) echo "error: $1 is unknown: see the head of benchmarks/gpu.sh" >&2 && exit 2 ;;
  esac
  shift
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
summary=$out/summary.md
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

main() {
  local failed=() part limit begin
  for part in ${parts//,/ }; do limit_of "$part" >/dev/null || exit 2; done
  echo "# Measured by benchmarks/gpu.sh${rehearse:+: a rehearsal on a CPU, whose figures mean nothing}" >"$summary"
  for part in ${parts//,/ }; do
    limit=$(limit_of "$part")
    echo "== $part (at most $limit s)" >&2
    printf '\n## %s\n\n' "$part" >>"$summary"
    begin=$SECONDS
    if run_part "$part" "$limit" >"$out/$part.log" 2>&1; then
      cat "$out/$part.md" >>"$summary"
    else
      failed+=("$part")
      printf 'Failed, or took longer than %s s: the end of %s.log is\n\n' "$limit" "$part" >>"$summary"
      tail -n 15 "$out/$part.log" | sed 's/^/    /' >>"$summary"
    fi
    printf '\n%s s.\n' "$((SECONDS - begin))" >>"$summary"
  done
  cat "$summary"
  if ((${#failed[@]})); then
    echo "failed: ${failed[*]}; see $out" >&2
    exit 1
  fi
}

# Seconds. Together they are less than eight minutes.
limit_of() {
  local factor=1
  [ -n "$rehearse" ] && factor=10
  case $1 in
    machine) echo $((10 * factor)) ;;
    tests) echo $((90 * factor)) ;;
    step-640 | step-800) echo $((120 * factor)) ;;
    half) echo $((135 * factor)) ;;
    *) echo "error: there is no part $1: take some of machine,tests,step-640,step-800,half" >&2 && return 1 ;;
  esac
}

# Runs this script again for one part, because timeout needs a program. What the part has to say goes to its .md file.
run_part() {
  rm -f "$out/$1.md"
  GPU_PART=$1 OUT=$out timeout --kill-after=10 "$2" bash benchmarks/gpu.sh ${rehearse:+--rehearse} &&
    [ -s "$out/$1.md" ]
}

part_machine() {
  "$python" - >"$out/machine.md" <<'PYTHON' || return
import os, platform, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["no GPU"]
model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
print(f"{', '.join(names)}; {model[0] if model else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB")
print(f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
PYTHON
  if [ -z "$rehearse" ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv >>"$out/machine.md"
  fi
}

# The tests marked gpu, also those marked slow. Most of their time is compilation, so several run at once.
part_tests() {
  local workers=$(($(nproc) < 8 ? $(nproc) : 8)) chosen=(tests)
  [ -n "$rehearse" ] && chosen=(tests/models/test_bilinear.py) && workers=0
  "$python" -m pytest -q -m gpu -n "$workers" -p no:cacheprovider "${chosen[@]}"
  local code=$?
  tail -n 1 "$out/tests.log" >"$out/tests.md"
  return $code
}

# A step beside torchvision's detectors: speed and peak memory, and what ours spends its time on, the largest part first.
part_step() {
  local options=(--size "$1" --precision 16-mixed --batch 16 --steps 10 --rounds 3 --patience 105)
  local contestants="ours compiled,ours,Mask R-CNN,FCOS"
  [ -n "$rehearse" ] && options=(--quick --profile) contestants="ours,FCOS"
  "$python" benchmarks/train_step.py "${options[@]}" --only "$contestants" | tee "$out/step-$1.md"
  [ "${PIPESTATUS[0]}" = 0 ] && ! grep ' failed: ' "$out/step-$1.md"
}

# What AP loses with 16 bits: a model learns painted images, and photos if there are some, and finds them with and
# without --half.
part_half() {
  local train=600 epochs=3 accelerator=gpu precision=16-mixed
  work=$(mktemp -d) || return # not local, because the trap runs after the function
  trap 'rm -rf "$work"' EXIT
  [ -n "$rehearse" ] && train=8 epochs=1 accelerator=cpu precision=32-true
  "$python" -m autotimm.data.synthetic "$work/images" --seed 0 --train $train --val 40 --size '[192, 192]' || return
  echo "| images | numbers | box AP | mask AP |
| --- | ---: | ---: | ---: |" >"$work/half.md"
  compare_half painted launch/demo.yaml "$work/images" val $epochs || return
  if [ -n "${AUTOTIMM_SHARED_DATA:-}" ]; then
    [ -n "$rehearse" ] || epochs=100
    # A dozen photos: measured on those that the model has learnt, where its AP is high.
    compare_half fruits_nuts launch/small_cpu.yaml "$AUTOTIMM_SHARED_DATA/fruits_nuts" train $epochs \
      --data.augmentation_preset '{"flip": 0.5}' || return
  fi
  mv "$work/half.md" "$out/half.md"
}

compare_half() {
  local name=$1 config=$2 data=$3 split=$4 epochs=$5 half images
  shift 5 # what is left are further flags of fit
  local checkpoint=$work/$name/version_0/checkpoints/last.ckpt
  "$python" -m autotimm fit --config "$config" --data "$data" --epochs "$epochs" --out "$work/$name/" \
    --trainer.accelerator $accelerator --trainer.precision $precision --trainer.limit_val_batches 0 \
    --batch-size 4 "$@" || return
  images=$(find "$data" -maxdepth 1 -type d -name "$split*")
  for half in "" --half; do
    "$python" -m autotimm predict "$images" --checkpoint "$checkpoint" --format json \
      --out "$work/$name/found$half" $half || return
    "$python" -m autotimm evaluate --results "$work/$name/found$half/results.json" --data "$data" --split "$split" \
      --out "$work/$name/ap$half" || return
    "$python" - "$work/$name/ap$half/metrics.json" "$name" "${half:-float32}" >>"$work/half.md" <<'PYTHON' || return
import json, sys
path, name, half = sys.argv[1:]
found = json.load(open(path))
print(f"| {name} | {half} | {found['box']['AP']:.4f} | {found['mask']['AP']:.4f} |")
PYTHON
  done
}

case ${GPU_PART:-} in
  "") main ;;
  step-*) part_step "${GPU_PART#step-}" ;;
  *) "part_$GPU_PART" ;;
esac
