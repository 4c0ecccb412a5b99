# shellcheck shell=bash
# What every script under tests/ shares: where things are, how they are said, how a download is kept once.
# Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# CAIRN_CACHE is another place for the tools. Cairn, which the tests start, would refuse it as a setting that it does not know,
# so the scripts that this one starts learn of the place by another name.
CACHE=${CAIRN_CACHE:-${TESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}}
unset CAIRN_CACHE
TESTS_CACHE=$CACHE
TOOLS=$CACHE/tools
export ROOT CACHE TESTS_CACHE TOOLS

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# stamped NAME VERSION: whether the tool NAME stands in the cache in exactly this version.
stamped() { [ "$(cat "$TOOLS/stamp/$1" 2>/dev/null)" = "$2" ]; }

# stamp NAME VERSION: records it, once everything of it is in place.
stamp() { mkdir -p "$TOOLS/stamp" && printf '%s\n' "$2" >"$TOOLS/stamp/$1.new" && mv "$TOOLS/stamp/$1.new" "$TOOLS/stamp/$1"; }

# locked NAME COMMAND...: runs it while no other process runs anything under the same name.
locked() {
    local name=$1
    shift
    mkdir -p "$CACHE"
    (flock 9; "$@") 9>"$CACHE/$name.lock"
}

# add_programs TREE FILE...: puts programs into the tree with every library that they load.
add_programs() {
    local tree=$1 file
    shift
    for file; do
        install -D -m 755 "$file" "$tree/$file"
        ldd "$file" | grep -oE '/[^ ]+\.so[^ ]*' | while read -r library; do
            install -D -m 755 "$library" "$tree/$library"
        done
    done
}
