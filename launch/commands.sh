# shellcheck shell=bash
# Functions shared by the launch scripts, which source this file.
# Compatible with bash 3.2, the version of macOS.

# Ends the script with an error message, on one line even if values in it contain line breaks.
exit_status=2
fail() {
  printf '%s: %s\n' "${0##*/}" "$(printf '%s' "$*" | LC_ALL=C tr '[:cntrl:]' ' ')" >&2
  exit "$exit_status"
}

# Prints the comment at the top of a script: its manual.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
}

# Prints its arguments quoted for a shell, in one line.
quoted() {
  local LC_ALL=C word line=""
  for word in "$@"; do
    case "$word" in
      *[!A-Za-z0-9_@%+=:,./-]* | "")
        # The dot keeps line breaks at the end, which $(...) would cut off.
        word=$(printf '%s.' "$word" | sed "s/'/'\\\\''/g")
        word="'${word%.}'"
        ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Whether the whole of $1 matches the extended regular expression $2.
matches() {
  local LC_ALL=C
  [[ $1 =~ ^($2)$ ]]
}

# Prints a command and executes it; with dry_run=true, which the script that sources this sets, only prints it.
run() {
  quoted "$@"
  # shellcheck disable=SC2154
  [ "$dry_run" = true ] || "$@"
}

# Ends the script if a program is missing. A dry run needs no programs.
need() {
  [ "$dry_run" = true ] || command -v "$1" >/dev/null || fail "$1 was not found on PATH: $2"
}

# Prints the commit of this checkout, followed by a + if files have changed since; nothing if git knows no commit.
commit() {
  local head
  head=$(git rev-parse HEAD 2>/dev/null) || return 0
  [ -z "$(git status --porcelain --untracked-files=no)" ] || head=$head+
  printf '%s' "$head"
}

# Checks the two flags of every main job.
check_job() {
  [ -n "$config" ] || fail "--config is missing: name a file such as configs/digits_osr.py"
  # A recipe may follow a colon: configs/digits_osr.py:layer.
  [ -f "${config%%:*}" ] || fail "--config='$config' is not a file in $PWD"
  check_workdir
}

# Checks --workdir and turns it into a path that no program can misread.
check_workdir() {
  [ -n "$workdir" ] || fail "--workdir is missing: name the folder for checkpoints and results, such as runs/digits"
  case "$workdir" in
    *[[:cntrl:]]*) fail "--workdir='$workdir' must not have a line break or another control character" ;;
    *[][*?]*) fail "--workdir='$workdir' must not have [ ] * or ?" ;;
    gs://?*/?* | s3://?*/?*) ;;
    *://*) fail "--workdir='$workdir' must be a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER" ;;
    # The main job does the same; a shell does not expand the ~ of --workdir=~/runs.
    \~ | \~/*)
      [ -n "${HOME:-}" ] || fail "--workdir='$workdir' needs HOME, which is not set"
      workdir=$HOME${workdir#\~}
      ;;
    \~*) fail "--workdir='$workdir' must not start with the home directory of another user: write it out" ;;
    -*) workdir=./$workdir ;;
  esac
}

# Whether the workdir is in a bucket.
in_bucket() {
  case "$workdir" in
    gs://* | s3://*) return 0 ;;
    *) return 1 ;;
  esac
}

# Ends the script, before anything is installed or submitted, if the workdir cannot be a folder of this machine.
check_folder() {
  local path=$workdir
  ! in_bucket || return 0
  # The nearest thing on the way to it that exists, if only as a link to nothing.
  while [ ! -e "$path" ] && [ ! -L "$path" ]; do
    case "$path" in
      */*) path=${path%/*} ;;
      *) path=. ;;
    esac
    path=${path:-/}
  done
  [ -d "$path" ] || fail "--workdir='$workdir' must be a folder, but '$path' is none"
}

# Prints the folder of the job's log: the workdir, or for one in a bucket the folder of the same name in runs/.
log_folder() {
  local path=${workdir%/}
  if in_bucket; then printf 'runs/%s' "${path##*/}"; else printf '%s' "$workdir"; fi
}
