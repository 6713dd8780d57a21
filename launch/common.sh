# shellcheck shell=bash
# Sourced by the launchers beside it: their help, refusals and options, and commands that --dry-run only prints.

DRY_RUN=
COMMAND=() # what follows --

# The comment at the top of the launcher.
usage() { sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "$0"; }

# A bad argument: one line that says what to do, exit code 2.
die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# The words as one would type them: quoted where they must be.
quoted() {
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] && words+=("$word") || words+=("${word@Q}")
  done
  printf '%s' "${words[*]}"
}

# Runs a command, or prints it.
run() {
  if [[ $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# parse "OPTIONS" "$@": --some-name=value and --some-name value set SOME_NAME, a word of its own ACTION, what follows --
# COMMAND. OPTIONS are the known names; the launcher has given each variable its default.
# shellcheck disable=SC2034  # ACTION is read by the launcher
parse() {
  local known=" $1 " name value
  shift
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --)
        shift
        COMMAND=("$@")
        return
        ;;
      --*)
        name=${1%%=*} value=${1#*=}
        [[ $known == *" ${name#--} "* ]] || die "unknown option $name (see --help)"
        if [[ $1 != *=* ]]; then
          (($# > 1)) || die "$name needs a value"
          shift
          value=$1
        fi
        name=${name#--} name=${name//-/_}
        printf -v "${name^^}" '%s' "$value"
        ;;
      -*) die "unknown option $1 (see --help)" ;;
      *) ACTION=$1 ;;
    esac
    shift
  done
}

# need NAME...: refuses the first of these options that has no value.
need() {
  local name variable
  for name in "$@"; do
    variable=${name//-/_} variable=${variable^^}
    [[ ${!variable} ]] || die "--$name is missing: give it, or export EDLM_$variable"
  done
}

# number NAME...: refuses the first of these options that is no positive whole number.
number() {
  local name variable
  for name in "$@"; do
    variable=${name//-/_} variable=${variable^^}
    [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || die "--$name must be a positive whole number, not '${!variable}'"
  done
}

# Refuses an empty command.
need_command() {
  ((${#COMMAND[@]})) || die "nothing to run: give edlm's arguments after --, as in: -- train --config=..."
}
