#!/usr/bin/env bash
# Runs the main job on a Cloud TPU slice of one or many hosts, from your own machine.
#
#   bash launch/tpu_pod.sh STEP --name=NAME --zone=ZONE [options] [-- more arguments of gradmix_jax.main]
#
# STEP
#   create   ask for the slice; needs --type
#   install  copy this checkout to every host and set up Python and JAX there
#   run      run the main job on every host; needs --config and --workdir
#   fetch    copy the workdir from the first host, which wrote it, into runs/; needs --workdir, and one in a bucket stays
#   delete   delete the slice
#   all      create, install, run and fetch, one after the other; fetch also after a run that failed
#
# --name=NAME       what the slice is called, e.g. gradmix
# --zone=ZONE       e.g. us-west4-a
# --project=ID      the Google Cloud project; else gcloud's own setting
# --type=TYPE       accelerator type, e.g. v5litepod-16, v6e-8, v4-32
# --version=NAME    runtime version; else the one for the type
# --spot            cheaper, and taken away at any time
# --queued          through a queued request, waiting until it is granted; say it to delete too
# --config=FILE     e.g. configs/cifar_osr.py
# --workdir=DIR     folder on the hosts, relative to the checkout there. The first host alone writes it, so the hosts
#                   need no disk in common; on its own disk it lives no longer than the slice. Of letters, digits and
#                   _@%+=:,./- only: what scp makes of others, when it is fetched, depends on its version.
#                   In a bucket, gs://BUCKET/FOLDER, it outlives a spot slice: `run` on a new one resumes it.
# --prepare=COMMAND with install: a shell command to run on every host, e.g. to mount a bucket
# --delete_after    with all: delete the slice at the end, also when a step failed. Never done unless asked for.
# --dry_run         print every command and execute none
#
# Example, look before you pay:
#   bash launch/tpu_pod.sh all --dry_run --name=gradmix --zone=us-west4-a --type=v5litepod-16 --spot \
#     --config=configs/cifar_osr.py --workdir=runs/cifar --delete_after

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/commands.sh

step=${1:-}
case "$step" in
  create | install | run | fetch | delete | all) shift ;;
  --help | -h) usage launch/tpu_pod.sh && exit ;;
  *) fail "the first argument is '$step' and must be one of create, install, run, fetch, delete, all" ;;
esac
name="" zone="" project="" type="" version="" config="" workdir="" prepare=""
spot=false queued=false delete_after=false dry_run=false
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --config=*) config=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --prepare=*) prepare=${1#*=} ;;
    --spot) spot=true ;;
    --queued) queued=true ;;
    --delete_after) delete_after=true ;;
    --dry_run) dry_run=true ;;
    --help | -h) usage launch/tpu_pod.sh && exit ;;
    --) shift && break ;;
    *) fail "unknown argument '$1': arguments of the main job come after --, the others are in --help" ;;
  esac
  shift
done
# What is left in "$@" goes to the main job.

matches "$name" '[a-z]([-a-z0-9]{0,60}[a-z0-9])?' ||
  fail "--name='$name' must be 1 to 62 lower-case letters, digits and hyphens, a letter first"
matches "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' || fail "--zone='$zone' must be a zone such as us-west4-a"
[ -z "$project" ] || matches "$project" '([a-z.]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]' ||
  fail "--project='$project' must be a Google Cloud project id"
case "$step" in
  create | all)
    matches "$type" '[a-z0-9]+-[0-9]+' || fail "--type='$type' must be an accelerator type such as v5litepod-16"
    if [ -z "$version" ]; then
      case "$type" in
        v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v6e-*) version=v2-alpha-tpuv6e ;;
        *) fail "--version is missing: no runtime version is known for --type='$type'" ;;
      esac
    fi
    matches "$version" '[a-z0-9][-.a-z0-9]*' ||
      fail "--version='$version' must be a runtime version such as v2-alpha-tpuv6e"
    ;;
esac
# Before anything is paid for.
[ -z "$workdir" ] || matches "$workdir" '[A-Za-z0-9_@%+=:,./-]+' ||
  fail "--workdir='$workdir' must be made of letters, digits and _@%+=:,./- only: scp has to fetch it"
case "$step" in
  run | all) check_job ;;
  fetch) [ -n "$workdir" ] || fail "--workdir is missing: name the folder that the job wrote, such as runs/cifar" ;;
esac
[ "$delete_after" = false ] || [ "$step" = all ] || fail "--delete_after goes with the step all, not with $step"
[ -z "$prepare" ] || [ "$step" = install ] || [ "$step" = all ] ||
  fail "--prepare goes with install and all, not with $step"
[ $# -eq 0 ] || [ "$step" = run ] || [ "$step" = all ] ||
  fail "arguments after -- go with run and all, not with $step"
need gcloud "install the Google Cloud CLI, or look at the commands with --dry_run"

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
options=("--accelerator-type=$type")
[ "$spot" = false ] || options+=(--spot)

create() {
  if [ "$queued" = false ]; then
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${options[@]}" "--version=$version"
    return
  fi
  run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" "${options[@]}" \
    "--runtime-version=$version"
  wait_until_granted
}

wait_until_granted() {
  local state describe
  describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
  quoted "${describe[@]}"
  [ "$dry_run" = false ] || return 0
  while state=$("${describe[@]}"); do
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) fail "the queued request '$name' is $state and will not be granted" ;;
    esac
    echo "The queued request '$name' is $state; asking again in 30 seconds."
    sleep 30
  done
  fail "the queued request '$name' could not be looked up"
}

on_every_host() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"
}

# Named folders only: neither environments nor data nor anything private that lies beside them travels. On the hosts
# the old code goes first, lest a file deleted here lives on there. There is no .git, so they are told the commit.
# Where their Python is too old for setup.sh, uv brings one.
install() {
  run mkdir -p runs
  run tar -czf "runs/$name.tar.gz" --exclude=__pycache__ gradmix_jax configs launch pyproject.toml requirements.txt
  run gcloud compute tpus tpu-vm scp "runs/$name.tar.gz" "$name:gradmix_jax.tar.gz" "${where[@]}" --worker=all
  # In a shell of its own: of 'a; b' both are for hosts that were set up.
  [ -z "$prepare" ] || prepare=" && $(quoted bash -c "$prepare")"
  # shellcheck disable=SC2016 # $HOME and $PATH are those of the hosts
  on_every_host 'mkdir -p gradmix_jax && cd gradmix_jax && rm -rf gradmix_jax configs launch && '\
'tar -xzf ../gradmix_jax.tar.gz && echo '"$(commit)"' >commit && export PATH="$HOME/.local/bin:$PATH" && '\
'{ bash launch/setup.sh --jax=tpu --dry_run >/dev/null 2>&1 || '\
'{ python3 -m pip install --quiet --user uv && python3 -m uv python install 3.12; }; } && '\
'bash launch/setup.sh --jax=tpu'"$prepare"
}

run_job() {
  local job
  job=$(quoted bash launch/local.sh --multihost "--config=$config" "--workdir=$workdir" "$@")
  on_every_host "cd gradmix_jax && GRADMIX_JAX_COMMIT=\$(cat commit) $job"
}

fetch() {
  if in_bucket; then
    echo "The workdir is in the bucket: $workdir"
    return
  fi
  local source=gradmix_jax/$workdir
  case "$workdir" in
    /*) source=$workdir ;;
  esac
  run mkdir -p runs
  run gcloud compute tpus tpu-vm scp --recurse "$name:$source" runs/ "${where[@]}" --worker=0
}

delete() {
  if [ "$queued" = false ]; then
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  else
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  fi
}

case "$step" in
  run) run_job "$@" ;;
  all)
    [ "$delete_after" = false ] || trap delete EXIT
    create
    install
    status=0
    run_job "$@" || status=$?
    # Also after a job that failed: what it saved may live no longer than the slice.
    fetch || [ "$status" -ne 0 ]
    exit "$status"
    ;;
  *) "$step" ;;
esac
