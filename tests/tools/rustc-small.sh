#!/bin/sh
# What cargo calls instead of rustc for Cairn's own crates when tests/run.sh builds its small size: `rustc-small.sh RUSTC ARGUMENT...`.
# The unit tests are not optimized: that would take a minute more, and they run in seconds.
set -eu
case " $* " in
*" --crate-name cairn "*" --test "*) set -- "$@" -C opt-level=0 ;;
esac
exec "$@"
