#!/usr/bin/env bash
# Train on the nodes of a SLURM job: one task a device, DDP over all of them.
#
#   sbatch --nodes=2 --gpus-per-node=8 slurm/train.sh fit --config launch/coco_r50_1x.yaml --data.data_dir shards/
#
# Nodes, GPUs, time and partition are sbatch's own flags; everything behind the script's name goes to
# launch/train.py. Submit from the checkout, whose .venv (make install) every node must see.
#SBATCH --job-name=autotimm
#SBATCH --output=slurm-%j.out
#SBATCH --nodes=1
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
python=${AUTOTIMM_PYTHON:-.venv/bin/python}
if ! [ -x "$python" ]; then
  echo "error: $PWD/$python is missing: run make install, or set AUTOTIMM_PYTHON to a Python that has autotimm" >&2
  exit 2
fi

# One task a GPU; one a node where there are none.
tasks_per_node=${SLURM_GPUS_ON_NODE:-1}
nodes=${SLURM_JOB_NUM_NODES:?}

# Two jobs may share a node: the port follows from the job's number.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The address that SLURM itself uses; the node's name may not resolve.
MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$first} MASTER_PORT

echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST: $nodes nodes x $tasks_per_node tasks, $MASTER_ADDR:$MASTER_PORT"
exec srun --nodes="$nodes" --ntasks="$((nodes * tasks_per_node))" --ntasks-per-node="$tasks_per_node" \
  --kill-on-bad-exit=1 "$python" launch/train.py "$@"
