#!/usr/bin/env bash
# Runs the experiments at their published size on the GPU or TPU of this machine, the most important ones first.
#
#   bash launch/accelerator.sh --tiny_imagenet=folder:PATH [options]
#
# 1. CIFAR-10, configs/cifar_osr.py: five trials of none, cutmix, random, layer and input, trial by trial
# 2. TinyImageNet, configs/tiny_imagenet_osr.py: likewise
# 3. benchmarks/everything.py
#
# --workdir=DIR         directory of all results; default: runs/accelerator. Rerun the command to resume
# --cifar10=NAME        value of dataset.name: a TFDS name or folder:PATH; default: cifar10, which TFDS downloads
# --tiny_imagenet=NAME  likewise, without a default, because TFDS does not have it
# --without=PARTS       leave out some of cifar10,tiny_imagenet,benchmarks
# --dtype=TYPE          dtype of the network: float32 (default) or bfloat16
# --device=NAME         device whose speed the plan assumes: h100 (default) or v5e
# --price=DOLLARS       price of this machine per hour; default: 3.00 (h100), 1.20 (v5e)
# --python=PATH         use this Python; default: that of .venv, which is created if it is missing
# --dry_run             print the plan of time and cost and every command, and run nothing
# --miniature           all of it in minutes, on generated images: trial 0, 2 epochs, width 8, one benchmark
#
# Missing data is reported before anything starts. After every run, DIR/cifar10/report and DIR/tiny_imagenet/report are
# rewritten, with the tables of all runs so far and their conditions. A failed step does not stop the others; the script
# names it at the end and exits with status 1.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/commands.sh

workdir=runs/accelerator cifar10=cifar10 tiny_imagenet="" without="" dtype=float32 device=h100 price="" python=""
dry_run=false miniature=false
for argument in "$@"; do
  case "$argument" in
    --workdir=*) workdir=${argument#*=} ;;
    --cifar10=*) cifar10=${argument#*=} ;;
    --tiny_imagenet=*) tiny_imagenet=${argument#*=} ;;
    --without=*) without=${argument#*=} ;;
    --dtype=*) dtype=${argument#*=} ;;
    --device=*) device=${argument#*=} ;;
    --price=*) price=${argument#*=} ;;
    --python=*) python=${argument#*=} ;;
    --dry_run) dry_run=true ;;
    --miniature) miniature=true ;;
    --help | -h) usage launch/accelerator.sh && exit ;;
    *) fail "unknown argument '$argument': use those of --help" ;;
  esac
done
case "$workdir" in
  "" | *://*) fail "--workdir='$workdir' must be a folder of this machine: the script lists it; it can be copied to a bucket" ;;
esac
check_workdir
check_folder
matches "$without" '((cifar10|tiny_imagenet|benchmarks)(,|$))*' ||
  fail "--without='$without' must be some of cifar10,tiny_imagenet,benchmarks"
has() { case ",$without," in *",$1,"*) return 1 ;; esac }
case "$dtype" in float32 | bfloat16) ;; *) fail "--dtype must be float32 or bfloat16, got '$dtype'" ;; esac
# Milliseconds per step of 256 images of 32 pixels for each recipe, modeled from compiled programs that were not run
# (benchmarks/README.md). No mixing was not compiled and counts as half of CutMix.
recipes=(none cutmix random layer input)
case "$device-$dtype" in
  h100-float32) assumed=3.00 milliseconds=(8 17 17 18 22) ;;
  h100-bfloat16) assumed=3.00 milliseconds=(5 9 9 10 12) ;;
  v5e-*) assumed=1.20 milliseconds=(21 41 41 42 50) ;;
  *) fail "--device must be h100 or v5e, got '$device'" ;;
esac
matches "${price:=$assumed}" '[0-9]{1,4}(\.[0-9]{1,2})?' || fail "--price='$price' must be dollars such as 2.50"
if [ "$miniature" = true ]; then
  cifar10=folder:$workdir/images/cifar10 tiny_imagenet=folder:$workdir/images/tiny_imagenet
fi
! has tiny_imagenet || [ -n "$tiny_imagenet" ] || fail "--tiny_imagenet is missing: name the unpacked archive as" \
  "--tiny_imagenet=folder:PATH, or leave it out with --without=tiny_imagenet"

trials=(0 1 2 3 4) benchmarks=(--minutes=120 "--dataset=$cifar10") smaller=()
if [ "$miniature" = true ]; then
  trials=(0) benchmarks=(--platform=cpu --only=streaming --minutes=5)
  smaller=(--config.model.name=small_cnn --config.model.width=8 --config.model.hidden=32 --config.dataset.image_size=16
    --config.train.batch_size=32 --config.augment.jitter_prob=0.0)
fi
# Steps of a run, in units of a step at 32 pixels: 610 epochs of 117 steps, and 600 of 39 with four times the pixels.
steps_of() { [ "$1" = cifar10 ] && echo 71370 || echo 93600; }
overhead=120 # seconds per run for compilation, evaluation and report

# The plan: the seconds, name and kind of each step.
seconds=() names=() kinds=()
add() {
  seconds+=("$1") names+=("$2") kinds+=("$3")
}
for part in cifar10 tiny_imagenet; do
  has "$part" || continue
  steps=$(steps_of $part)
  for trial in "${trials[@]}"; do
    for place in "${!recipes[@]}"; do
      add $((steps * milliseconds[place] / 1000 + overhead)) "$part, ${recipes[place]}, trial $trial" train
    done
  done
done
! has benchmarks || add 7200 benchmarks benchmarks

hours() { printf '%d.%d h' $(($1 / 3600)) $(($1 % 3600 / 360)); }
cents=$((10#${price%%.*} * 100))
case "$price" in
  *.??) cents=$((cents + 10#${price#*.})) ;;
  *.?) cents=$((cents + 10 * 10#${price#*.})) ;;
esac
dollars() { printf '%d.%02d $' $(($1 * cents / 360000)) $(($1 * cents / 3600 % 100)); }

if [ "$miniature" = false ]; then
  total=0
  echo "# Modeled for one $device, $dtype, at an assumed $price \$ an hour; a real device may take twice as long:"
  for place in "${!names[@]}"; do
    total=$((total + seconds[place]))
    echo "# ${names[place]}: $(hours "${seconds[place]}"); so far $(hours $total), $(dollars $total)"
  done
  echo "# Total: $(hours $total) to $(hours $((2 * total))), $(dollars $total) to $(dollars $((2 * total)))"
fi

[ -n "$python" ] || run bash launch/setup.sh
python=${python:-.venv/bin/python}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
run mkdir -p "$workdir"
[ "$miniature" = false ] || run "$python" launch/miniature.py "$workdir/images"

missing=""
for part in cifar10 tiny_imagenet; do
  has "$part" || continue
  run "$python" -m gradmix_jax.data "${!part}" --download || missing="$missing${missing:+, }--$part=${!part}"
done
[ -z "$missing" ] || fail "data is missing or cannot be read (the reason is above): $missing"

failed=()
# Runs a command and records a failed step. A command that was interrupted ends the script.
attempt() {
  local name=$1 status=0
  shift
  run "$@" || status=$?
  case $status in
    0) ;;
    130 | 143) fail "stopped during $name; run the same command again to resume" ;;
    *) failed+=("$name (status $status)") ;;
  esac
}

# Writes the report of a dataset from all runs that have results.
gather() {
  local folder=$workdir/$1 done=() directory
  for directory in "$folder"/*/trial*; do
    [ ! -f "$directory/results.json" ] || done+=("$directory")
  done
  if [ "$dry_run" = true ]; then done=("$folder/RECIPE/trial0_seed0"); fi
  [ ${#done[@]} -eq 0 ] || attempt "report of $1" "$python" -m gradmix_jax.report "${done[@]}" "--out=$folder/report"
}

train() {
  local part=$1 recipe=$2 trial=$3 config=cifar_osr phases=(0 1) phase words
  [ "$part" = cifar10 ] || config=tiny_imagenet_osr phases=(0)
  words=("--config=configs/$config.py:$recipe" "--config.dataset.name=${!part}" "--config.model.dtype=$dtype")
  if [ "$miniature" = true ]; then
    words+=("${smaller[@]}")
    for phase in "${phases[@]}"; do words+=("--config.phases[$phase].epochs=$((2 / ${#phases[@]}))"); done
  fi
  words+=("--trials=$trial" --seeds=0 "--workdir=$workdir/$part/$recipe")
  attempt "$part, $recipe, trial $trial" "$python" -u -m gradmix_jax.protocol "${words[@]}"
  gather "$part"
}

for place in "${!names[@]}"; do
  echo "# step $((place + 1)) of ${#names[@]}: ${names[place]}"
  if [ "${kinds[place]}" = benchmarks ]; then
    attempt benchmarks "$python" benchmarks/everything.py "$workdir/benchmarks" "${benchmarks[@]}"
  else
    IFS=, read -r part recipe trial <<<"${names[place]// /}"
    train "$part" "$recipe" "${trial#trial}"
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'accelerator.sh: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
