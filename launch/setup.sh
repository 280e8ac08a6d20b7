#!/usr/bin/env bash
# Creates the Python environment of this checkout: the pinned versions of requirements.txt and the JAX for this machine.
#
#   bash launch/setup.sh [--jax=auto|cpu|cuda12|cuda13|tpu] [--python=PATH] [--venv=DIR] [--workdir=DIR] [--dry_run]
#
# --jax     the JAX to install; default: the installed one, or the first time the one that launch/detect_jax.sh chooses
# --python  the Python, 3.11 or newer, to create the environment with; default: the first suitable one on PATH
# --venv    where to create it; default: .venv
# --workdir the workdir of a run; for one in a bucket, the package for that bucket is installed too
# --dry_run print the commands and run none
#
# Does nothing when the environment is already up to date.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/commands.sh

jax="" python="" venv=.venv workdir="" dry_run=false
for argument in "$@"; do
  case "$argument" in
    --jax=*) jax=${argument#*=} ;;
    --python=*) python=${argument#*=} ;;
    --venv=*) venv=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    --dry_run) dry_run=true ;;
    --help | -h) usage launch/setup.sh && exit ;;
    *) fail "unknown argument '$argument': use --jax, --python, --venv, --workdir or --dry_run" ;;
  esac
done
case "$jax" in
  "" | auto | cpu | cuda12 | cuda13 | tpu) ;;
  *) fail "--jax must be auto, cpu, cuda12, cuda13 or tpu, got '$jax'" ;;
esac
[ -n "$venv" ] || fail "--venv must name a folder"

# Every Python is checked by running it, because a name on PATH may be a version manager's shim that always fails.
is_new() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Prints the first Python that is new enough and can create environments; 3.11 first, because requirements.txt was
# resolved with it.
find_python() {
  local name too_old="" no_venv="" names=(python3.11 python3.12 python3.13 python3.14 python3 python)
  [ -z "$python" ] || names=("$python")
  for name in "${names[@]}"; do
    command -v "$name" >/dev/null || continue
    if ! is_new "$name"; then
      [ -n "$too_old" ] || too_old="; $name is $(version "$name" || echo "not working")"
    elif ! "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      [ -n "$no_venv" ] || no_venv=$name
    else
      printf '%s\n' "$name"
      return
    fi
  done
  [ -z "$no_venv" ] || fail "$no_venv ($(version "$no_venv")) cannot create environments because its venv module is" \
    "missing: install it (Debian and Ubuntu: apt-get install python$(version "$no_venv")-venv)" \
    "or name another Python with --python=PATH (make: PYTHON=PATH)"
  fail "no Python 3.11 or newer was found (looked for ${names[*]}$too_old): install one" \
    "or name it with --python=PATH (make: PYTHON=PATH)"
}

# Installs what reaches the bucket of a workdir.
reach_bucket() {
  local package
  case "$workdir" in
    gs://*) package=gcsfs ;;
    s3://*) package=s3fs ;;
    *) return 0 ;;
  esac
  [ "$dry_run" = true ] || ! "$venv/bin/python" -c "import $package" >/dev/null 2>&1 || return 0
  exit_status=1 # as below
  run "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input -c requirements.txt "$package" ||
    fail "pip could not install $package (its own message is above); run the same command again to retry"
}

old_jax="" old_version="" old_checksum=""
stamp=$venv/.gradmix_jax
# A stamp counts only if its environment still works, because the Python behind it may be gone.
if [ -f "$stamp" ] && is_new "$venv/bin/python"; then
  read -r old_jax old_version old_checksum <"$stamp" || old_jax=""  # cut short: install again
fi
reason=""
if [ "$jax" = auto ] || [ -z "$jax$old_jax" ]; then
  read -r jax reason <<<"$(bash launch/detect_jax.sh)"
fi
jax=${jax:-$old_jax}
checksum=$(cksum <requirements.txt | tr ' ' -)
wanted_version=$old_version
if [ -n "$python" ]; then
  python=$(find_python)
  wanted_version=$(version "$python")
fi
if [ "$jax $wanted_version $checksum" = "$old_jax $old_version $old_checksum" ]; then
  reach_bucket
  exit 0
fi

jax_version=$(sed -n 's/^jax==//p' requirements.txt)
packages=(-r requirements.txt)
[ "$jax" = cpu ] || packages+=("jax[$jax]==$jax_version")
make_environment=() size="a minute or two"
[ "$jax" = cpu ] || size="several minutes"

# An environment with pip is updated in place, unless another Python or another JAX is requested, because two JAX
# plugins in one environment conflict.
if { [ -z "$old_jax" ] || [ "$old_jax" = "$jax" ]; } && [ "$old_version" = "$wanted_version" ] &&
  is_new "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  wanted_version=$(version "$venv/bin/python")
else
  if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    fail "'$venv' is a folder without a Python environment: move it or choose another --venv"
  fi
  [ -n "$python" ] || python=$(find_python)
  wanted_version=$(version "$python")
  make_environment=("$python" -m venv --clear "$venv")
fi
# -qq prints only errors. The package index comes from the user's pip configuration.
install=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input "${packages[@]}")

if [ "$dry_run" = true ]; then
  [ ${#make_environment[@]} -eq 0 ] || quoted "${make_environment[@]}"
  quoted "${install[@]}"
  reach_bucket
  exit
fi
echo "Installing Python $wanted_version packages and JAX $jax_version for $jax${reason:+ ($reason)} into $venv:" \
  "$size."
rm -f "$stamp"
[ ${#make_environment[@]} -eq 0 ] || "${make_environment[@]}"
# Unlike a user error (status 2), this may work next time, so a scheduler may retry.
exit_status=1
"${install[@]}" ||
  fail "pip could not install the packages (its own message is above); run the same command again to retry"
echo "$jax $wanted_version $checksum" >"$stamp"
reach_bucket
