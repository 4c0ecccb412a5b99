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
    jq '[.panels[].targets[]?.expr | gsub("\\$__rate_interval"; "1m") | gsub("\\$(job|instance|volume)"; "x")] | to_entries
        | {groups: [{name: "dashboard", rules: map({record: "query_\(.key)", expr: .value})}]}' \
        ../grafana/cairn.json >"$WORK/dashboard.yml"
    promtool check rules "$WORK/dashboard.yml"
}
check "the dashboard's queries" dashboard_rules

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
    while read -r source; do [ -f "$source" ] || [ "$source" = /dev/null ] || { echo "no $source"; return 1; }; done <"$WORK/mounts"
}
check "what docker-compose.yml mounts" mounts_are_there
images_are_pinned() {
    compose config --format json | jq -e '[.services[].image] | length > 3 and all(test(":[^:]*[0-9]") and (test(":latest") | not))' >/dev/null
}
check "the images' tags" images_are_pinned

echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
