#!/usr/bin/env bash
# Checks the pinned versions of the package, its documentation and its extras for known vulnerabilities.
#
#   bash launch/audit.sh [--requirements=FILE ...]
#
# --requirements  a file to audit; default: requirements.txt, docs/requirements.txt and launch/extras.txt
#
# Uses the pip-audit of the checkout's environment if it has the version below, otherwise one in a separate environment,
# .venv-audit. Exits with status 1 if a version has a known vulnerability. Without a network it says that the audit was
# skipped and exits with status 0. Packages that the databases do not know are listed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/commands.sh

version=2.10.1 requirements=()
for argument in "$@"; do
  case "$argument" in
    --requirements=*) requirements+=("${argument#*=}") ;;
    --help | -h) usage launch/audit.sh && exit ;;
    *) fail "unknown argument '$argument': use --requirements" ;;
  esac
done
[ ${#requirements[@]} -gt 0 ] || requirements=(requirements.txt docs/requirements.txt launch/extras.txt)
for file in "${requirements[@]}"; do
  [ -f "$file" ] || fail "there is no file '$file'"
done

skip() {
  printf 'audit skipped: %s\n' "$1"
  exit 0
}

has_audit() { [ -x "$1/bin/python" ] && [ "$("$1/bin/python" -m pip_audit --version 2>/dev/null)" = "pip-audit $version" ]; }

python=.venv
if ! has_audit "$python"; then
  python=.venv-audit
  if ! has_audit "$python"; then
    "${PYTHON:-python3}" -m venv "$python" 2>/dev/null || skip "no Python can create an environment; set PYTHON"
    "$python/bin/python" -m pip install -qq --disable-pip-version-check --no-input "pip-audit==$version" 2>/dev/null ||
      skip "pip-audit $version cannot be installed (is there a network?)"
  fi
fi
exec "$python/bin/python" launch/audit.py "${requirements[@]}"
