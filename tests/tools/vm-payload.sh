#!/bin/bash
# vm-payload.sh OUT [NAME=]PATH...: creates an archive for the test machine, with each file at /payload/NAME or at its own
# path. Programs are stripped, and come with the libraries that they load. Other files and directories are copied as they
# are. The archive is attached as a virtual disk, from which the guest unpacks it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# add TREE PATH TARGET: copies PATH to TARGET in the tree.
add() {
    local tree=$1 path=$2 target=$1$3
    mkdir -p "$(dirname "$target")"
    if [ -f "$path" ] && [ -x "$path" ]; then
        add_programs "$tree" "$path"
        [ "$tree$path" = "$target" ] || mv "$tree$path" "$target"
        strip "$target"
    else
        cp -R "$path" "$target"
    fi
}

main() {
    local out=$1 tree item
    shift
    tree=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$tree'" EXIT
    for item; do
        case $item in
        *=*) add "$tree" "${item#*=}" "/payload/${item%%=*}" ;;
        *) add "$tree" "$item" "$item" ;;
        esac
    done
    # This becomes the root directory of the machine, where not every process is root.
    chmod 755 "$tree"
    tar -C "$tree" -cf "$out" .
}

main "$@"
