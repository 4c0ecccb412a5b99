#!/bin/bash
# The files under deploy/: Prometheus' rules with their tests, the dashboard's queries, the unit, the manifests, compose.
set -u -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/common.sh"

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
passed=0 failed=0

check() {
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: $what"; fi
}

cd "$ROOT/deploy/prometheus" || exit 1
check "the scrape configuration" promtool check config prometheus.yml
check "the alert rules" promtool check rules alerts.yml
check "the tests of the alert rules" promtool test rules alerts_test.yml

# Every alert has a test that sees it fire, and one that sees it silent.
every_alert_is_tested() {
    local alert what
    sed -n 's/^ *- alert: //p' alerts.yml >"$WORK/alerts"
    [ -s "$WORK/alerts" ] || return 1
    while read -r alert; do
        for what in exp_labels: 'exp_alerts: \[\]'; do
            awk -v alert="$alert" -v what="$what" '$1 == "alertname:" { now = ($2 == alert) } now && $0 ~ what { found = 1 } END { exit !found }' \
                alerts_test.yml || { echo "no test of $alert has $what"; return 1; }
        done
    done <"$WORK/alerts"
}
check "an alert that no test sees fire, or none sees silent" every_alert_is_tested

# The variables of Grafana stand for something; what is left must parse.
dashboard_rules() {
    jq '[.panels[].targets[]?.expr, .annotations.list[].expr | gsub("\\$__rate_interval"; "1m")
            | gsub("\\$price_put"; "0.005") | gsub("\\$price_get"; "0.0004") | gsub("\\$price_stored"; "0.023")
            | gsub("\\$(job|instance|volume)"; "x")] | to_entries
        | {groups: [{name: "dashboard", rules: map({record: "query_\(.key)", expr: .value})}]}' \
        ../grafana/cairn.json >"$WORK/dashboard.yml"
    promtool check rules "$WORK/dashboard.yml"
}
check "the dashboard's queries" dashboard_rules

# While nothing happens, what is a share or a quantile is empty: neither NaN nor infinite.
idle_panels_are_empty() {
    jq '[.groups[0].rules[].expr] as $all | ($all | map(select(test("histogram_quantile|/ \\(\\(?sum by")))) as $shares
        | ($all | map(scan("(?:cairn|process)_[a-z_]+")) | unique | map(select(test("limit") | not))) as $names
        | {evaluation_interval: "15s", tests: [{interval: "15s",
            input_series: ($names | map({series: "\(.){job=\"x\",instance=\"x\",volume=\"x\",le=\"+Inf\",command=\"write\",source=\"store\",tier=\"memory\",operation=\"put\"}", values: "7x40"})),
            promql_expr_test: ($shares | map({expr: ., eval_time: "5m", exp_samples: []}))}]}' "$WORK/dashboard.yml" >"$WORK/idle.yml"
    [ "$(jq '.tests[0].promql_expr_test | length' "$WORK/idle.yml")" -gt 10 ] && promtool test rules "$WORK/idle.yml"
}
check "panels without load" idle_panels_are_empty

# A PUT a second is $12.96 a month, one minute after the start as well as hours later.
cost_is_right_at_once() {
    jq '[.groups[0].rules[].expr | select(test("cairn_store_requests_total.*put.list.*2592000"))] as $cost
        | {evaluation_interval: "15s", tests: ($cost | map({interval: "15s", input_series: [
            {series: "cairn_store_requests_total{job=\"x\",instance=\"x\",operation=\"put\",outcome=\"ok\"}", values: "0+15x1000"},
            {series: "process_start_time_seconds{job=\"x\",instance=\"x\"}", values: "0x1000"}],
            promql_expr_test: [range(2) as $n | {expr: "round(\(.), 0.01)", eval_time: ["1m", "3h"][$n], exp_samples: [{labels: "{}", value: 12.96}]}]}))}' \
        "$WORK/dashboard.yml" >"$WORK/cost.yml"
    [ "$(jq '.tests | length' "$WORK/cost.yml")" = 1 ] && promtool test rules "$WORK/cost.yml"
}
check "the cost of requests" cost_is_right_at_once

# What whoever is woken looks for first: alerts, restarts and takeovers. Each latency is there as p50 and p99, by name.
is_for_the_night() {
    jq -e '[.panels[] | [.targets[]? | select(.expr | startswith("histogram_quantile"))] | select(length > 0)
            | map({of: (.expr | capture("quantile[(](?<of>[0-9.]+)").of), name: (.legendFormat | split(" ") | last)})] as $latencies
        | ($latencies | length >= 5 and all(. == [{of: "0.5", name: "p50"}, {of: "0.99", name: "p99"}]))
        and any(.panels[]; .type == "alertlist")
        and ([.annotations.list[].name] as $marks | all("Restarts", "Takeovers"; IN($marks[])))
        and ([.panels[] | select(.fieldConfig.defaults.thresholds.steps | length > 1)] | length >= 10)' "$1" >/dev/null
}
dashboard_is_for_the_night() {
    local broken latency='(.panels[] | select(.title == "FLUSH latency")).targets'
    is_for_the_night ../grafana/cairn.json || return 1
    for broken in "del(${latency}[0])" "${latency}[1].legendFormat = \"{{volume}}\"" 'del(.panels[] | select(.type == "alertlist"))' \
        'del(.annotations.list[] | select(.name == "Takeovers"))' 'del(.panels[].fieldConfig.defaults.thresholds)'; do
        jq "$broken" ../grafana/cairn.json >"$WORK/broken.json" || return 1
        if is_for_the_night "$WORK/broken.json"; then echo "nothing is missing after $broken"; return 1; fi
    done
}
check "what the dashboard shows first" dashboard_is_for_the_night

# Every alert is explained where it points to.
every_alert_is_explained() {
    local alert
    while read -r alert; do
        grep -qx "## $alert" "$ROOT/docs/alerts.md" || { echo "docs/alerts.md has no $alert"; return 1; }
        grep -q "runbook_url: \"docs/alerts.md#$(tr '[:upper:]' '[:lower:]' <<<"$alert")\"" alerts.yml || { echo "no runbook_url of $alert"; return 1; }
    done <"$WORK/alerts"
    [ "$(grep -c '^## ' "$ROOT/docs/alerts.md")" = "$(wc -l <"$WORK/alerts")" ]
}
check "the page about alerts" every_alert_is_explained

# What an inhibition rule silences is there.
inhibition_names_alerts() {
    local alert
    grep -oE 'Cairn[A-Za-z]+' alertmanager.yml | sort -u >"$WORK/inhibited"
    [ -s "$WORK/inhibited" ] && while read -r alert; do grep -qx "$alert" "$WORK/alerts" || { echo "no alert $alert"; return 1; }; done <"$WORK/inhibited"
}
check "the inhibition rules" inhibition_names_alerts

# Alertmanager itself: of these alerts (name, gateway, volume), those with `true` are silent.
ALERTS='[["CairnStoreUnreachable", "a", "", false], ["CairnUncommittedTooOld", "a", "v1", true],
    ["CairnLeaseNearlyOut", "a", "v1", true], ["CairnStoreErrors", "a", "", true], ["CairnCertificateExpires", "a", "", false],
    ["CairnUncommittedTooOld", "b", "v1", false], ["CairnFenced", "c", "v1", false], ["CairnRequestErrors", "c", "v1", true],
    ["CairnRequestErrors", "c", "v2", false], ["CairnDown", "d", "", false], ["CairnReloadFailed", "d", "", true],
    ["CairnStoreUnreachable", "d", "", true], ["CairnWritesThrottled", "d", "v1", true]]'
causes_silence_consequences() {
    local address='' manager status=1 said
    prometheus-alertmanager --config.file=alertmanager.yml --storage.path="$WORK/alertmanager" --cluster.listen-address= \
        --web.listen-address=127.0.0.1:0 --log.format=json 2>"$WORK/alertmanager.log" &
    manager=$!
    until [ -n "$address" ]; do
        kill -0 "$manager" || { cat "$WORK/alertmanager.log"; return 1; }
        address=$(jq -r 'select(.msg == "Listening on").address' "$WORK/alertmanager.log" 2>/dev/null)
    done
    jq -n --argjson alerts "$ALERTS" '$alerts | map({labels: {alertname: .[0], job: "cairn", instance: .[1], volume: .[2]}})' |
        curl -sS --fail -H 'Content-Type: application/json' --data @- "http://$address/api/v2/alerts" || { kill "$manager"; return 1; }
    # It takes up sources of inhibition after it has answered.
    for _ in $(seq 100); do
        said=$(curl -sS "http://$address/api/v2/alerts" | jq -c 'map([.labels.alertname, .labels.instance, (.labels.volume // ""),
            (.status.inhibitedBy | length > 0)]) | sort') || break
        if [ "$said" = "$(jq -c sort <<<"$ALERTS")" ]; then status=0 && break; fi
    done
    kill "$manager" && wait "$manager"
    [ "$status" = 0 ] || echo "not as expected: $said"
    return "$status"
}
check "Alertmanager is silent about consequences" causes_silence_consequences

# The unit with a program that is there; systemd says what it does not understand and how exposed the service is.
cd "$ROOT/deploy/systemd" || exit 1
sed 's|^ExecStart=cairn |ExecStart=/bin/true |' cairn.service >"$WORK/cairn.service"
cp cairn.socket "$WORK/"
unit_is_understood() {
    local said
    if ! said=$(systemd-analyze verify "$WORK/cairn.service" "$WORK/cairn.socket" 2>&1) || [ -n "$said" ]; then
        echo "$said"
        return 1
    fi
}
check "the units" unit_is_understood
check "the unit's exposure, 2.0 of 10 at most" systemd-analyze security --no-pager --offline=yes --threshold=20 "$WORK/cairn.service"

cd "$ROOT" || exit 1
# Each way to give a virtual machine a disk; tests/lifecycle runs what of them runs without Kubernetes. KubeVirt's own kind has
# no schema there.
manifest_is_valid() {
    local said
    said=$("$TOOLS/kubernetes-validate/bin/kubernetes-validate" --kubernetes-version "$2" --strict "$1" 2>&1) || { echo "$said"; return 1; }
    if grep -v 'kubevirt.io/v1' <<<"$said" | grep -E '^(ERROR|WARN)'; then return 1; fi
}
for manifest in deploy/kubernetes/*.yaml; do
    for version in 1.29 1.34; do check "$manifest on Kubernetes $version" manifest_is_valid "$manifest" "$version"; done
done

to_json() { /usr/bin/python3 -c 'import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))' "$1"; }
# The machine of KubeVirt has the claim, the claim has the volume, and both are block devices.
kubevirt_fits_together() {
    to_json deploy/kubernetes/kubevirt.yaml | jq -e 'def one(kind): map(select(.kind == kind)) | first;
        one("PersistentVolumeClaim") as $claim | one("PersistentVolume") as $volume | one("VirtualMachine").spec.template.spec as $vm
        | $vm.volumes[0].persistentVolumeClaim.claimName == $claim.metadata.name
        and $vm.domain.devices.disks[0].name == $vm.volumes[0].name and $vm.domain.devices.disks[0].cache == "none"
        and $claim.spec.volumeName == $volume.metadata.name and $volume.spec.claimRef.name == $claim.metadata.name
        and ([$claim.spec.volumeMode, $volume.spec.volumeMode] | all(. == "Block"))
        and ($volume.spec.local.path | test("^/dev/nbd[0-9]+$"))' >/dev/null
}
check "the machine of KubeVirt has its disk" kubevirt_fits_together
# The options that the file gives nbd-client are ones that it has.
nbd_client_understands() {
    local option
    sed -n 's/^#   nbd-client //p; s/^#     -A /-A /p' deploy/kubernetes/kubevirt.yaml | grep -oE '(^| )-[A-Za-z]+' | tr -d ' ' >"$WORK/options"
    [ "$(wc -l <"$WORK/options")" -ge 6 ] || return 1
    nbd-client --help >"$WORK/help" 2>&1
    while read -r option; do
        grep -qE -- "[[|]${option}[] |]|-name\|$option " "$WORK/help" || { echo "nbd-client has no $option"; return 1; }
    done <"$WORK/options"
}
check "what the node does for KubeVirt" nbd_client_understands

# The image: its version is the program's, no base floats, and what pushes it gives digests, an SBOM and provenance.
image_version() { [ "$(sed -n 's/^ARG VERSION=//p' deploy/Dockerfile)" = "$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)" ]; }
check "the image's version" image_version
bases_are_arguments() {
    ! grep -E '^FROM ' deploy/Dockerfile | grep -vqE '^FROM \$\{(BUILD|BASE)_IMAGE\}( AS build)?$' &&
        sed -n 's/^ARG BUILD_IMAGE=//p' deploy/Dockerfile | grep -qE '^rust:[0-9]+\.[0-9]+\.[0-9]+-bookworm$' &&
        sed -n 's/^ARG BASE_IMAGE=//p' deploy/Dockerfile | grep -qE '^[a-z.]+/.+:.+$'
}
check "the image's bases" bases_are_arguments
# As where a registry can be asked: the stand-in for docker says what digest a tag has.
image_is_pinned() {
    local said digest=sha256:1111111111111111111111111111111111111111111111111111111111111111
    mkdir -p "$WORK/bin" "$WORK/copy" && git -c safe.directory='*' archive HEAD Cargo.toml deploy | tar -x -C "$WORK/copy" || return 1
    cp deploy/Dockerfile deploy/build-image.sh "$WORK/copy/deploy/"
    # shellcheck disable=SC2016  # the variables are those of the stand-ins
    printf '#!/bin/sh\n[ "$*" = "buildx imagetools inspect $4 --format {{.Manifest.Digest}}" ] && echo %s\n' "$digest" >"$WORK/bin/docker"
    # shellcheck disable=SC2016
    printf '#!/bin/sh\ncase $1 in rev-parse) echo revision-1 ;; remote) echo https://user:secret@forge.example/cairn ;; esac\n' >"$WORK/bin/git"
    chmod +x "$WORK/bin/docker" "$WORK/bin/git"
    said=$(PATH=$WORK/bin:$PATH "$WORK/copy/deploy/build-image.sh" --print registry.example/cairn:1) || return 1
    for part in "BUILD_IMAGE=rust:[0-9.]+-bookworm@$digest " "BASE_IMAGE=[^ ]+@$digest " 'REVISION=revision-1 ' \
        'SOURCE=https://forge.example/cairn ' '--platform linux/amd64.?,linux/arm64 ' '--sbom=true ' '--provenance=mode=max ' \
        '--tag registry.example/cairn:1 '; do
        grep -qE -- "$part" <<<"$said" || { echo "no $part in: $said"; return 1; }
    done
}
check "what builds and pushes the image" image_is_pinned

# BuildKit prefers the default of an argument of a platform to its own value, and says nothing: each cache would be one for
# all architectures, and an image could get the program of another.
caches_are_of_one_architecture() {
    ! grep -nE '^ARG (TARGET|BUILD)(PLATFORM|OS|ARCH|VARIANT)=' deploy/Dockerfile &&
        grep -qx 'ARG TARGETARCH' deploy/Dockerfile && grep -qF "id=cairn-target-\$TARGETARCH," deploy/Dockerfile
}
check "the caches of the image" caches_are_of_one_architecture
sbom_is_whole() {
    deploy/sbom.sh >"$WORK/sbom.json" && jq -e '.bomFormat == "CycloneDX" and (.components | map(.name) | index("tokio") and index("aws-sdk-s3"))
        and (.components | all(.version | test("^[0-9]"))) and (.components | map(.purl) | length == (unique | length))' "$WORK/sbom.json" >/dev/null || return 1
    # Nothing there is not in Cargo.lock.
    jq -r '.components[] | "\(.name) \(.version)"' "$WORK/sbom.json" | sort >"$WORK/listed"
    awk '$1 == "name" { name = $3 } $1 == "version" { print name, $3 }' Cargo.lock | tr -d '"' | sort >"$WORK/locked"
    [ -z "$(comm -23 "$WORK/listed" "$WORK/locked")" ]
}
check "the SBOM" sbom_is_whole

# Grafana ignores what it does not know, so a typo in the dashboard would only show as something that is missing there.
dashboard_keeps_to_the_schema() {
    local check=$TOOLS/bin/grafana-schema broken panel='(.panels[] | select(.title == "Throughput"))'
    "$check" deploy/grafana/cairn.json || return 1
    for broken in "$panel.targets[0].exprr = \"x\"" "$panel.fieldConfig.defaults.custom.lineWith = 1" \
        "$panel.fieldConfig.defaults.min = \"zero\"" "del($panel.options.legend.showLegend)" '.titel = "x"'; do
        jq "$broken" deploy/grafana/cairn.json >"$WORK/broken.json" || return 1
        if "$check" "$WORK/broken.json" 2>/dev/null; then echo "nothing is wrong after $broken"; return 1; fi
    done
}
check "the dashboard and Grafana's schema" dashboard_keeps_to_the_schema

# `cargo deb` as README has it, on a stand-in for the program, which is not built yet.
package_is_whole() {
    local target=$WORK/deb files=$WORK/deb/unpacked own=$WORK/deb/debian debug path
    mkdir -p "$target/release"
    printf 'int main(void) { return 0; }\n' | cc -g -x c - -o "$target/release/cairn" || return 1
    PATH=$TOOLS/bin:$PATH CARGO_TARGET_DIR=$target cargo deb --no-build >"$WORK/deb.log" 2>&1 || { cat "$WORK/deb.log"; return 1; }
    dpkg-deb --extract "$own"/cairn-nbd_*.deb "$files" && dpkg-deb --field "$own"/cairn-nbd_*.deb >"$WORK/control" || return 1
    grep -q '^Package: cairn-nbd$' "$WORK/control" || return 1
    grep -q '^Depends: .*ca-certificates.*libc6' "$WORK/control" || { cat "$WORK/control"; return 1; }
    for path in usr/bin/cairn usr/lib/systemd/system/cairn.{service,socket} usr/share/cairn/{alerts.yml,alertmanager.yml,cairn.json} \
        usr/share/doc/cairn-nbd/{README.md,LICENSE-MIT,LICENSE-APACHE,copyright}; do
        [ -f "$files/$path" ] || { echo "no $path"; return 1; }
    done
    # What README and guide refer to.
    for path in docs/*.md docs/*.png; do cmp "$path" "$files/usr/share/doc/cairn-nbd/$path" || return 1; done
    "$files/usr/bin/cairn" || return 1
    # The debug information is the larger part of the program, and in a package of its own.
    debug=$(dpkg-deb --contents "$own"/cairn-nbd-dbgsym_*.ddeb) || return 1
    grep -q '\.debug$' <<<"$debug" || { echo "no debug information in its package: $debug"; return 1; }
    if readelf --sections "$files/usr/bin/cairn" | grep -q '\.debug_info'; then echo "the program has debug information"; return 1; fi
    grep -q '^ExecStart=cairn ' "$files/usr/lib/systemd/system/cairn.service"
}
check "the Debian package" package_is_whole

# Nothing that is restarted by itself takes volumes from others, and each knows its own lease.
nobody_takes_over() {
    ! grep -rn 'LEASE__TAKEOVER\|--takeover' deploy docker-compose.yml &&
        grep -q 'CAIRN_LEASE__HOLDER' docker-compose.yml &&
        grep -q 'CAIRN_LEASE__HOLDER' deploy/kubernetes/vm-pod.yaml &&
        grep -q 'CAIRN_LEASE__HOLDER' deploy/kubernetes/gateway-tls.yaml &&
        grep -q '^Environment=CAIRN_LEASE__HOLDER=' deploy/systemd/cairn.service &&
        grep -qx 'RestartPreventExitStatus=10' deploy/systemd/cairn.service
}
check "what is restarted by itself takes no volume over" nobody_takes_over

compose() { "$TOOLS/compose/bin/docker-compose" --file docker-compose.yml "$@"; }
check "docker-compose.yml" compose config --quiet
# Every file that it mounts is there, and every image but ours is pinned.
mounts_are_there() {
    local source
    compose config --format json | jq -r '.services[].volumes[]? | select(.type == "bind") | .source' >"$WORK/mounts"
    [ -s "$WORK/mounts" ] || return 1
    while read -r source; do [ -f "$source" ] || [ "$source" = /dev/null ] || { echo "no $source"; return 1; }; done <"$WORK/mounts"
}
check "what docker-compose.yml mounts" mounts_are_there
# What the comment in front of MinIO says of another store, done: what is left is whole, and asks for nothing that was removed.
another_store_fits() {
    local left="del(.services.minio, .volumes.objects, .services.cairn.depends_on)" store=.services.cairn.environment
    compose config --format json >"$WORK/compose.json" &&
        jq -e "$store | has(\"CAIRN_STORE__URL\") and has(\"AWS_REGION\") and has(\"AWS_ACCESS_KEY_ID\")" "$WORK/compose.json" >/dev/null || return 1
    jq "$left | del($store.CAIRN_STORE__ENDPOINT, $store.CAIRN_STORE__PATH_STYLE) | $store.CAIRN_STORE__URL = \"s3://mine/disks\"" \
        "$WORK/compose.json" >"$WORK/bucket.json"
    jq "$left | $store |= with_entries(select(.key | test(\"^AWS|STORE\") | not)) | $store.CAIRN_STORE__URL = \"file:///data\"
        | .services.cairn.volumes += [{type: \"bind\", source: \"/tmp\", target: \"/data\"}]" "$WORK/compose.json" >"$WORK/directory.json"
    local file
    for file in bucket directory; do
        "$TOOLS/compose/bin/docker-compose" --file "$WORK/$file.json" config --quiet && ! grep -q minio "$WORK/$file.json" || return 1
    done
}
check "docker-compose.yml with another store" another_store_fits
images_are_pinned() {
    compose config --format json | jq -e '[.services[].image] | length > 3 and all(test(":[^:]*[0-9]") and (test(":latest") | not))' >/dev/null
}
check "the images' tags" images_are_pinned

echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
