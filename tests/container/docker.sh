# shellcheck shell=bash
# A Docker engine for tests: started, used and ended here, with all that it holds in the cache. Sourced, never run.
#
# It builds with the network of this machine but without a bridge, and runs containers in a network namespace of its own,
# so that no address, no rule and no port of this machine is touched.

STATE=$CACHE/container
BASE_IMAGE=debian:bookworm-slim
SPACE=cairn-$$
ENGINE=

docker() { /usr/bin/docker --host "unix://$WORK/docker.sock" "$@"; }

# inside COMMAND...: in the network of the containers.
inside() { nsenter --net="/run/netns/$SPACE" -- "$@"; }

# start_engine [PREFIX...] -- [OPTION...]: waits until it answers.
start_engine() {
    local prefix=()
    while [ "$1" != -- ]; do prefix+=("$1"); shift; done
    shift
    "${prefix[@]}" /usr/sbin/dockerd --data-root "$STATE/docker" --exec-root "$WORK/exec" --pidfile "$WORK/docker.pid" \
        --host "unix://$WORK/docker.sock" "$@" >>"$WORK/dockerd.log" 2>&1 &
    ENGINE=$!
    until docker info >/dev/null 2>&1; do
        kill -0 "$ENGINE" 2>/dev/null || { tail -n 20 "$WORK/dockerd.log" >&2; die "the Docker engine does not start"; }
        sleep 0.2
    done
}

stop_engine() {
    [ -n "$ENGINE" ] || return 0
    kill "$ENGINE" 2>/dev/null
    wait "$ENGINE" 2>/dev/null
    if kill -0 "$(cat "$WORK/docker.pid" 2>/dev/null)" 2>/dev/null; then die "the Docker engine runs on"; fi
    ENGINE=
}

engine_for_builds() { start_engine -- --bridge=none --iptables=false --ip-forward=false; }

engine_for_containers() {
    ip netns add "$SPACE" && inside ip link set lo up && start_engine nsenter "--net=/run/netns/$SPACE" --
}

# The network and every container in it, whatever happened.
remove_network() { ip netns delete "$SPACE" 2>/dev/null || true; }

# build [OPTION...]: an image, with the network of this machine.
build() { DOCKER_BUILDKIT=1 docker build --network=host --progress=plain "$@"; }

have() { docker image inspect "$1" >/dev/null 2>&1; }

# The base image: a Debian as debootstrap makes it, without what an image does not need.
make_base() {
    have "$BASE_IMAGE" && return
    say "making $BASE_IMAGE"
    rm -rf "$STATE/root"
    debootstrap --variant=minbase bookworm "$STATE/root" >"$WORK/debootstrap.log" 2>&1 ||
        { tail "$WORK/debootstrap.log" >&2; return 1; }
    rm -rf "$STATE/root"/var/cache/apt/*.bin "$STATE/root"/var/cache/apt/archives/*.deb "$STATE/root"/var/lib/apt/lists/* \
        "$STATE/root"/usr/share/{doc,man,locale,info}/*
    tar -C "$STATE/root" --numeric-owner -c . | docker import --change 'CMD ["bash"]' - "$BASE_IMAGE" >/dev/null || return 1
    rm -rf "$STATE/root"
}

# What the stand-ins are made of; another state of that makes other images.
stand_ins_version() {
    {
        cat "$ROOT"/tests/container/{stand-ins.Dockerfile,mc,grafana,docker.sh}
        rustc --version
        dpkg-query -W -f '${Version}\n' prometheus busybox-static
        sha256sum <"$TOOLS/bin/minio"
    } | sha256sum | cut -d' ' -f1
}

# An image in which deploy/Dockerfile finds the program of CAIRN_CONTAINER_PROGRAM where it asks cargo to build one.
WITH_PROGRAM=cairn-build:with-program
image_with_program() {
    local context=$WORK/with-program
    mkdir "$context" && cp "$CAIRN_CONTAINER_PROGRAM" "$context/program" || return 1
    build -f "$ROOT/tests/container/with-program.Dockerfile" --build-arg "BUILD_IMAGE=$(dockerfile_has BUILD_IMAGE)" \
        -t "$WITH_PROGRAM" "$context"
}

# image SERVICE: what docker-compose.yml names for it.
image() { compose config --format json | jq -e -r --arg service "$1" '.services[$service].image'; }

# dockerfile_has ARG: the default of an argument of deploy/Dockerfile, such as an image that it builds on.
dockerfile_has() { sed -n "s/^ARG $1=//p" "$ROOT/deploy/Dockerfile"; }

make_stand_ins() {
    local version context=$WORK/context
    version=$(stand_ins_version)
    if stamped stand-ins "$version" && have "$(dockerfile_has BUILD_IMAGE)" && have "$(dockerfile_has BASE_IMAGE)" &&
        have "$(image minio)" && have "$(image prometheus)" && have "$(image grafana)"; then
        return
    fi
    say "making the images that stand in for those of the registry"
    mkdir -p "$context"
    cp "$ROOT"/tests/container/{mc,grafana} "$TOOLS/bin/minio" /usr/bin/prometheus /bin/busybox /etc/ssl/certs/ca-certificates.crt "$context/"
    mv "$context/ca-certificates.crt" "$context/authorities.crt"
    tar -C "$(rustc --print sysroot)" -c --exclude=share --exclude='lib/rustlib/*/analysis' . >"$context/toolchain.tar"
    local stage
    build -f "$ROOT/tests/container/stand-ins.Dockerfile" --target rust -t "$(dockerfile_has BUILD_IMAGE)" "$context" || return 1
    build -f "$ROOT/tests/container/stand-ins.Dockerfile" --target distroless -t "$(dockerfile_has BASE_IMAGE)" "$context" || return 1
    for stage in minio prometheus grafana; do
        build -f "$ROOT/tests/container/stand-ins.Dockerfile" --target "$stage" -t "$(image "$stage")" "$context" || return 1
    done
    rm -rf "$context"
    stamp stand-ins "$version"
}
