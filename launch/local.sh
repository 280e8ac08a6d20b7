#!/usr/bin/env bash
# Runs the main job on all devices of this machine and logs its output to WORKDIR/log.txt, or, for a workdir in a bucket
# (gs://BUCKET/FOLDER, s3://BUCKET/FOLDER), to runs/NAME/log.txt.
#
#   bash launch/local.sh --config=configs/cifar_osr.py --workdir=runs/cifar [more arguments of gradmix_jax.main]
#
# Installs what is missing first. Rerun with the same workdir to resume the job.
# Paths are relative to the checkout.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/commands.sh

config="" workdir=""
for argument in "$@"; do
  case "$argument" in
    --config=*) config=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    --help | -h) usage launch/local.sh && exit ;;
  esac
done
check_job
check_folder
bash launch/setup.sh "--workdir=$workdir"
logs=$(log_folder)
mkdir -p "$logs"
# exec, so that signals reach the job and its exit status is the script's. tee ignores Ctrl-C to log the job's last
# lines. Unbuffered, because the log is read while it grows.
exec > >(tee -ia "$logs/log.txt") 2>&1
exec .venv/bin/python -u -m gradmix_jax.main "$@"
