#!/bin/bash
# vm-payload.sh OUT NAME=PROGRAM...: an archive of programs for the test machine, each as /payload/NAME without what
# debuggers read, with the libraries that they load. A guest unpacks it from the virtual disk that it is attached as.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    local out=$1 tree item name program
    shift
    tree=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$tree'" EXIT
    mkdir -p "$tree/payload"
    for item; do
        name=${item%%=*}
        program=${item#*=}
        add_programs "$tree" "$program"
        mv "$tree/$program" "$tree/payload/$name"
        strip "$tree/payload/$name"
    done
    tar -C "$tree" -cf "$out" .
}

main "$@"
