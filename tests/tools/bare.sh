#!/bin/bash
# Runs a command as if the machine had no program but `sh`: a directory that contains nothing else is mounted over each
# directory of programs, and the home directory is empty. A test that passes here passes wherever it can be built.
#
#   tests/tools/bare.sh COMMAND [ARGUMENT]...
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/home"
cp /bin/sh "$work/bin/sh"
namespaces=(--mount)
[ "$(id -u)" = 0 ] || namespaces+=(--map-root-user)

# The directory that contains `mount` itself comes last.
# shellcheck disable=SC2016
unshare "${namespaces[@]}" /bin/bash -c '
    set -eu
    bare=$1
    shift
    for directory in /usr/local/sbin /usr/local/bin /sbin /usr/sbin /usr/bin /bin; do
        [ ! -d "$directory" ] || [ -L "$directory" ] || mount --bind "$bare/bin" "$directory"
    done
    unset CAIRN_CACHE XDG_CACHE_HOME
    export PATH=/usr/bin:/bin HOME="$bare/home"
    exec "$@"' bash "$work" "$@"
