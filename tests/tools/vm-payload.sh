#!/bin/bash
# vm-payload.sh OUT [NAME=]PATH...: an archive for the test machine, each as /payload/NAME or at its own path: programs
# without what debuggers read, with the libraries that they load; other files and directories as they are. A guest unpacks
# it from the virtual disk that it is attached as.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# add TREE PATH TARGET: puts it there.
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
    # It becomes the root of the machine, where not all is run by root.
    chmod 755 "$tree"
    tar -C "$tree" -cf "$out" .
}

main "$@"
