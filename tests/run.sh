#!/bin/bash
# The checks and the tests of Cairn. Installs what they need first; the machine needs nothing but a Rust toolchain.
#
#   tests/run.sh                  the small size: nearly every kind of check, made for a quarter of an hour
#   tests/run.sh all              the full size: everything, as CI runs it
#   tests/run.sh SUITE...         these suites at full size (the other suites' minima are not compared)
#   tests/run.sh small SUITE...   these suites at the small size
#
# Ends with a table of suites and a last line "N passed, N failed"; the exit status is non-zero if anything failed.
# A suite that has fewer passing tests than tests/minima.tsv says has failed: no test is lost without being noticed.
# That file also says which suites the small size leaves out; the table lists them.
set -u -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/tools/common.sh"
cd "$ROOT" || exit 1
exec </dev/null
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 NO_COLOR=1 RUST_BACKTRACE=0
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

SIZE=small
case ${1:-} in
small | all) SIZE=$1 && shift ;;
?*) SIZE=all ;;
esac
ONLY=("$@")
# What is tested at full size is what is shipped.
PROFILE=release
if [ "$SIZE" = small ]; then
    PROFILE=quick
    export RUSTC_WORKSPACE_WRAPPER=$ROOT/tests/tools/rustc-small.sh
fi
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
LOGS=$TARGET/test-logs
MINIMA=$ROOT/tests/minima.tsv
mkdir -p "$LOGS"
printf '# suites at the size %s\n' "$SIZE" >"$LOGS/counts.tsv"
top() { find "$ROOT" -mindepth 1 -maxdepth 1 -printf '%f\n' | LC_ALL=C sort; }
TOP=$(top)

declare -a ORDER=() NOTES=() LEFT_OUT=()
declare -A PASSED=() FAILED=() SECONDS_OF=()
TOTAL_PASSED=0 TOTAL_FAILED=0

# --- running one suite -----------------------------------------------------------------------------------------------

is_small() { [ "$SIZE" = small ]; }

# Whether a suite is asked for, be it only by asking for no other.
asked() {
    local suite
    [ ${#ONLY[@]} -gt 0 ] || return 0
    for suite in "${ONLY[@]}"; do [ "$suite" != "$1" ] || return 0; done
    return 1
}

wanted() { asked "$1" && [ "$(minimum "$1")" != - ]; }

# What a suite must pass at this size, or `-` for a suite that this size leaves out.
minimum() {
    awk -F'\t' -v suite="$1" -v size="$SIZE" '$1 == suite { print ((size == "small" && NF > 2) ? $3 : $2) }' "$MINIMA"
}

# count PASSED FAILED: what a suite that is not libtest's reports.
count() { printf 'counted: %s passed; %s failed\n' "$1" "$2"; }

# limited SECONDS COMMAND...: a hang is a failure, and takes its children with it.
limited() { timeout --kill-after=10 "$@"; }

# suite NAME FUNCTION [ARGUMENT...]: its output goes to a log, its counts into the table.
suite() {
    local name=$1 log=$LOGS/$1.log begun=$SECONDS status=0 passed failed least
    shift
    asked "$name" || return 0
    wanted "$name" || { LEFT_OUT+=("$name") && return 0; }
    say "== $name"
    "$@" >"$log" 2>&1 || status=$?
    # libtest's ignored tests count as failed: nothing is skipped here.
    read -r passed failed < <(awk '
        /^test result: / { gsub(";", ""); for (i = 2; i < NF; i++) { if ($(i+1) == "passed") p += $i
                                          if ($(i+1) == "failed" || $(i+1) == "ignored") f += $i } }
        /^counted: /     { p += $2; f += $4 }
        END              { print p + 0, f + 0 }' "$log")
    [ "$status" = 0 ] || [ "$failed" -gt 0 ] || failed=1
    least=$(minimum "$name")
    # Some suites need only one of the two builds.
    [ "$name" != build ] || [ ${#ONLY[@]} = 0 ] || least=1
    if [ "$status" = 0 ] && [ "$failed" = 0 ] && [ "$passed" -lt "${least:-0}" ]; then
        echo "$passed passed, but tests/minima.tsv asks for $least" >>"$log"
        failed=1
    fi
    ORDER+=("$name")
    PASSED[$name]=$passed FAILED[$name]=$failed SECONDS_OF[$name]=$((SECONDS - begun))
    TOTAL_PASSED=$((TOTAL_PASSED + passed)) TOTAL_FAILED=$((TOTAL_FAILED + failed))
    printf '%s\t%s\n' "$name" "$passed" >>"$LOGS/counts.tsv"
    if [ "$failed" -gt 0 ]; then
        say "-- $name FAILED (exit status $status), the end of $log:"
        tail -n 80 "$log" >&2
    fi
    return 0
}

# --- the suites ------------------------------------------------------------------------------------------------------

# Debian's packages come first, since nearly every suite needs one. Building the other tools takes minutes on a machine that
# is new, and one processor idles in some phases of that and of the release build: so both go on at the same time.
begin_tools() {
    wanted tools || return 0
    say "== packages"
    : >"$LOGS/tools-built.log"
    "$ROOT/tests/tools/install.sh" packages >"$LOGS/packages.log" 2>&1
    TOOLS_STATUS=$?
    [ "$TOOLS_STATUS" = 0 ] || return 0
    setsid "$ROOT/tests/tools/install.sh" "${TOOL_PARTS[@]}" >"$LOGS/tools-built.log" 2>&1 &
    TOOLS_JOB=$!
    # The compilers that it starts end with it.
    trap 'kill -- "-$TOOLS_JOB" 2>/dev/null' EXIT
}
TOOL_PARTS=(s3 machine operations qemu10)
is_small || TOOL_PARTS+=(deny fuzz)

# Waits for the tools that are being built.
suite_tools() {
    if [ "$TOOLS_STATUS" = 0 ]; then
        wait "$TOOLS_JOB"
        TOOLS_STATUS=$?
        trap - EXIT
    fi
    cat "$LOGS/packages.log" "$LOGS/tools-built.log"
    [ "$TOOLS_STATUS" = 0 ] && count $((${#TOOL_PARTS[@]} + 1)) 0
}

suite_fmt() { cargo fmt --check && count 1 0; }

suite_shell() {
    local files
    mapfile -t files < <(scripts)
    shellcheck --external-sources --source-path=SCRIPTDIR "${files[@]}" && count ${#files[@]} 0
}

scripts() { tracked | while read -r file; do head -c 64 "$file" | head -n 1 | grep -qE '^#!.*\b(ba)?sh\b|^# shellcheck shell=' && echo "$file"; done; }

# Files of the working tree that are or may become part of the repository; in a copy without history, all but the build.
tracked() {
    history_git ls-files --cached --others --exclude-standard 2>/dev/null ||
        find . -path ./target -prune -o -type f -printf '%P\n'
}

history_git() { git -c safe.directory='*' -C "$ROOT" "$@"; }

suite_yaml() {
    local files
    mapfile -t files < <(tracked | grep -E '\.ya?ml$' | grep -v '/templates/')
    [ ${#files[@]} -gt 0 ] || { count 0 0; return; }
    yamllint --strict -d '{extends: default, rules: {line-length: {max: 140}, document-start: disable, truthy: {check-keys: false}}}' \
        "${files[@]}" && count ${#files[@]} 0
}

# The minima only rise: not from the parent commits to this one, not from this one to the working tree.
suite_minima() {
    local revision
    awk -F'\t' '/^#/ { next }
        NF < 2 || NF > 3 || $2 !~ /^[0-9]+$/ || (NF == 3 && $3 !~ /^([0-9]+|-)$/) || (NF == 3 && $3 + 0 > $2 + 0) {
            print "not `suite<TAB>minimum[<TAB>minimum of the small size, or -]`: " $0; bad = 1 }
        END { exit bad }' "$MINIMA" || return 1
    if history_git rev-parse --verify --quiet HEAD >/dev/null; then
        for revision in HEAD $(history_git rev-list --parents -n 1 HEAD | cut -s -d' ' -f2-); do
            history_git show "$revision:tests/minima.tsv" >"$LOGS/minima.older" 2>/dev/null || continue
            awk -F'\t' -v older="$revision" '
                function small() { return NF > 2 ? $3 : $2 }
                FNR == 1       { file++ }
                # Before there were two sizes, the file said nothing of the small one.
                file == 1 && FNR == 1 { sizes = /small/ }
                /^#/           { next }
                file == 1      { before[$1] = $2; if (sizes) before[$1 " (small)"] = small(); next }
                               { now[$1] = $2; now[$1 " (small)"] = small() }
                END { for (s in before) if (now[s] + 0 < before[s] + 0) {
                          printf "the minimum of %s fell from %d (%s) to %d\n", s, before[s], older, now[s]; bad = 1 }
                      exit bad }' "$LOGS/minima.older" "$MINIMA" || return 1
        done
    else
        echo "no history here: only the form of tests/minima.tsv was checked"
    fi
    count 1 0
}

# The charts, and the files under deploy.
suite_helm() { limited 600 tests/ops/helm.sh; }

# docker-compose.yml in real containers, on an engine that is started for it. Asked for alone, the suite builds the program as
# deploy/Dockerfile says; in a run of all suites it takes the one that the other suites test, which saves a release build.
suite_container() {
    [ ${#ONLY[@]} -gt 0 ] || local -x CAIRN_CONTAINER_PROGRAM=$TARGET/$PROFILE/cairn
    limited 2400 tests/container/run.sh
}

suite_deploy() { limited 300 tests/ops/deploy.sh; }

# The profile of the builds throughout: build scripts and macros are shared with the tests. With the gateway, and the library
# alone.
suite_clippy() {
    limited 1800 cargo clippy --profile "$PROFILE" --all-targets --quiet -- -D warnings &&
        limited 900 cargo clippy --profile "$PROFILE" --no-default-features --all-targets --quiet -- -D warnings && count 2 0
}

suite_deny() { limited 300 "$TOOLS/bin/cargo-deny" --offline check bans licenses sources && count 3 0; }

# Each golden file, read by a program that shares nothing with Cairn.
suite_peer() {
    limited 300 /usr/bin/python3 "$ROOT/tests/golden/codec.py" && limited 300 /usr/bin/python3 "$ROOT/tests/golden/stream.py" && count 2 0
}

# Every fuzz target from its corpus: half a minute for each of the protocol's machines, a few seconds for each decoder.
suite_fuzz() { limited 3600 "$ROOT/tests/tools/fuzz.sh" 30 5; }

# The full size makes two programs. The one that can commit deliberate faults is built first, and is put aside; then what
# ships, and the tests of it. The simulation and the power cuts are in the first build alone: without a fault chosen they are
# the honest run, and the power cuts run the program that ships. A string that is in one program alone shows which is which.
# The small size makes only the first program, hardly optimized, and tests it without a fault chosen: this takes less than half
# the time of the two builds.
suite_build() {
    local faulty=$LOGS/artifacts-mutants.json honest=$LOGS/artifacts.json
    if is_small; then build_small "$honest"; else build_all "$faulty" "$honest"; fi
}

build_small() {
    limited 3000 cargo test --profile "$PROFILE" --no-run --features mutants --lib --test it --test simulation \
        --message-format=json-render-diagnostics >"$1" || return 1
    executable simulation "$1" >"$LOGS/simulation.path" && executable lib "$1" >"$LOGS/lib.path" &&
        executable it "$1" >"$LOGS/it.path" && cp "$TARGET/$PROFILE/cairn" "$FAULTY" && grep -q "$IN_FAULTY" "$FAULTY" &&
        count 2 0
}

build_all() {
    local faulty=$1 honest=$2 passed=1
    if wanted simulation || wanted power || wanted mutants; then
        limited 3000 cargo test --profile "$PROFILE" --no-run --features mutants --test simulation \
            --message-format=json-render-diagnostics >"$faulty" || return 1
        executable simulation "$faulty" >"$LOGS/simulation.path" && cp "$TARGET/$PROFILE/cairn" "$FAULTY" &&
            grep -q "$IN_FAULTY" "$FAULTY" || return 1
        passed=2
    fi
    # The unit tests are not optimized and the integration tests themselves hardly, which saves minutes. What the
    # integration tests test is what ships.
    limited 3000 cargo test --profile "$PROFILE" --no-run --lib --message-format=json-render-diagnostics \
        --config "profile.$PROFILE.package.cairn-nbd.opt-level=0" >"$honest" &&
        limited 3000 cargo rustc --profile "$PROFILE" --test it --message-format=json-render-diagnostics -- \
            -C opt-level=1 -C debuginfo=0 >>"$honest" || return 1
    executable lib "$honest" >"$LOGS/lib.path" && executable it "$honest" >"$LOGS/it.path" || return 1
    if grep -q "$IN_FAULTY" "$TARGET/$PROFILE/cairn"; then
        echo "the program that ships can commit deliberate faults"
        return 1
    fi
    count "$passed" 0
}
FAULTY=$LOGS/cairn-with-mutants
IN_FAULTY='names no mutant'

# executable NAME LIST: the test binary that cargo built from the library or from the integration target NAME.
executable() {
    jq -e -r -s --arg name "$1" 'map(select(.reason == "compiler-artifact" and .profile.test and .executable)
        | select(if $name == "lib" then .target.kind == ["lib"] else .target.kind == ["test"] and .target.name == $name end))
        | first | .executable' "$2"
}

# Where nothing but `sh` can be found, as on a machine that has a Rust toolchain and nothing else.
BARE=$ROOT/tests/tools/bare.sh

suite_unit() { limited 1200 "$BARE" "$(cat "$LOGS/lib.path")"; }

# Clippy has checked the dependencies in this profile already, so that rustdoc need not. The examples link the library that
# this size has built.
suite_doc() {
    local features=()
    ! is_small || features=(--features mutants)
    RUSTDOCFLAGS='-D warnings' limited 1200 cargo doc --profile "$PROFILE" --no-deps --quiet &&
        limited 1200 cargo test --profile "$PROFILE" --doc "${features[@]}" && count 1 0
}

# One suite per module of the integration binary, as libtest lists them: cheap ones first, virtual machines last.
modules() {
    local listed
    listed=$("$(cat "$LOGS/it.path")" --list --format terse | sed -n 's/: test$//p' | cut -d: -f1 | sort -u)
    for first in tidy golden model conformance store volume; do grep -qx "$first" <<<"$listed" && echo "$first"; done
    grep -vxE 'tidy|golden|model|conformance|store|volume|interop|vm' <<<"$listed"
    for last in interop vm; do grep -qx "$last" <<<"$listed" && echo "$last"; done
    return 0
}

# listed BINARY [OPTION]...: the tests of a binary, in order; with --ignored those that need other programs.
listed() { "$@" --list --format terse | sed -n 's/: test$//p' | LC_ALL=C sort; }

# Each takes a minute or more; the small size leaves them out.
LONG=(interop::memory::random_writes_over_64_gib_stay_within_the_bounds_of_memory
    interop::snapshots::snapshots_of_a_busy_file_system_and_database_are_whole
    interop::real_input::a_file_tree_survives_the_death_of_its_gateway)

# Tests that need no other program run where there is none; those that say what they need then run with everything.
suite_module() {
    local binary all marked plain options=() status=0
    binary=$(cat "$LOGS/it.path")
    mapfile -t all < <(listed "$binary" | grep -E "^$1(::|$)")
    mapfile -t marked < <(listed "$binary" --ignored | grep -E "^$1(::|$)")
    mapfile -t plain < <(LC_ALL=C comm -23 <(printf '%s\n' "${all[@]}") <(printf '%s\n' "${marked[@]}"))
    [ ${#all[@]} -gt 0 ] || { echo "the integration binary has no module $1"; return 1; }
    case $1 in
    vm) options=(--test-threads=1) ;;
    # It says how long commands waited while gateways were replaced.
    lifecycle) options=(--nocapture) ;;
    interop) ! is_small || mapfile -t marked < <(printf '%s\n' "${marked[@]}" | grep -vxF "$(printf '%s\n' "${LONG[@]}")") ;;
    crash) ! is_small || local -x CAIRN_CRASH_ROUNDS=${CAIRN_CRASH_ROUNDS:-1} ;;
    esac
    # Most of their time these wait for other programs.
    case $1 in
    cli) options+=(--test-threads=$((2 * $(nproc)))) ;;
    guide | interop | ops) ! is_small || options+=(--test-threads=$((2 * $(nproc)))) ;;
    esac
    [ ${#plain[@]} = 0 ] || limited 2400 "$BARE" "$binary" --exact "${plain[@]}" "${options[@]}" || status=$?
    [ ${#marked[@]} = 0 ] || limited 2400 "$binary" --ignored --exact "${marked[@]}" "${options[@]}" || status=$?
    return "$status"
}

# So many seeds on all processors, and no fault is chosen; at the full size every fault of the surroundings must meet
# every phase. The power cuts are in the same binary and are suites of their own.
suite_simulation() {
    local seeds=0..2000 tests
    ! is_small || seeds=0..500
    mapfile -t tests < <(listed "$(cat "$LOGS/simulation.path")" | grep -vE "^(power|mutants::committed)::")
    CAIRN_SIM_SEEDS=$seeds limited 1500 "$BARE" "$(cat "$LOGS/simulation.path")" --exact --nocapture "${tests[@]}"
}

# What goes by turns goes by the number of commits.
turn() { history_git rev-list --count HEAD 2>/dev/null || echo 0; }

# Those of the power cuts that commit deliberate faults.
MUTANTS_OF_POWER=(power::matrix::a_flush_that_is_not_passed_on_is_caught power::directory::a_sync_that_is_left_out_is_caught
    power::replay::what_breaks_a_promise_is_caught)

# Power cuts: one cell of the matrix and one workload's replay, those whose turn it is; what CAIRN_POWER_CELLS asks for
# takes its time. The small size leaves the replay and Cairn's own machine out.
suite_power() {
    local tests turn
    turn=$(turn)
    echo "turn $turn"
    mapfile -t tests < <(listed "$(cat "$LOGS/simulation.path")" | grep -E '^(power|checker)::' |
        grep -vxF "$(printf '%s\n' "${MUTANTS_OF_POWER[@]}")")
    ! is_small || mapfile -t tests < <(printf '%s\n' "${tests[@]}" |
        grep -vE '::what_was_answered_survives_a_crash_at_any_time$|^power::directory::')
    CAIRN_POWER_TURN=$turn limited "${CAIRN_POWER_LIMIT:-1500}" "$(cat "$LOGS/simulation.path")" --include-ignored --exact \
        --nocapture --test-threads=1 "${tests[@]}"
}

# Deliberate faults, each of which the simulation must catch, and those that take a power cut. The small size commits one
# in four by turn, and leaves out those that take a machine.
suite_mutants() {
    local binary turn of_power=("${MUTANTS_OF_POWER[@]}")
    binary=$(cat "$LOGS/simulation.path")
    if is_small; then
        turn=$(turn)
        local -x CAIRN_MUTANTS_TURN=${CAIRN_MUTANTS_TURN:-$turn}
        of_power=("${MUTANTS_OF_POWER[0]}")
    fi
    limited 1800 "$BARE" "$binary" --exact --nocapture mutants::committed::every_mutant_is_caught || return 1
    CAIRN_TEST_BINARY=$FAULTY limited 1800 "$binary" --include-ignored --exact --nocapture --test-threads=1 "${of_power[@]}"
}

# Programs under test leave files where they run: none may become part of the repository.
suite_strays() {
    local new
    new=$(LC_ALL=C comm -13 <(printf '%s\n' "$TOP") <(top))
    if [ -z "$new" ]; then count 1 0; else
        echo "left by a test: $new"
        count 0 1
    fi
}

# --- all of them -----------------------------------------------------------------------------------------------------

begin_tools
suite fmt suite_fmt
suite shell suite_shell
suite yaml suite_yaml
suite minima suite_minima
suite peer suite_peer
suite clippy suite_clippy
for name in "${ONLY[@]}"; do
    wanted "$name" || continue
    case $name in
    tools | fmt | shell | yaml | minima | deny | clippy | build | fuzz | helm | deploy | container | strays) ;;
    *) ONLY+=(build) ;;
    esac
done
suite build suite_build
suite tools suite_tools
[ "$(cat "$TOOLS/s3-server" 2>/dev/null)" != moto ] ||
    NOTES+=("MinIO could not be built here: THE S3 TESTS RAN AGAINST MOTO.")
suite deny suite_deny
suite helm suite_helm
suite deploy suite_deploy
[ ${#ONLY[@]} = 0 ] || suite container suite_container
if [ "${FAILED[build]:-1}" = 0 ]; then
    suite unit suite_unit
    suite doc suite_doc
    suite simulation suite_simulation
    for module in $(modules); do suite "$module" suite_module "$module"; done
    suite power suite_power
    suite mutants suite_mutants
    [ ${#ONLY[@]} -gt 0 ] || suite container suite_container
fi
suite fuzz suite_fuzz
suite strays suite_strays

# What has a minimum and was not run, has failed.
if [ ${#ONLY[@]} = 0 ] && [ -r "$MINIMA" ]; then
    while IFS=$'\t' read -r name _; do
        case $name in '#'*) continue ;; esac
        [ -z "${PASSED[$name]:-}" ] || continue
        wanted "$name" || continue
        [ "$(minimum "$name")" -gt 0 ] || continue
        ORDER+=("$name")
        PASSED[$name]=0 FAILED[$name]=1 SECONDS_OF[$name]=0
        TOTAL_FAILED=$((TOTAL_FAILED + 1))
    done <"$MINIMA"
fi

{
    printf 'suite|passed|failed|seconds|minimum\n'
    for name in "${ORDER[@]}"; do
        printf '%s|%s|%s|%s|%s\n' "$name" "${PASSED[$name]}" "${FAILED[$name]}" "${SECONDS_OF[$name]}" "$(minimum "$name")"
    done
} | awk -F'|' '{ printf "%-14s %8s %8s %8s %8s\n", $1, $2, $3, $4, $5 }'
# What was measured on the way.
for name in "${ORDER[@]}"; do grep -hE '^measured: |the longest stall' "$LOGS/$name.log"; done
for note in "${NOTES[@]}"; do echo "$note"; done
! is_small || echo "this was the small size; \`tests/run.sh all\` also runs: ${LEFT_OUT[*]} ${LONG[*]}"
echo "$TOTAL_PASSED passed, $TOTAL_FAILED failed"
[ "$TOTAL_FAILED" = 0 ]
