#!/bin/sh
# What the program is made of, as a CycloneDX document on standard output: every crate that is linked or runs in the build,
# with its version and licence, as Cargo.lock has them. Needs cargo, and the crates' sources, which a build has fetched.
set -eu
cd "$(dirname "$0")/.."
cargo tree --locked --edges normal,build --prefix none --no-dedupe --format '{p}|{l}' | LC_ALL=C sort -u | awk -F'|' '
    function text(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
    {
        split($1, word, " ")
        name = word[1]; version = substr(word[2], 2)
        if (name == "cairn-nbd") { own = version; next }
        id = "pkg:cargo/" name "@" version
        if (id in seen) next
        seen[id] = 1
        parts[++n] = "    {\"type\": \"library\", \"bom-ref\": " text(id) ", \"name\": " text(name) ", \"version\": " \
            text(version) ", \"purl\": " text(id) \
            ($2 == "" ? "" : ", \"licenses\": [{\"expression\": " text(licence($2)) "}]") "}"
    }
    # Old crates write a slash for OR.
    function licence(s) { gsub(/ *\/ */, " OR ", s); return s }
    END {
        if (own == "" || n == 0) exit 1
        print "{\n  \"bomFormat\": \"CycloneDX\",\n  \"specVersion\": \"1.5\",\n  \"version\": 1,"
        print "  \"metadata\": {\"component\": {\"type\": \"application\", \"bom-ref\": \"pkg:cargo/cairn-nbd@" own \
            "\", \"name\": \"cairn-nbd\", \"version\": \"" own "\", \"purl\": \"pkg:cargo/cairn-nbd@" own "\"}},"
        print "  \"components\": ["
        for (i = 1; i <= n; i++) print parts[i] (i < n ? "," : "")
        print "  ]\n}"
    }'
