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

# The unit with a program that is there; systemd says what it does not understand and how exposed the service is.
cd "$ROOT/deploy/systemd" || exit 1
sed 's|^ExecStart=/usr/local/bin/cairn |ExecStart=/bin/true |' cairn.service >"$WORK/cairn.service"
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
check "the pod of a virtual machine" "$TOOLS/kubernetes-validate/bin/kubernetes-validate" --kubernetes-version 1.29 --strict \
    deploy/kubernetes/vm-pod.yaml

# Nothing that is restarted by itself takes volumes from others, and each knows its own lease.
nobody_takes_over() {
    ! grep -rn 'LEASE__TAKEOVER\|--takeover' deploy docker-compose.yml &&
        grep -q 'CAIRN_LEASE__HOLDER' docker-compose.yml &&
        grep -q 'CAIRN_LEASE__HOLDER' deploy/kubernetes/vm-pod.yaml &&
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
    while read -r source; do [ -f "$source" ] || { echo "no $source"; return 1; }; done <"$WORK/mounts"
}
check "what docker-compose.yml mounts" mounts_are_there
images_are_pinned() {
    compose config --format json | jq -e '[.services[].image] | length > 3 and all(test(":[^:]*[0-9]") and (test(":latest") | not))' >/dev/null
}
check "the images' tags" images_are_pinned

echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
