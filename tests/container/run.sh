#!/bin/bash
# docker-compose.yml in real containers: the shipped Dockerfile is built, the whole is brought up, written to, watched,
# taken down, brought up again and read back. Prints what the image weighs, starts in and takes when idle.
#
# The images of the registry are stood in for, under their names and tags, by ones that images are made of here.
#
# With CAIRN_CONTAINER_PROGRAM=FILE the program is not built in the image but taken from there. That saves the minutes of a
# release build, and does not show that deploy/Dockerfile compiles: the last line says so.
set -u -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/common.sh"
WORK=$(mktemp -d)
. "$(dirname "${BASH_SOURCE[0]}")/docker.sh"
cd "$ROOT" || exit 1

URI=nbd://localhost:10809/disk
# With the Python that Debian's libnbd is for.
NBDSH=(/usr/bin/python3 -m nbd)
IMAGE=
BEGUN=
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
    local from=()
    if [ -n "${CAIRN_CONTAINER_PROGRAM:-}" ]; then
        image_with_program >"$WORK/build.log" 2>&1 || { tail -n 40 "$WORK/build.log"; return 1; }
        from=(--build-arg "BUILD_IMAGE=$WITH_PROGRAM")
    fi
    build -f deploy/Dockerfile "${from[@]}" --build-arg REVISION=rehearsed --build-arg SOURCE=https://example.org/cairn -t "$IMAGE" . \
        >"$WORK/build.log" 2>&1 || { tail -n 40 "$WORK/build.log"; return 1; }
}

# What an image may not have: files that give whoever runs them the rights of another, shells, package managers, compilers.
image_has_nothing_to_spare() {
    local id
    id=$(docker create "$IMAGE") && docker export "$id" | tar -tv --numeric-owner >"$WORK/files"
    docker rm "$id" >/dev/null
    grep -q ' usr/local/bin/cairn$' "$WORK/files" || { echo "the image cannot be listed"; return 1; }
    ! awk '$1 ~ /^-..[sS]|^-.....[sS]/ { print "setuid or setgid: " $0; bad = 1 }
        $6 ~ "^(usr/)?(local/)?s?bin/(ba|da|z)?sh$|/(apt|apt-get|dpkg|busybox|cargo|rustc|gcc|cc|ld|perl|python3)$" {
            print "spare: " $0; bad = 1 } END { exit !bad }' "$WORK/files"
}

# Whoever lists what an image is made of finds the packages of its base and the crates of its program.
image_can_be_listed() {
    local id
    grep -q ' var/lib/dpkg/status.d/libc6$' "$WORK/files" || return 1
    id=$(docker create "$IMAGE") && docker cp "$id:/usr/share/doc/cairn/cairn.cdx.json" "$WORK/sbom.json"
    docker rm "$id" >/dev/null
    deploy/sbom.sh | cmp - "$WORK/sbom.json" && jq -e '.bomFormat == "CycloneDX"' "$WORK/sbom.json" >/dev/null
}

image_has_a_user_a_health_check_a_volume_and_labels() {
    docker image inspect "$IMAGE" | jq -e --arg version "$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)" '
        .[0].Config | (.User | test("^[1-9][0-9]*:[1-9][0-9]*$"))
        and .Healthcheck.Test[:3] == ["CMD", "/usr/local/bin/cairn", "health"] and .StopSignal == "SIGTERM"
        and (.Volumes | has("/data"))
        and (.Labels | .["org.opencontainers.image.version"] == $version
            and .["org.opencontainers.image.revision"] == "rehearsed"
            and .["org.opencontainers.image.source"] == "https://example.org/cairn")' >/dev/null
}

# As in a pod: an emptyDir with the group of the pod, in which the gateway and a machine of another user share a socket.
two_users_share_a_socket() {
    local id said uri='nbd+unix:///disk?socket=/run/cairn/nbd.sock'
    mkdir "$WORK/shared" && chown 0:65532 "$WORK/shared" && chmod 2777 "$WORK/shared" && chmod 711 "$WORK" || return 1
    id=$(docker run --detach --read-only --user 65532:65532 --volume "$WORK/shared:/run/cairn" \
        --env CAIRN_SERVER__LISTEN=unix:/run/cairn/nbd.sock --env CAIRN_SERVER__SOCKET_MODE=0660 --env CAIRN_ADMIN__SOCKET=none \
        "$IMAGE" serve --create disk=1GiB) || return 1
    until docker logs "$id" 2>/dev/null | grep -q '^listening on'; do
        docker inspect "$id" | jq -e '.[0].State.Running' >/dev/null || { docker logs "$id"; return 1; }
        sleep 0.1
    done
    client() { docker run --rm --network=none --volume "$WORK/shared:/run/cairn" --user 64055:64055 "$@" "$IMAGE" nbd size "$uri" 2>&1; }
    if ! said=$(client --group-add 65532) || [ "$said" != $((1 << 30)) ]; then
        echo "of the group: $said"
        return 1
    fi
    if said=$(client) || ! grep -qi 'permission denied' <<<"$said"; then
        echo "not of the group: $said"
        return 1
    fi
    docker rm --force --volumes "$id" >/dev/null
}

# Started with nothing to write but its volume; what it takes when nobody uses it, and that it ends in good order.
measure() {
    local id started listening kib bytes
    id=$(docker run --detach --read-only --cap-drop ALL --security-opt no-new-privileges:true --volume /data "$IMAGE" \
        serve --create disk=10GiB) || return 1
    until docker logs "$id" 2>/dev/null | grep -q '^listening on'; do
        docker inspect "$id" | jq -e '.[0].State.Running' >/dev/null || { docker logs "$id"; return 1; }
        sleep 0.1
    done
    started=$(date -d "$(docker inspect --format '{{.State.StartedAt}}' "$id")" +%s%N)
    listening=$(date -d "$(docker logs --timestamps "$id" 2>/dev/null | sed -n 's/ listening on .*//p' | head -n 1)" +%s%N)
    kib=$(awk '/^VmRSS:/ { print $2 }' "/proc/$(docker inspect --format '{{.State.Pid}}' "$id")/status")
    bytes=$(docker image inspect --format '{{.Size}}' "$IMAGE")
    echo "measured: image $((bytes / 1000000)) MB, of which Cairn" \
        "$(awk '$6 == "usr/local/bin/cairn" { printf "%d MB", $3 / 1000000 }' "$WORK/files");" \
        "serves $(((listening - started) / 1000000)) ms after its start; idle with one open volume $((kib / 1024)) MiB resident"
    docker stop "$id" >/dev/null
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$id")" = 0 ] || { docker logs "$id"; return 1; }
    [ "$kib" -lt $((30 * 1024)) ] && [ "$bytes" -lt 60000000 ]
}

# --- the services ----------------------------------------------------------------------------------------------------

up() { compose up --detach --wait --wait-timeout 240 >"$WORK/up.log" 2>&1 || { tail -n 40 "$WORK/up.log"; return 1; }; }

# The demo as its file prints it: whoever reaches the port reads; what changes something takes the token.
page_is_served() {
    inside curl -sS http://localhost:9180/ | grep -q '<title>Cairn' &&
        ask GET /api/v1/volumes | jq -e '.[0].name == "disk"' >/dev/null
}

changes_need_a_token() {
    [ "$(inside curl -s -o /dev/null -w '%{http_code}' -X POST http://localhost:9180/api/v1/volumes/disk/checkpoint)" = "$1" ]
}

whoever_has_the_token_changes() {
    [ "$(inside curl -s -o /dev/null -w '%{http_code}' -X POST -H "Authorization: Bearer $(cat "$WORK/token")" \
        http://localhost:9180/api/v1/volumes/disk/checkpoint)" = 204 ]
}

# The command that docker-compose.yml prints.
volumes_are_made_inside() {
    compose exec -T cairn cairn volume create more 10GiB --gateway && ask GET /api/v1/volumes | jq -e 'map(.name) == ["disk", "more"]' >/dev/null
}

# From the command to a block that is written and flushed; the images are there.
first_flush() {
    inside "${NBDSH[@]}" -u "$URI" -c 'h.pwrite(b"x" * 4096, 0)' -c 'h.flush()' &&
        echo "measured: from docker compose up to a written and flushed block $(($(date +%s%3N) - BEGUN)) ms"
}

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
    jq -r '([.templating.list[] | select(.type == "textbox")]) as $prices
        | .panels[].targets[]?.expr
        | gsub("\\$__rate_interval"; "1m") | gsub("\\$job"; "cairn") | gsub("\\$(instance|volume)"; ".*")
        | reduce $prices[] as $price (.; gsub("\\$" + $price.name + "\\b"; $price.query))' deploy/grafana/cairn.json
}

# has_data QUERY: at least one number.
has_data() {
    prometheus "$1" | jq -e '.status == "success" and any(.data.result[]; .value[1] | IN("NaN", "+Inf", "-Inf") | not)' >/dev/null
}

# has_no_data QUERY: it is valid, and nothing here has what it asks for.
has_no_data() {
    prometheus "$1" | jq -e '.status == "success" and .data.result == []' >/dev/null
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
    check "the image has no setuid file, shell, package manager or compiler" image_has_nothing_to_spare
    check "what the image is made of can be listed" image_can_be_listed
    check "the image has a user, a health check, a volume and labels" image_has_a_user_a_health_check_a_volume_and_labels
    check "it has less than 60 MB, runs on a read-only root, idles under 30 MiB and ends in good order" measure
    check "a container of another user has the disk by the socket's group, and without it has not" two_users_share_a_socket

    BEGUN=$(date +%s%3N)
    check "docker compose up" up
    check "a block is written and flushed" first_flush
    check "the status page and the API are served" page_is_served
    check "nothing is changed over HTTP without a token" changes_need_a_token 403
    check "volumes are made inside" volumes_are_made_inside
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
        case $query in
        # The demo has no TLS.
        *cairn_tls_certificate_expiry*) check "the dashboard's $query" has_no_data "$query" ;;
        *) check "the dashboard's $query" until_true 120 has_data "$query" ;;
        esac
    done < <(queries)
    kill "$LOAD" 2>/dev/null
    wait "$LOAD" 2>/dev/null
    LOAD=
    check "not ready while the store is away" not_ready_without_the_store
    check "ready when it is back" until_true 60 is_ready

    check "it ends in good order" ends_in_good_order
    check "docker compose down" compose down
    echo correct-horse-battery >"$WORK/token" && chmod 644 "$WORK/token"
    export CAIRN_DEMO_TOKEN_FILE=$WORK/token
    check "docker compose up again, with a token" up
    check "the status page and the API are served without the token" page_is_served
    check "what changes something asks for it" changes_need_a_token 401
    check "and is done for whoever has it" whoever_has_the_token_changes
    check "what was written is there" read_data_back
    check "docker compose down, with what is kept" compose down --volumes
}

exec 8>"$CACHE/container.lock"
flock 8
rehearse || { failed=$((failed + 1)) && echo "FAILED: the rehearsal was not finished"; }
[ -z "${CAIRN_CONTAINER_PROGRAM:-}" ] || echo "with the program $CAIRN_CONTAINER_PROGRAM, which was not built here"
echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
