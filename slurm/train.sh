#!/usr/bin/env bash
# Train on the nodes of a SLURM job: one task a device, all of them one run.
#
#   sbatch --nodes=4 --gpus-per-node=8 slurm/train.sh --config launch/coco_r50_1x.yaml --data s3://bucket/coco
#
# Nodes, GPUs, CPUs, time and partition are sbatch's own flags; everything behind the script's name goes to
# launch/train.py, whose subcommand is fit unless it comes first. Submit from the checkout, whose .venv (make install)
# every node must see. Ahead of the time limit, and when the job is preempted, the run is saved and the job requeued: it
# goes on where it was. See slurm/README.md.
#SBATCH --job-name=autotimm
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --nodes=1
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
python=${AUTOTIMM_PYTHON:-.venv/bin/python}
[ -x "$python" ] || fail "$PWD/$python is missing: run make install, or set AUTOTIMM_PYTHON to a Python that has autotimm"
[[ ${1:--} == -* ]] && set -- fit "$@"

# One task a GPU; one a node where there are none. The CPUs of a node are shared out, as srun gives a task one only.
nodes=${SLURM_JOB_NUM_NODES:?}
tasks=${SLURM_GPUS_ON_NODE:-1}
cpus=$((SLURM_CPUS_ON_NODE / tasks))
step=(--nodes="$nodes" --ntasks="$((nodes * tasks))" --ntasks-per-node="$tasks" --kill-on-bad-exit=1)
if ((cpus)); then
  step+=(--cpus-per-task="$cpus")
else
  echo "warning: $tasks tasks share $SLURM_CPUS_ON_NODE CPUs of a node: give sbatch --cpus-per-gpu or --exclusive" >&2
  step+=(--overcommit)
fi

# The address that SLURM itself uses: the node's name may not resolve. Below the ports that systems hand out by
# themselves, one that follows from the job's number, as two jobs may share a node, and that nobody listens on.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
MASTER_ADDR=${MASTER_ADDR:-$first}
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
while (: <"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do
  MASTER_PORT=$((15000 + (MASTER_PORT - 14999) % 15000))
done
export MASTER_ADDR MASTER_PORT

starts=$((${SLURM_RESTART_COUNT:-0} + 1))
echo "job $SLURM_JOB_ID, start $starts, $(date -Is): $nodes nodes x $tasks tasks on $SLURM_JOB_NODELIST, $MASTER_ADDR:$MASTER_PORT"
echo "commit $(git describe --always --dirty 2>/dev/null || echo unknown), $("$python" --version)," "$("$python" -c '
from importlib.metadata import version
print(", ".join(f"{name} {version(name)}" for name in ("autotimm", "torch", "lightning")))')"
env | grep -E '^(AUTOTIMM|CUDA|GLOO|MASTER|NCCL|OMP|SLURM_(CPUS|GPUS|JOB_(NAME|PARTITION|QOS)|MEM)|TORCH)' | grep -viE '(token|secret|password|_key)' | sort

# Of an array the tasks have numbers of their own, but one of them that of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

# A run that a signal has stopped leaves a file, see autotimm/training/preemption.py.
export AUTOTIMM_STOPPED=$PWD/.slurm-$SLURM_JOB_ID.stopped
rm -f "$AUTOTIMM_STOPPED"
# A start that was stopped before its first step leaves another file to the next start, which takes it.
nowhere=$PWD/.slurm-$job.nowhere
again=no
if [ -e "$nowhere" ]; then
  ((starts == 1)) || again=yes # else of a job that had the number before
  rm "$nowhere"
fi
trap : TERM # which is for the tasks: the job ends with this script, and they have to save
code=0
srun "${step[@]}" "$python" launch/train.py "$@" || code=$?
if ! [ -e "$AUTOTIMM_STOPPED" ]; then
  ((code == 0)) || echo "failed with $code; scontrol requeue $job has it go on from its last checkpoint" >&2
  exit $code
fi
steps=$(<"$AUTOTIMM_STOPPED")
rm "$AUTOTIMM_STOPPED"
if ((steps == 0)) && [ "$again" = yes ]; then
  fail "stopped twice in a row before a step was done: give more --time than the 120 seconds of --signal and those of the start"
fi
# Not a job that was cancelled, nor one that SLURM requeues itself.
if [[ $(scontrol show job "$job") == *JobState=RUNNING* ]]; then
  ((steps)) || : >"$nowhere"
  scontrol requeue "$job" || echo "not requeued; submit it again with --ckpt_path last" >&2
fi
exit 85
