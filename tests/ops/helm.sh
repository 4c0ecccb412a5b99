#!/bin/bash
# The charts: linted, rendered in every mode, each manifest held against Kubernetes' schemas, and bad values refused.
set -u -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/common.sh"

HELM=$TOOLS/bin/helm
VALIDATE=$TOOLS/kubernetes-validate/bin/kubernetes-validate
# The oldest that the chart takes, and a newer one.
VERSIONS=(1.29 1.34)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
passed=0 failed=0

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAILED: $*"; }
# check WHAT COMMAND...: a check that passes if the command succeeds.
check() {
    local what=$1
    shift
    if "$@"; then pass; else fail "$what"; fi
}

cp -r "$ROOT/helm" "$WORK/charts" && cd "$WORK/charts" || exit 1
check "the example's dependencies" "$HELM" dependency build vm

# valid FILE VERSION: no manifest is refused; those of the Prometheus operator have no schema there.
valid() {
    local said
    [ -s "$1" ] || return 1
    said=$("$VALIDATE" --kubernetes-version "$2" --strict "$1" 2>&1) || { echo "$said"; return 1; }
    if grep -v "monitoring.coreos.com/v1" <<<"$said" | grep -E '^(ERROR|WARN)'; then return 1; fi
}

# renders NAME CHART OPTION...: linted, rendered and valid; the manifests stay in $WORK/NAME.VERSION.yaml.
renders() {
    local name=$1 chart=$2 version
    shift 2
    check "$name: lint" "$HELM" lint --quiet --strict "$chart" "$@"
    for version in "${VERSIONS[@]}"; do
        if "$HELM" template release "$chart" --kube-version "$version.0" "$@" >"$WORK/$name.$version.yaml"; then
            check "$name on Kubernetes $version" valid "$WORK/$name.$version.yaml" "$version"
        else
            fail "$name on Kubernetes $version is not rendered"
        fi
    done
}

MONITORING=monitoring.podMonitor.enabled=true,monitoring.prometheusRule.enabled=true,monitoring.dashboard.enabled=true
printf 'networkPolicy:\n  enabled: true\n  nbdFrom: [{podSelector: {matchLabels: {app: vm}}}]\n  metricsFrom: [{namespaceSelector: {}}]\n' \
    >"$WORK/peers.yaml"
printf 'gateways:\n- name: a\n  volumes: [{name: x, size: 1GiB}, {name: w, size: 2TiB}]\n- name: b\n  volumes: [{name: z, size: "4096"}]\n' \
    >"$WORK/two.yaml"
renders defaults cairn
renders library cairn --set mode=library
renders monitored cairn --set "$MONITORING"
renders monitored-library cairn --set "mode=library,$MONITORING"
renders closed cairn --set networkPolicy.enabled=true
renders peers cairn --values "$WORK/peers.yaml"
renders two-gateways cairn --values "$WORK/two.yaml"
renders keys cairn --set store.accessKeyId=k,store.secretAccessKey=s,store.endpoint=http://minio:9000,store.pathStyle=true
renders secret cairn --set store.existingSecret=mine,admin.tokenSecret=token,drain.preStopSeconds=5
renders role cairn --set-string 'serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/x'
renders account cairn --set serviceAccount.create=false,serviceAccount.name=mine,podDisruptionBudget.enabled=false
renders settings cairn --set settings.CAIRN_CACHE__CLEAN=1GiB,service.type=LoadBalancer
renders named cairn --set clusterName=east
renders vm vm

# has NAME TEXT: a line of what was rendered is this, but for what stands before it.
has() { check "$1 has: $2" grep -qE "^[ -]*$2\$" "$WORK/$1.${VERSIONS[0]}.yaml"; }
has defaults 'terminationGracePeriodSeconds: 80'
has secret 'terminationGracePeriodSeconds: 85'
has vm 'terminationGracePeriodSeconds: 170'
has vm 'restartPolicy: Always'
has vm 'value: "unix:/run/cairn/nbd.sock"'
has defaults 'readOnlyRootFilesystem: true'
has two-gateways 'value: "x=1GiB,w=2TiB"'
# A pod knows its own lease and takes no other's.
has defaults 'CAIRN_LEASE__TAKEOVER: "false"'
has defaults 'value: \$\(POD_NAMESPACE\)/\$\(POD_NAME\)'
has vm 'value: \$\(POD_NAMESPACE\)/\$\(POD_NAME\)'
has named 'value: east/\$\(POD_NAMESPACE\)/\$\(POD_NAME\)'
has two-gateways 'value: "z=4096"'
has defaults 'CAIRN_SERVER__FAREWELL: hang-up'
has role 'eks.amazonaws.com/role-arn: arn:aws:iam::1:role/x'
has secret 'name: mine'
has secret 'value: /run/secrets/cairn/token'
has secret 'mountPath: /run/secrets/cairn'
has defaults 'value: /run/cairn/admin/admin.sock'
has vm 'value: none'
has monitored 'kind: PodMonitor'
has monitored 'kind: PrometheusRule'
runs_nothing() { [ -s "$1" ] && ! grep -qE '^kind: (StatefulSet|Deployment|Pod)$' "$1"; }
check "a library runs nothing" runs_nothing "$WORK/library.${VERSIONS[0]}.yaml"

# What the chart carries of deploy/ is the same.
check "the chart's alerts" cmp "$ROOT/deploy/prometheus/alerts.yml" "$ROOT/helm/cairn/files/alerts.yml"
check "the chart's dashboard" cmp "$ROOT/deploy/grafana/cairn.json" "$ROOT/helm/cairn/files/cairn.json"

# refused WORD OPTION...: not rendered, and the message has the word.
refused() {
    local word=$1 said
    shift
    if said=$("$HELM" template release cairn --kube-version 1.31.0 "$@" 2>&1); then
        fail "rendered although it should be refused: $*"
    elif grep -qF -- "$word" <<<"$said"; then
        pass
    else
        fail "refused without $word: $* : $said"
    fi
}
refused mode --set mode=cluster
refused url --set store.url=http://bucket
refused url --set store.url=file:///data
refused endpoint --set store.endpoint=minio
refused size --set 'gateways[0].name=a,gateways[0].volumes[0].name=x,gateways[0].volumes[0].size=1G'
refused name --set 'gateways[0].name=a,gateways[0].volumes[0].name=a/b,gateways[0].volumes[0].size=1GiB'
refused name --set 'gateways[0].name=A_B,gateways[0].volumes[0].name=x,gateways[0].volumes[0].size=1GiB'
refused gateways --set-json 'gateways=[]'
refused 'two writers' --set-json 'gateways=[{"name":"a","volumes":[{"name":"x","size":"1GiB"}]},{"name":"b","volumes":[{"name":"x","size":"1GiB"}]}]'
refused 'two gateways' --set-json 'gateways=[{"name":"a","volumes":[{"name":"x","size":"1GiB"}]},{"name":"a","volumes":[{"name":"y","size":"1GiB"}]}]'
refused exclude --set store.existingSecret=a,store.accessKeyId=b,store.secretAccessKey=c
refused secretAccessKey --set store.accessKeyId=b
refused accessKeyId --set store.secretAccessKey=b
refused CAIRN_STORE__URL --set settings.CAIRN_STORE__URL=s3://x
refused CAIRN_ADMIN__SOCKET --set settings.CAIRN_ADMIN__SOCKET=/x
refused CAIRN_PORT --set settings.CAIRN_PORT=1
refused closeSeconds --set drain.closeSeconds=0
refused farewell --set drain.farewell=wave
refused CAIRN_SERVER__FAREWELL --set settings.CAIRN_SERVER__FAREWELL=refuse
refused replicas --set replicas=3
refused clusterName --set clusterName=a/b
refused CAIRN_LEASE__HOLDER --set settings.CAIRN_LEASE__HOLDER=x
refused pullPolicy --set image.pullPolicy=Sometimes
refused kubeVersion --kube-version 1.28.0

echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
