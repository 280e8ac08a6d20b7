#!/usr/bin/env bash
# Runs the main job on a Cloud TPU slice of one or many hosts, from your own machine.
#
#   bash launch/tpu_pod.sh STEP --name=NAME --zone=ZONE [options] [-- more arguments of gradmix_jax.main]
#
# STEP
#   create   create the slice; needs --type
#   install  copy this checkout to every host and set up Python and JAX there
#   run      run the main job on every host; needs --config and --workdir
#   fetch    copy the workdir from the first host, which wrote it, to runs/, unless it is in a bucket; needs --workdir
#   delete   delete the slice
#   all      create, install, run and fetch, one after the other; fetch even if the run failed
#
# --name=NAME       name of the slice, e.g. gradmix
# --zone=ZONE       e.g. us-west4-a
# --project=ID      the Google Cloud project; default: gcloud's setting
# --type=TYPE       accelerator type, e.g. v5litepod-16, v6e-8, v4-32
# --version=NAME    runtime version; default: the one for the type
# --spot            use a spot slice, which is cheaper but can be preempted at any time
# --queued          use a queued request and wait until it is granted; needed for delete, too
# --config=FILE     e.g. configs/cifar_osr.py
# --workdir=DIR     folder on the hosts, relative to the checkout there. Only the first host writes it, so the hosts
#                   need no shared disk; on its own disk it is lost with the slice. Letters, digits and _@%+=:,./-
#                   only, because versions of scp treat other characters differently when fetching. A workdir in a
#                   bucket, gs://BUCKET/FOLDER, outlives a spot slice: `run` on a new slice resumes it.
# --prepare=COMMAND with install: a shell command to run on every host, e.g. to mount a bucket
# --delete_after    with all: delete the slice at the end, even if a step failed; otherwise it is never deleted
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
  *) fail "the first argument must be create, install, run, fetch, delete or all, got '$step'" ;;
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
    *) fail "unknown argument '$1': arguments of the main job come after --; see --help for the others" ;;
  esac
  shift
done
# What is left in "$@" goes to the main job.

matches "$name" '[a-z]([-a-z0-9]{0,60}[a-z0-9])?' ||
  fail "--name='$name' must be 1 to 62 lowercase letters, digits and hyphens, starting with a letter"
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
# Checked before anything is paid for.
[ -z "$workdir" ] || matches "$workdir" '[A-Za-z0-9_@%+=:,./-]+' ||
  fail "--workdir='$workdir' must contain only letters, digits and _@%+=:,./- because scp has to fetch it"
case "$step" in
  run | all) check_job ;;
  fetch) [ -n "$workdir" ] || fail "--workdir is missing: name the folder that the job wrote, such as runs/cifar" ;;
esac
[ "$delete_after" = false ] || [ "$step" = all ] || fail "--delete_after is for the step all, not for $step"
[ -z "$prepare" ] || [ "$step" = install ] || [ "$step" = all ] ||
  fail "--prepare is for the steps install and all, not for $step"
[ $# -eq 0 ] || [ "$step" = run ] || [ "$step" = all ] ||
  fail "arguments after -- are for the steps run and all, not for $step"
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

# Copies only the named folders: no environments, data or private files beside them. On the hosts, the old code is
# deleted first, so that files deleted here disappear there too. Without .git, the hosts are told the commit. If their
# Python is too old for setup.sh, uv installs another.
install() {
  run mkdir -p runs
  run tar -czf "runs/$name.tar.gz" --exclude=__pycache__ gradmix_jax configs launch pyproject.toml requirements.txt
  run gcloud compute tpus tpu-vm scp "runs/$name.tar.gz" "$name:gradmix_jax.tar.gz" "${where[@]}" --worker=all
  # In a separate shell, so that both commands of 'a; b' run only after a successful setup.
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
    # Even after a failed job, because its files may be lost with the slice.
    fetch || [ "$status" -ne 0 ]
    exit "$status"
    ;;
  *) "$step" ;;
esac
