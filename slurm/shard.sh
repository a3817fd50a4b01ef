#!/usr/bin/env bash
# Write shards on many machines: the tasks of a job array write their parts, one more job joins them.
#
#   bash slurm/shard.sh --array=1-8 --cpus-per-task=8 coco/ shards/ --max-shard-size 1GB
#
# submits both and prints their numbers. --array comes first; flags between it and SRC are sbatch's own, as --flag=value;
# everything from SRC on goes to autotimm-shard. By hand the same is
#
#   job=$(sbatch --parsable --array=1-8 slurm/shard.sh coco/ shards/)
#   sbatch --dependency=afterok:$job slurm/shard.sh coco/ shards/
#
# Submit from the checkout, whose .venv (make install) every node must see. What was cut off is submitted again
# as it was: each task goes on where it stopped.
#SBATCH --job-name=autotimm-shard
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

if [[ ${1:-} == --array=* ]]; then
  array=$1 flags=()
  shift
  while [[ ${1:-} == -* ]]; do
    flags+=("$1")
    shift
  done
  (($# >= 2)) || fail "SRC and DST of autotimm-shard are missing behind sbatch's flags (write these as --flag=value)"
  [ -e "$1" ] || fail "SRC: no such file or folder: $1 (write sbatch's flags as --flag=value)"
  [[ $array =~ ^--array=[01]-[0-9]+(%[0-9]+)?$ ]] || fail "$array: it has to be 1-N or 0-N, without gaps or steps"
  parts=$(sbatch --parsable "$array" "${flags[@]}" "$0" "$@")
  parts=${parts%%;*} # a federation puts the cluster's name behind it
  if ! join=$(sbatch --parsable --dependency="afterok:$parts" --kill-on-invalid-dep=yes "${flags[@]}" "$0" "$@"); then
    scancel "$parts"
    exit 2
  fi
  echo "job $parts writes the parts, job ${join%%;*} joins them when all are done"
  exit
fi

[ -n "${SLURM_SUBMIT_DIR:-}" ] || fail "usage: bash slurm/shard.sh --array=1-8 [sbatch's --flag=value ...] SRC DST [flags]"
cd "$SLURM_SUBMIT_DIR"
python=${AUTOTIMM_PYTHON:-.venv/bin/python}
if ! [ -x "$python" ]; then
  fail "$PWD/$python is missing: run make install, or set AUTOTIMM_PYTHON to a Python that has autotimm"
fi

part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  first=$SLURM_ARRAY_TASK_MIN count=$SLURM_ARRAY_TASK_COUNT
  # Of another array, such as one of the task that failed, nobody could tell which share of how many is meant.
  if ((first > 1 || SLURM_ARRAY_TASK_MAX - first + 1 != count)); then
    fail "--array has to be 1-N or 0-N, without gaps or steps: to go on, submit the whole array again"
  fi
  part=(--part "$((SLURM_ARRAY_TASK_ID - first + 1))/$count")
fi

echo "job ${SLURM_JOB_ID:?} on ${SLURM_JOB_NODELIST:?}: ${part[*]:-all that is missing, and the manifest}"
exec "$python" -c 'from autotimm.sharding.cli import main; main()' \
  --workers "${SLURM_CPUS_PER_TASK:-1}" "${part[@]}" "$@"
