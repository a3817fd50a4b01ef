#!/usr/bin/env bash
# Train in one pod of a Kubernetes job; the flags are those of autotimm fit.
#
# torchrun reads from the environment how many pods there are (PET_NNODES), which one this is (PET_NODE_RANK), how many
# processes each has (PET_NPROC_PER_NODE), and where the first one is (PET_MASTER_ADDR, PET_MASTER_PORT). job.yaml
# sets these variables, and so does Kubeflow Trainer.
#
# When Kubernetes stops a pod, the processes of all pods save the same step, and each pod ends with 85. The manifests
# say that such a pod is no failure, so Kubernetes starts another one in its place.
set -euo pipefail

: "${PET_NNODES:?start this script by a manifest of launch/kubernetes/, or set the variables that its head names}"
[[ ${1:--} == -* ]] && set -- fit "$@"

# A stopped run leaves this file, see autotimm/training/preemption.py. It is the pod's own.
AUTOTIMM_STOPPED=$(mktemp -u)
export AUTOTIMM_STOPPED

# Kubernetes signals this script alone. Of torchrun's children each saves; torchrun itself would kill them after 30
# seconds. Before it has any, it is torchrun that ends.
stop() {
  signalled=yes stopping=yes
  [ -n "$launcher" ] || return 0
  children=$(cat "/proc/$launcher/task/$launcher/children" 2>/dev/null || true)
  # shellcheck disable=SC2086 # several numbers
  kill -TERM ${children:-$launcher} 2>/dev/null || true
}
stopping=no launcher=
trap stop TERM # before torchrun: the first process of a container ignores what it does not catch

# The pods do not start at one time: one may wait for its node, or for its image.
torchrun --rdzv-conf timeout=3600 -m autotimm "$@" &
launcher=$!
[ $stopping = no ] || stop

signalled=yes
while [ $signalled = yes ]; do # a signal ends wait before torchrun has ended
  signalled=no code=0
  wait "$launcher" || code=$?
done

if [ -e "$AUTOTIMM_STOPPED" ]; then
  rm "$AUTOTIMM_STOPPED"
  exit 85
fi
# Stopped before there was anything to save.
((code == 0)) || [ $stopping = no ] || exit 85
exit "$code"
