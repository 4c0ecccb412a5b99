#!/bin/bash
# Builds deploy/Dockerfile for several architectures and pushes it: bases pinned by digest, labels, an SBOM and provenance.
#
#   deploy/build-image.sh REGISTRY/cairn:0.1.0                      builds and pushes
#   PLATFORMS=linux/arm64 deploy/build-image.sh NAME:TAG            for these platforms only
#   deploy/build-image.sh --print NAME:TAG                          only shows the command
#
# Needs `docker buildx` with a builder for the platforms (docker buildx create --use), and emulation for those that are not
# this machine's. BUILD_IMAGE and BASE_IMAGE with a digest are taken as they are: so is a release built again from the
# same bases. Otherwise the registry is asked which digests the tags in the Dockerfile have now.
#
# The tests check the command. It was run with buildx 0.38 and BuildKit 0.34 for two architectures and a local registry, on
# stand-ins for the bases and for the compiler, and without --sbom, whose scanner is itself an image from a registry.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

print=
[ "${1-}" != --print ] || { print=yes && shift; }
[ $# = 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2; }

# pinned IMAGE: with the digest of its index, which has all architectures.
pinned() {
    case $1 in
    *@sha256:*) echo "$1" ;;
    *) echo "$1@$(docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}')" ;;
    esac
}

# default ARG: what the Dockerfile has for it.
default() { sed -n "s/^ARG $1=//p" deploy/Dockerfile; }

build_image=$(pinned "${BUILD_IMAGE:-$(default BUILD_IMAGE)}")
base_image=$(pinned "${BASE_IMAGE:-$(default BASE_IMAGE)}")
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || { echo "the working tree has changes: the image would not be of $revision" >&2 && exit 1; }
source=$(git remote get-url origin 2>/dev/null | sed 's|//[^/@]*@|//|' | grep :// || echo unknown)

command=(docker buildx build --file deploy/Dockerfile --platform "${PLATFORMS:-linux/amd64,linux/arm64}"
    --build-arg "BUILD_IMAGE=$build_image" --build-arg "BASE_IMAGE=$base_image"
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE=$source"
    --sbom=true --provenance=mode=max --tag "$1" --push .)
if [ -n "$print" ]; then
    printf '%q ' "${command[@]}" && echo
else
    exec "${command[@]}"
fi
