#!/bin/sh
# A preprocessor of mdBook. A book has only its chapters: a link to another file of the repository becomes the path of that
# file. Needs jq.
set -eu
# mdBook asks whether it works for a renderer.
[ "${1-}" != supports ] || exit 0
exec jq '.[1] | walk(if type == "object" and (.content | type) == "string" then
    .content |= gsub("\\[(?<text>[^\\]]*)\\]\\(\\.\\./(?<path>[^)]*)\\)";
        if .text == .path or .text == "`\(.path)`" then "`\(.path)` in the repository" else "\(.text) (`\(.path)` in the repository)" end)
    else . end)'
