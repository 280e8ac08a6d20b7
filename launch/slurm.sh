#!/usr/bin/env bash
# Submits the main job to Slurm, with one process per node that uses all GPUs requested there.
#
#   bash launch/slurm.sh --config=FILE --workdir=DIR [options] [-- more arguments of gradmix_jax.main]
#
# --config=FILE        e.g. configs/cifar_osr.py
# --workdir=DIR        a folder that all nodes can see, also for slurm-JOB.log; or gs://BUCKET/FOLDER or
#                      s3://BUCKET/FOLDER, with the log in runs/NAME
# --nodes=N            default: 1
# --gpus_per_node=N    default: 1; 0 runs on the CPUs
# --cpus_per_node=N    default: 8
# --time=LIMIT         Slurm's format, e.g. 24:00:00 (the default) or 3-12:00:00
# --partition=NAME     --account=NAME     if your cluster requires them
# --dry_run            print every command and execute none
#
# The environment is created on the first node. If nodes have no network, create it on the login node beforehand, for
# the GPUs of the nodes: `make setup JAX=cuda13` (or cuda12 for drivers older than 580).
# Two minutes before the time limit, Slurm tells the job to save a checkpoint; submit it again to resume. A preempted
# job is requeued automatically.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/commands.sh

config="" workdir="" nodes=1 gpus=1 cpus=8 time=24:00:00 partition="" account="" dry_run=false
while [ $# -gt 0 ]; do
  case "$1" in
    --config=*) config=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus_per_node=*) gpus=${1#*=} ;;
    --cpus_per_node=*) cpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --partition=*) partition=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --help | -h) usage launch/slurm.sh && exit ;;
    --) shift && break ;;
    *) fail "unknown argument '$1': arguments of the main job come after --; see --help for the others" ;;
  esac
  shift
done

check_job
check_folder
matches "$nodes" '[1-9][0-9]{0,3}' || fail "--nodes='$nodes' must be a whole number from 1 to 9999"
matches "$gpus" '[0-9]|[1-9][0-9]' || fail "--gpus_per_node='$gpus' must be a whole number from 0 to 99"
matches "$cpus" '[1-9][0-9]{0,3}' || fail "--cpus_per_node='$cpus' must be a whole number from 1 to 9999"
matches "$time" '([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}' ||
  fail "--time='$time' must be a limit such as 24:00:00 or 3-12:00:00"
case "$workdir" in
  *\\*) fail "--workdir='$workdir' must not have a backslash: Slurm would not number its log" ;;
esac
need sbatch "run this on a Slurm login node, or look at the commands with --dry_run"

job=(.venv/bin/python -u -m gradmix_jax.main)
[ "$nodes" -eq 1 ] || job+=(--multihost)
job+=("--config=$config" "--workdir=$workdir" "$@")
step=(srun --kill-on-bad-exit=1 "--cpus-per-task=$cpus" "${job[@]}")
# On Slurm, JAX assumes one process per GPU; listing the GPUs gives all of a node's GPUs to its one process.
if [ "$nodes" -gt 1 ] && [ "$gpus" -gt 1 ]; then
  step=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))" "${step[@]}")
fi

options=("--job-name=gradmix_jax" "--nodes=$nodes" --ntasks-per-node=1 "--cpus-per-task=$cpus" "--time=$time")
[ "$gpus" -eq 0 ] || options+=("--gpus-per-node=$gpus")
[ -z "$partition" ] || options+=("--partition=$partition")
[ -z "$account" ] || options+=("--account=$account")
logs=$(log_folder) setup=(bash launch/setup.sh)
! in_bucket || setup+=("--workdir=$workdir")
# A % in the name of the log introduces a placeholder, such as the job number; %% is a literal %.
options+=("--output=${logs//[%]/%%}/slurm-%j.log" --open-mode=append --requeue --signal=TERM@120)

run mkdir -p "$logs"
run sbatch "${options[@]}" "--wrap=$(quoted "${setup[@]}") && $(quoted "${step[@]}")"
