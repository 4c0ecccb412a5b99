#!/bin/sh
# What cargo calls instead of rustc for Cairn's own crates when tests/run.sh builds its small size: `rustc-small.sh RUSTC ARGUMENT...`.
# Unit and integration tests are not optimized, since optimizing them takes longer than it saves. What they test is.
set -eu
for argument; do
    case $argument in
    simulation) exec "$@" ;;
    --test) set -- "$@" -C opt-level=0 ;;
    esac
done
exec "$@"
