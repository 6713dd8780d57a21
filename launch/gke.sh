#!/usr/bin/env bash
# Runs edlm on TPU slices of a GKE cluster, as a JobSet: one pod per host.
#
#   launch/gke.sh --name=qwen3 --image=us-docker.pkg.dev/my-project/edlm/edlm:1 --accelerator=tpu-v5-lite-podslice \
#     --topology=4x4 --bucket=my-bucket -- train --config=configs/qwen3_0_6b.py --workdir=/mnt/edlm/qwen3
#   launch/gke.sh logs --name=qwen3
#
# What to do (start unless given; each needs --name):
#   start     create the JobSet. It restarts itself after a preemption and edlm continues from its newest checkpoint;
#             when it has used up its restarts, or has been stopped: the same command again
#   logs      follow the output of process 0
#   status    the JobSet and its pods
#   delete    SIGTERM to every pod (a last checkpoint, within --grace), then remove it
#
#   --name=NAME            of the JobSet                                              (EDLM_NAME)
#   --image=IMAGE          with edlm_jax[tpu] installed, edlm on the PATH:            (EDLM_IMAGE)
#                          docker build --target=tpu --tag=IMAGE . && docker push IMAGE
#   --accelerator=KIND     the node pool's cloud.google.com/gke-tpu-accelerator       (EDLM_ACCELERATOR)
#   --topology=AxB[xC]     chips of a slice                                           (EDLM_TOPOLOGY)
#   --chips=N              of each host                                               (EDLM_CHIPS, 4)
#   --slices=N             slices of this topology; the mesh spans them               (EDLM_SLICES, 1)
#   --bucket=BUCKET        mounted as /mnt/edlm in every pod, for --workdir and data; with a hierarchical namespace, so
#                          that a checkpoint is renamed as one; empty: nothing is mounted       (EDLM_BUCKET)
#   --service-account=NAME that may read and write the bucket                         (EDLM_SERVICE_ACCOUNT, default)
#   --spot=WORD            yes or no: spot nodes                                      (EDLM_SPOT, no)
#   --restarts=N           by itself                                                  (EDLM_RESTARTS, 100)
#   --grace=SECONDS        between SIGTERM and the end, for the last checkpoint       (EDLM_GRACE, 300)
#   --context=CONTEXT      of kubectl                                                 (EDLM_CONTEXT, its current one)
#   --namespace=NAMESPACE                                                             (EDLM_NAMESPACE, default)
#   --dry-run              print the commands and the JobSet, and run none
#
# The cluster needs JobSet (kubernetes-sigs/jobset) and, for --bucket, the Cloud Storage FUSE driver.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

NAME=${EDLM_NAME:-} IMAGE=${EDLM_IMAGE:-} ACCELERATOR=${EDLM_ACCELERATOR:-} TOPOLOGY=${EDLM_TOPOLOGY:-}
CHIPS=${EDLM_CHIPS:-4} SLICES=${EDLM_SLICES:-1} BUCKET=${EDLM_BUCKET:-} SPOT=${EDLM_SPOT:-no}
SERVICE_ACCOUNT=${EDLM_SERVICE_ACCOUNT:-default} RESTARTS=${EDLM_RESTARTS:-100} GRACE=${EDLM_GRACE:-300}
CONTEXT=${EDLM_CONTEXT:-} NAMESPACE=${EDLM_NAMESPACE:-default} ACTION=start
parse "name image accelerator topology chips slices bucket service-account spot restarts grace context namespace" "$@"
need name
number chips slices restarts grace
[[ $BUCKET =~ ^[a-z0-9._-]*$ ]] || die "--bucket is a name without gs://, not '$BUCKET'"
[[ $SPOT == yes || $SPOT == no ]] || die "--spot must be yes or no, not '$SPOT'"

KUBECTL=(kubectl --namespace="$NAMESPACE")
[[ $CONTEXT ]] && KUBECTL+=(--context="$CONTEXT")

# Hosts of a slice.
hosts() {
  [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--topology must look like 4x4 or 2x2x4, not '$TOPOLOGY'"
  local chips=$((${TOPOLOGY//x/*}))
  ((chips % CHIPS == 0)) || die "--topology=$TOPOLOGY has $chips chips, which hosts of --chips=$CHIPS do not divide"
  echo $((chips / CHIPS))
}

# Words as a YAML list of JSON strings, which is YAML too.
yaml_list() {
  local word list=()
  for word in "$@"; do
    word=${word//\\/\\\\} word=${word//\"/\\\"}
    list+=("\"$word\"")
  done
  local IFS=,
  printf '[%s]' "${list[*]}"
}

# JobSet of $1 hosts a slice. Bad input (exit code 2) ends it; anything else, as a preemption, restarts all of it.
jobset() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations: {alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
    rules: [{name: badinput, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        parallelism: $1
        completions: $1
        backoffLimit: 0
        podFailurePolicy:
          rules: [{action: FailJob, onExitCodes: {containerName: edlm, operator: In, values: [2]}}]
        template:
          metadata:
            annotations: {gke-gcsfuse/volumes: "$([[ $BUCKET ]] && echo true || echo false)"}
          spec:
            restartPolicy: Never
            serviceAccountName: $SERVICE_ACCOUNT
            terminationGracePeriodSeconds: $GRACE
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
              cloud.google.com/gke-tpu-topology: $TOPOLOGY
$([[ $SPOT == yes ]] && echo '              cloud.google.com/gke-spot: "true"')
            containers:
            - name: edlm
              image: $IMAGE
              command: ["edlm"]
              args: $(yaml_list "${COMMAND[@]}")
              ports: [{containerPort: 8471}, {containerPort: 8080}, {containerPort: 8482}]
              securityContext: {privileged: true}
              resources: {limits: {google.com/tpu: $CHIPS}}
$([[ $BUCKET ]] && volumes)
YAML
}

# Files that one pod has made are seen by the others at once: nothing about them is cached.
volumes() {
  cat <<YAML
              volumeMounts: [{name: edlm, mountPath: /mnt/edlm}]
            volumes:
            - name: edlm
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes: {bucketName: $BUCKET, mountOptions: "implicit-dirs,metadata-cache:ttl-secs:0"}
YAML
}

# A JobSet that is there, finished or not, keeps its pods' settings: it is replaced.
start() {
  local manifest
  manifest=$(jobset "$1")
  run "${KUBECTL[@]}" delete jobset "$NAME" --ignore-not-found --wait
  if [[ $DRY_RUN ]]; then
    printf '%s <<YAML\n%s\nYAML\n' "$(quoted "${KUBECTL[@]}" apply --filename=-)" "$manifest"
  else
    "${KUBECTL[@]}" apply --filename=- <<<"$manifest"
  fi
}

FIRST="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
case $ACTION in
  start)
    need image accelerator topology
    need_command
    count=$(hosts)
    start "$count"
    ;;
  logs) run "${KUBECTL[@]}" logs --selector="$FIRST" --container=edlm --follow --tail=100 ;;
  status)
    run "${KUBECTL[@]}" get jobset "$NAME"
    run "${KUBECTL[@]}" get pods --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --output=wide
    ;;
  delete) run "${KUBECTL[@]}" delete jobset "$NAME" --wait ;;
  *) die "unknown word '$ACTION': one of start, logs, status, delete" ;;
esac
