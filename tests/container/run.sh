#!/bin/bash
# docker-compose.yml in real containers: the shipped Dockerfile is built, the whole is brought up, written to, watched,
# taken down, brought up again and read back. Prints what the image weighs, starts in and takes when idle.
#
# The images of the registry are stood in for, under their names and tags, by ones that images are made of here.
set -u -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/common.sh"
WORK=$(mktemp -d)
. "$(dirname "${BASH_SOURCE[0]}")/docker.sh"
cd "$ROOT" || exit 1

URI=nbd://localhost:10809/disk
# With the Python that Debian's libnbd is for.
NBDSH=(/usr/bin/python3 -m nbd)
IMAGE=
passed=0 failed=0
LOAD=

check() {
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: $what"; fi
}

compose() {
    DOCKER_HOST=unix://$WORK/docker.sock "$TOOLS/compose/bin/docker-compose" --progress plain --file docker-compose.yml "$@"
}

# shellcheck disable=SC2317  # by the trap
take_down() {
    [ -z "$LOAD" ] || kill "$LOAD" 2>/dev/null
    if [ -n "$ENGINE" ] && docker info >/dev/null 2>&1; then
        [ "$failed" = 0 ] || compose logs --tail 40 2>&1
        docker ps --all --quiet | xargs -r "/usr/bin/docker" --host "unix://$WORK/docker.sock" rm --force --volumes >/dev/null
        docker volume ls --quiet | xargs -r "/usr/bin/docker" --host "unix://$WORK/docker.sock" volume rm --force >/dev/null
        docker network prune --force >/dev/null
        docker image prune --force >/dev/null
    fi
    stop_engine
    remove_network
    rm -rf "$WORK"
}
trap take_down EXIT
trap 'exit 1' INT TERM

# ask METHOD PATH: of the gateway's admin server, as from this machine.
ask() { inside curl -sS -X "$1" "http://localhost:9180$2"; }

# prometheus QUERY: what it answers, as JSON.
prometheus() { inside curl -sS --get --data-urlencode "query=$1" http://localhost:9090/api/v1/query; }

# --- the image -------------------------------------------------------------------------------------------------------

build_image() {
    build -f deploy/Dockerfile -t "$IMAGE" . >"$WORK/build.log" 2>&1 || { tail -n 40 "$WORK/build.log"; return 1; }
}

# Whoever lists what an image is made of finds Debian's packages and no compiler.
image_can_be_listed() {
    docker run --rm --network=none --entrypoint dpkg-query "$IMAGE" -W >"$WORK/packages" &&
        grep -q '^ca-certificates' "$WORK/packages" && ! grep -qE '^(gcc|rustc|cargo)[[:space:]:]' "$WORK/packages"
}

image_has_a_user_and_a_health_check() {
    docker image inspect "$IMAGE" | jq -e '.[0].Config | (.User | test("^[1-9][0-9]*:[1-9][0-9]*$"))
        and .Healthcheck.Test[:3] == ["CMD", "cairn", "health"] and .StopSignal == "SIGTERM"' >/dev/null
}

# Started with nothing to write but its volume; what it takes when nobody uses it, and that it ends in good order.
measure() {
    local id started listening kib
    id=$(docker run --detach --read-only --cap-drop ALL --security-opt no-new-privileges:true --volume /data "$IMAGE" \
        serve --create disk=10GiB) || return 1
    until docker logs "$id" 2>/dev/null | grep -q '^listening on'; do
        docker inspect "$id" | jq -e '.[0].State.Running' >/dev/null || { docker logs "$id"; return 1; }
        sleep 0.1
    done
    started=$(date -d "$(docker inspect --format '{{.State.StartedAt}}' "$id")" +%s%N)
    listening=$(date -d "$(docker logs --timestamps "$id" 2>/dev/null | sed -n 's/ listening on .*//p' | head -n 1)" +%s%N)
    kib=$(awk '/^VmRSS:/ { print $2 }' "/proc/$(docker inspect --format '{{.State.Pid}}' "$id")/status")
    echo "measured: image $(($(docker image inspect --format '{{.Size}}' "$IMAGE") / 1000000)) MB, of which Cairn" \
        "$(docker run --rm --network=none --entrypoint stat "$IMAGE" -c %s /usr/local/bin/cairn | awk '{ printf "%d MB", $1 / 1000000 }');" \
        "serves $(((listening - started) / 1000000)) ms after its start; idle with one open volume $((kib / 1024)) MiB resident"
    docker stop "$id" >/dev/null
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$id")" = 0 ] || { docker logs "$id"; return 1; }
    [ "$kib" -lt $((30 * 1024)) ]
}

# --- the services ----------------------------------------------------------------------------------------------------

up() { compose up --detach --wait --wait-timeout 240 >"$WORK/up.log" 2>&1 || { tail -n 40 "$WORK/up.log"; return 1; }; }

export_is_there() { [ "$(inside nbdinfo --size "$URI")" = $((10 << 30)) ]; }

write_data() {
    head -c 67108864 /dev/urandom >"$WORK/data" && inside nbdcopy --flush "$WORK/data" "$URI"
}

read_data_back() {
    inside "${NBDSH[@]}" -u "$URI" -c "data = open('$WORK/data', 'rb')" \
        -c "assert all(h.pread(1 << 22, at) == data.read(1 << 22) for at in range(0, 1 << 26, 1 << 22))"
}

# Every kind of traffic that the dashboard shows, until it is killed.
load() {
    # A name that is not there, and a read beyond the end, which a client in its senses does not send.
    while inside "${NBDSH[@]}" --opt-mode -u "${URI%disk}none" -c 'h.opt_go()' >/dev/null 2>&1 || true; do
        inside "${NBDSH[@]}" -u "$URI" -c 'h.set_strict_mode(0)' -c "h.pread(4096, $((10 << 30)))" >/dev/null 2>&1
        inside fio --name=load --ioengine=nbd --uri="$URI" --thread --rw=randrw --bs=16k --iodepth=8 --fsync=16 \
            --offset=1g --size=256m --time_based --runtime=5 --output=/dev/null
        inside fio --name=load --ioengine=nbd --uri="$URI" --thread --rw=read --bs=64k --offset=0 --size=64m --output=/dev/null
        ask POST /api/v1/volumes/disk/checkpoint
    done
}

# until_true SECONDS COMMAND...: looks again and again.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 1
    done
}

written_bytes_are_in_prometheus() {
    prometheus 'sum(cairn_request_bytes_total{job="cairn",volume="disk",command="write"})' |
        jq -e '.data.result[0].value[1] | tonumber >= 67108864' >/dev/null
}

prometheus_has_every_alert() {
    inside curl -sS http://localhost:9090/api/v1/rules | jq -r '.data.groups[].rules[].name' | sort >"$WORK/loaded"
    sed -n 's/^ *- alert: //p' deploy/prometheus/alerts.yml | sort | diff - "$WORK/loaded"
}

nothing_fires() {
    prometheus 'ALERTS{alertstate="firing"}' >"$WORK/alerts"
    jq -e '.data.result == []' "$WORK/alerts" >/dev/null || { cat "$WORK/alerts"; return 1; }
}

# The queries of the panels, as Grafana would send them for all gateways and volumes.
queries() {
    jq -r '.panels[].targets[]?.expr | gsub("\\$__rate_interval"; "1m") | gsub("\\$job"; "cairn") | gsub("\\$(instance|volume)"; ".*")' \
        deploy/grafana/cairn.json
}

# has_data QUERY: at least one number.
has_data() {
    prometheus "$1" | jq -e '.status == "success" and any(.data.result[]; .value[1] | IN("NaN", "+Inf", "-Inf") | not)' >/dev/null
}

grafana_is_wired() {
    inside curl -sS http://localhost:3000/dashboard.json | cmp - deploy/grafana/cairn.json
}

exit_status() { docker inspect --format '{{.State.ExitCode}}' "$(compose ps --all --quiet "$1")"; }

ends_in_good_order() {
    compose stop cairn >/dev/null 2>&1 && [ "$(exit_status cairn)" = 0 ] &&
        compose logs cairn 2>&1 | grep -q 'released its lease'
}

not_ready_without_the_store() {
    compose pause minio >/dev/null 2>&1 || return 1
    until_true 60 is_not_ready
    local status=$?
    compose unpause minio >/dev/null 2>&1
    return $status
}

is_not_ready() { [ "$(inside curl -s -o /dev/null -w '%{http_code}' http://localhost:9180/health/ready)" = 503 ]; }

is_ready() { [ "$(inside curl -s -o /dev/null -w '%{http_code}' http://localhost:9180/health/ready)" = 200 ]; }

# --- all of it -------------------------------------------------------------------------------------------------------

rehearse() {
    mkdir -p "$STATE"
    IMAGE=$(image cairn)
    engine_for_builds
    { make_base && make_stand_ins; } >"$WORK/images.log" 2>&1 || { tail -n 40 "$WORK/images.log"; return 1; }
    check "deploy/Dockerfile builds" build_image
    # An older image would tell nothing.
    [ "$failed" = 0 ] || return 1
    stop_engine

    engine_for_containers || return 1
    check "the image can be listed, and has no compiler" image_can_be_listed
    check "the image has a user and a health check" image_has_a_user_and_a_health_check
    check "it runs on a read-only root, idles under 30 MiB and ends in good order" measure

    check "docker compose up" up
    check "nbdinfo finds the disk" export_is_there
    check "nbdcopy writes" write_data
    check "Prometheus has what was written" until_true 60 written_bytes_are_in_prometheus
    check "Prometheus has every alert" prometheus_has_every_alert
    check "Grafana finds its data source and the dashboard" grafana_is_wired
    # Before the load, a part of which is wrong on purpose.
    check "no alert fires" nothing_fires
    load >"$WORK/load.log" 2>&1 &
    LOAD=$!
    local query
    while IFS= read -r query; do
        check "the dashboard's $query" until_true 120 has_data "$query"
    done < <(queries)
    kill "$LOAD" 2>/dev/null
    wait "$LOAD" 2>/dev/null
    LOAD=
    check "not ready while the store is away" not_ready_without_the_store
    check "ready when it is back" until_true 60 is_ready

    check "it ends in good order" ends_in_good_order
    check "docker compose down" compose down
    check "docker compose up again" up
    check "what was written is there" read_data_back
    check "docker compose down, with what is kept" compose down --volumes
}

exec 8>"$CACHE/container.lock"
flock 8
rehearse || { failed=$((failed + 1)) && echo "FAILED: the rehearsal was not finished"; }
echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
