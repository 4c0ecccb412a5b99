#!/bin/bash
# The charts: linted, rendered in every mode, each manifest held against Kubernetes' schemas, and bad values refused.
set -u -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/common.sh"

HELM=$TOOLS/bin/helm
VALIDATE=$TOOLS/kubernetes-validate/bin/kubernetes-validate
# The oldest that the chart takes, and a newer one.
VERSIONS=(1.29 1.34)
# What has no default.
STORE=(--set "store.url=s3://my-bucket/disks")
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
    check "$name: lint" "$HELM" lint --quiet --strict --kube-version "${VERSIONS[-1]}.0" "$chart" "$@"
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
cat >"$WORK/everything.yaml" <<'YAML'
commonLabels: {team: storage}
image: {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000007"}
imagePullSecrets: [{name: registry}]
store:
  existingSecret: mine
  secretKeys: {accessKeyId: id, secretAccessKey: key}
  authorities: {secret: ca, key: bundle.pem}
gateways:
  - name: a
    volumes: [{name: disk, size: 1GiB}]
    resources: {limits: {memory: 2Gi}}
  - name: b
    volumes: [{name: other, size: 1GiB}]
    settings: {CAIRN_CACHE__CLEAN: 16MiB}
tls: {mode: required, secret: tls, clientAuthoritiesSecret: clients, subjects: ["disk=O=Example, CN=vm"]}
admin: {tokenSecret: token}
extraEnv: [{name: TZ, value: UTC}]
extraArgs: [--listen, "0.0.0.0:10810"]
extraVolumes: [{name: scratch, emptyDir: {}}]
extraVolumeMounts: [{name: scratch, mountPath: /scratch}]
podSecurityContext: {fsGroup: 7}
securityContext: {runAsUser: 7}
priorityClassName: high
tolerations: [{key: disks, operator: Exists}]
topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app.kubernetes.io/name: cairn}}}]
networkPolicy: {enabled: true, egress: {enabled: true, to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [443, 9000]}}
YAML
renders defaults cairn "${STORE[@]}"
renders library cairn "${STORE[@]}" --set mode=library
renders monitored cairn "${STORE[@]}" --set "$MONITORING"
renders runbooks cairn "${STORE[@]}" --set monitoring.prometheusRule.enabled=true,alerts.runbookUrlPrefix=https://forge.example/cairn/
renders monitored-service cairn "${STORE[@]}" --set monitoring.serviceMonitor.enabled=true
renders monitored-library cairn "${STORE[@]}" --set "mode=library,$MONITORING"
renders closed cairn "${STORE[@]}" --set networkPolicy.enabled=true
renders peers cairn "${STORE[@]}" --values "$WORK/peers.yaml"
renders two-gateways cairn "${STORE[@]}" --values "$WORK/two.yaml"
renders watched cairn "${STORE[@]}" --values "$WORK/two.yaml" --namespace disks --set "$MONITORING"
renders keys cairn "${STORE[@]}" --set store.accessKeyId=k,store.secretAccessKey=s,store.endpoint=http://minio:9000,store.pathStyle=true
renders secret cairn "${STORE[@]}" --set store.existingSecret=mine,admin.tokenSecret=token,admin.tokenKey=bearer
renders role cairn "${STORE[@]}" --set-string 'serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/x'
renders account cairn "${STORE[@]}" --set serviceAccount.create=false,serviceAccount.name=mine,podDisruptionBudget.enabled=false
renders settings cairn "${STORE[@]}" --set settings.CAIRN_CACHE__CLEAN=1GiB,service.type=LoadBalancer
renders named cairn "${STORE[@]}" --set clusterName=east
renders stateful cairn "${STORE[@]}" --set workload=StatefulSet
renders everything cairn "${STORE[@]}" --values "$WORK/everything.yaml"
renders vm vm --set cairn.store.url=s3://my-bucket/vms
renders vm-everything vm --set cairn.store.url=s3://my-bucket/vms,replicas=3,cairn.store.authorities.configMap=ca,cairn.extraEnv[0].name=TZ,cairn.extraEnv[0].value=UTC,cairn.imagePullSecrets[0].name=registry
VERSIONS=(1.30 1.34)
renders pause cairn "${STORE[@]}" --set drain.preStopSeconds=5
VERSIONS=(1.29 1.34)

# has NAME TEXT: a line of what was rendered is this, but for what stands before it.
has() { check "$1 has: $2" grep -qE "^[ -]*$2\$" "$WORK/$1.1.34.yaml"; }
has defaults 'terminationGracePeriodSeconds: 80'
has pause 'terminationGracePeriodSeconds: 85'
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
has secret 'key: bearer'
has defaults 'value: /run/cairn/admin/admin.sock'
has defaults 'CAIRN_ADMIN__READ_WITHOUT_TOKEN: "true"'
has vm 'value: none'
has monitored 'kind: PodMonitor'
has monitored-service 'kind: ServiceMonitor'
has monitored 'kind: PrometheusRule'
runs_nothing() { [ -s "$1" ] && ! grep -qE '^kind: (StatefulSet|Deployment|Pod)$' "$1"; }
check "a library runs nothing" runs_nothing "$WORK/library.1.34.yaml"

# asks NAME FILTER: what was rendered, as a list of JSON documents, fulfils it.
asks() { check "$1: $2" fulfils "$WORK/$1.1.34.yaml" "$2"; }
to_json() { /usr/bin/python3 -c 'import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))' "$1"; }
fulfils() {
    to_json "$1" |
        jq -e "def one(kind): map(select(.kind == kind)) | first; def pod: .spec.template.spec; $2" >/dev/null
}
# One that is left on a node that does not answer is replaced, after a time that the values say.
asks defaults 'one("StatefulSet") == null and one("Deployment").spec.strategy.type == "Recreate"'
asks defaults 'one("Deployment") | pod.tolerations | map(select(.tolerationSeconds == 30) | .key) == ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"]'
asks stateful 'one("Deployment") == null and one("StatefulSet").spec.serviceName == "release-cairn-a"'
# Kubernetes puts a variable only into those that come after it.
# shellcheck disable=SC2016  # the variables are those of jq
ORDERED='def ordered: [.env[].name] as $names | [.env[] | . as $env | ((.value // "") | scan("\\$\\(([A-Z_]+)\\)")[0]) as $used
    | ($names | index($used)) as $at | $at != null and $at < ($names | index($env.name))] | length > 0 and all;'
asks defaults "$ORDERED one(\"Deployment\") | pod.containers[0] | ordered"
asks vm "$ORDERED one(\"StatefulSet\") | pod.initContainers[0] | ordered"
# shellcheck disable=SC2016  # the variables are those of Kubernetes
# Each replica has a disk of its own, at a socket for the group of the pod, whatever the user of the machine.
asks vm 'one("StatefulSet") | pod | .securityContext.fsGroup == 65532 and .containers[0].securityContext.runAsUser != 65532
    and (.initContainers[0].env | from_entries | .CAIRN_SERVER__SOCKET_MODE == "0660" and .CAIRN_VOLUMES__CREATE == "vm-$(POD_NAME)=20GiB")
    and (.containers[0].command | any(contains("export=vm-$(POD_NAME),")))'
asks vm 'one("StatefulSet") | pod.initContainers[0] | [.startupProbe, .readinessProbe] | all(.httpGet.path == "/health/ready")'
asks vm-everything 'one("StatefulSet") | .spec.replicas == 3 and (pod | .imagePullSecrets[0].name == "registry" and (.volumes | any(.configMap.name == "ca"))
    and (.initContainers[0].env | from_entries | .AWS_CA_BUNDLE == "/etc/cairn/store/authorities.pem" and .TZ == "UTC"))'
# The limit is what the settings may take: 1024 - 256 MiB more than by default; and 2 volumes fold at a time.
asks defaults 'one("Deployment") | pod.containers[0].resources == {limits: {memory: "832Mi"}, requests: {cpu: "100m", memory: "832Mi"}}'
asks settings 'one("Deployment") | pod.containers[0].resources.limits.memory == "1600Mi"'
asks two-gateways 'map(select(.kind == "Deployment") | pod.containers[0].resources.limits.memory) == ["864Mi", "832Mi"]'
asks everything 'map(select(.kind == "Deployment")) | (.[0] | pod.containers[0].resources.limits.memory == "2Gi")
    and (.[1] | pod.containers[0] | .resources.limits.memory == "592Mi" and (.env | from_entries.CAIRN_CACHE__CLEAN == "16MiB"))'
asks everything 'one("Deployment") | pod | .containers[0].image == "cairn@sha256:'"$(printf '%064d' 7)"'" and .priorityClassName == "high"
    and .topologySpreadConstraints[0].maxSkew == 1 and .imagePullSecrets[0].name == "registry" and .securityContext.fsGroup == 7
    and .securityContext.runAsNonRoot and .containers[0].securityContext.runAsUser == 7 and .containers[0].args == ["serve", "--listen", "0.0.0.0:10810"]
    and (.volumes | any(.name == "scratch")) and (.containers[0].volumeMounts | any(.mountPath == "/scratch")) and (.tolerations | length == 3)'
asks everything 'one("Deployment") | pod.containers[0].env | map({key: .name, value: .}) | from_entries
    | .AWS_ACCESS_KEY_ID.valueFrom.secretKeyRef == {name: "mine", key: "id"} and .AWS_SESSION_TOKEN.valueFrom.secretKeyRef.optional
    and .CAIRN_TLS__MODE.value == "required" and .CAIRN_TLS__CERTIFICATE.value == "/etc/cairn/tls/tls.crt"
    and .CAIRN_CONFIG.value == "/etc/cairn/file/cairn.toml"'
asks everything 'map(select(.metadata.name == "release-cairn-file")) | first.data["cairn.toml"] | contains("subjects = [\"disk=O=Example, CN=vm\"]")'
asks everything 'one("NetworkPolicy").spec | .policyTypes == ["Ingress", "Egress"] and (.egress | map(.ports[].port) == [53, 53, 443, 9000])'
asks everything 'all(.metadata.labels.team == "storage")'
# helm test asks every gateway, and reads each disk where it needs no certificate.
asks two-gateways 'one("Pod") | .metadata.annotations["helm.sh/hook"] == "test" and (.spec.containers | map(.args | join(" ")) == [
    "health http://release-cairn-a-admin:9180/health/ready", "nbd size nbd://release-cairn-a:10809/x", "nbd size nbd://release-cairn-a:10809/w",
    "health http://release-cairn-b-admin:9180/health/ready", "nbd size nbd://release-cairn-b:10809/z"])'
asks everything 'one("Pod").spec.containers | all(.args[0] == "health")'
# Labels have a domain, or are those that Kubernetes recommends.
for name in defaults everything vm; do
    asks "$name" '[.. | objects | .labels?, .matchLabels? | objects | keys[]] | unique
        | map(select(. != "team")) | length > 0 and all(test("^[a-z0-9-]+([.][a-z0-9-]+)+/"))'
done
# Each alert links to its part of the guide: where the guide is published, if the values say so.
asks monitored '[one("PrometheusRule").spec.groups[].rules[]] | length > 10 and all(.annotations.runbook_url == "docs/alerts.md#\(.alert | ascii_downcase)")'
asks runbooks '[one("PrometheusRule").spec.groups[].rules[]] | length > 10
    and all(.annotations.runbook_url == "https://forge.example/cairn/docs/alerts.md#\(.alert | ascii_downcase)")'
# A gateway whose pods vanish is missed, although another one is there; and none is missed where nothing says what it is.
# shellcheck disable=SC2016  # the variable is one of Prometheus
asks watched 'one("PodMonitor").spec.podMetricsEndpoints[0].relabelings | any(.targetLabel == "gateway"
    and .sourceLabels == ["__meta_kubernetes_pod_label_cairn_internal_gateway"] and .replacement == "release-cairn-${1}")'
asks monitored-service 'one("ServiceMonitor").spec.endpoints[0].relabelings | any(.targetLabel == "gateway")'
asks runbooks 'one("PrometheusRule").spec.groups | map(.name) == ["cairn"]'
asks monitored-library 'one("PrometheusRule").spec.groups | map(.name) == ["cairn"]'
a_gateway_that_is_gone_is_missed() {
    mkdir "$WORK/rules" && to_json "$WORK/watched.1.34.yaml" | jq '.[] | select(.kind == "PrometheusRule").spec' >"$WORK/rules/rules.json" || return 1
    jq -n 'def up($of; $values): {series: "up{job=\"cairn\",namespace=\"disks\",gateway=\"\($of)\",instance=\"\($of)-0\"}", $values};
        def absent($eval_time; $exp_alerts): {$eval_time, alertname: "CairnAbsent", $exp_alerts};
        def gone($labels; $summary; $description): {exp_labels: ({severity: "page", job: "cairn"} + $labels),
            exp_annotations: {$summary, $description, runbook_url: "docs/alerts.md#cairnabsent"}};
        {rule_files: ["rules.json"], evaluation_interval: "15s", tests: [{interval: "15s",
            input_series: [up("release-cairn-a"; "1x60"), up("release-cairn-b"; "1x20 stale")],
            alert_rule_test: [absent("9m"; []), absent("11m"; [gone({namespace: "disks", gateway: "release-cairn-b"};
                "Prometheus knows no pod of the gateway release-cairn-b";
                "There is no target for it: no pod of it runs, or the monitor does not find it. Its disks are away.")])]}]}' >"$WORK/rules/test.json" &&
        promtool check rules "$WORK/rules/rules.json" && promtool test rules "$WORK/rules/test.json"
}
check "a gateway that is gone" a_gateway_that_is_gone_is_missed
# A name as long as helm allows leaves room for what Kubernetes makes of it.
long_names() {
    "$HELM" template "$(printf 'r%.0s' {1..53})" cairn --kube-version 1.34.0 "${STORE[@]}" --set "workload=$1" \
        --set 'gateways[0].name=aaaaaaaaaaaaaaaa,gateways[0].volumes[0].name=x,gateways[0].volumes[0].size=1GiB' \
        | awk '/^kind:/ { kind = $2 } /^  name:/ && length($2) > (kind == "StatefulSet" ? 52 : 63) { print kind, $2; bad = 1 } /^  name:/ { n++ } END { exit bad || n < 4 }'
}
check "long names of a Deployment" long_names Deployment
check "long names of a StatefulSet" long_names StatefulSet

# README.md has each value with its default, and no other.
values_are_documented() {
    /usr/bin/python3 - "$ROOT/helm/cairn" <<'PYTHON'
import json, re, sys, yaml
def leaves(value, path=""):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value)
root = sys.argv[1]
values = dict(leaves(yaml.safe_load(open(f"{root}/values.yaml"))))
rows = re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| (.+) \|$", open(f"{root}/README.md").read(), re.M)
table = {key: default for key, default, _ in rows}
wrong = [f"{key}: {values.get(key)} in values.yaml, {table.get(key)} in README.md"
         for key in sorted(values.keys() | table.keys()) if values.get(key) != table.get(key)]
sys.exit("\n".join(wrong) or (len(rows) != len(values) and "a value is there twice") or 0)
PYTHON
}
check "the table of values" values_are_documented

# What the chart counts with are the settings' own defaults.
defaults_are_those_of_cairn() {
    local key default
    # shellcheck disable=SC2016  # the variable is one of Helm's
    sed -n 's/.*\$defaults := dict \(.*\) -}}$/\1/p' "$ROOT/helm/cairn/templates/_memory.tpl" | xargs -n 2 >"$WORK/counted"
    [ "$(wc -l <"$WORK/counted")" = 5 ] || return 1
    while read -r key default; do
        key=$(sed 's/^CAIRN_//; s/__/./' <<<"$key" | tr '[:upper:]' '[:lower:]')
        if ! grep -F "| \`$key\` | " "$ROOT/docs/configuration.md" | grep -qF "| \`$default\` |"; then
            echo "$key is not $default"
            return 1
        fi
    done <"$WORK/counted"
}
check "the memory that the chart counts with" defaults_are_those_of_cairn

# What the chart carries of deploy/ is the same.
check "the chart's alerts" cmp "$ROOT/deploy/prometheus/alerts.yml" "$ROOT/helm/cairn/files/alerts.yml"
check "the chart's dashboard" cmp "$ROOT/deploy/grafana/cairn.json" "$ROOT/helm/cairn/files/cairn.json"

# refused WORD OPTION...: not rendered, and the message has the word.
refused() {
    local word=$1 said
    shift
    if said=$("$HELM" template release cairn --kube-version 1.31.0 "${STORE[@]}" "$@" 2>&1); then
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
refused 'store.url is required' --set store.url=
refused workload --set workload=DaemonSet
refused digest --set image.digest=sha256:7
refused 'may take 832Mi' --set resources.limits.memory=831Mi
refused 'gateway a' --set resources.limits.memory=831Mi
refused 'may take 960Mi' --set resources.limits.memory=832Mi,settings.CAIRN_CACHE__DIRTY=256MiB
refused extraEnv.CAIRN_CACHE__DIRTY --set 'extraEnv[0].name=CAIRN_CACHE__DIRTY,extraEnv[0].value=8GiB'
refused 'is no size' --set resources.limits.memory=1GiBi
refused tls.secret --set tls.mode=required
refused mode --set tls.mode=on
refused exclude --set store.authorities.secret=a,store.authorities.configMap=b
refused 'enable one' --set monitoring.podMonitor.enabled=true,monitoring.serviceMonitor.enabled=true
refused runbookUrlPrefix --set alerts.runbookUrlPrefix=https://forge.example/cairn
refused runbookUrlPrefix --set alerts.runbookUrlPrefix=forge.example/
refused alerts --set alerts.enabled=true
refused 'library mode' --set mode=library,monitoring.serviceMonitor.enabled=true
refused networkPolicy.enabled --set mode=library,networkPolicy.enabled=true
refused tls.mode --set mode=library,tls.mode=required,tls.secret=tls
refused admin.tokenSecret --set mode=library,admin.tokenSecret=token
refused 'Kubernetes 1.30' --set drain.preStopSeconds=5 --kube-version 1.29.0
refused CAIRN_TLS__MODE --set settings.CAIRN_TLS__MODE=off
refused CAIRN_ADMIN__READ_WITHOUT_TOKEN --set 'gateways[0].name=a,gateways[0].volumes[0].name=x,gateways[0].volumes[0].size=1GiB,gateways[0].settings.CAIRN_ADMIN__READ_WITHOUT_TOKEN=x'
refused name --set 'gateways[0].name=aaaaaaaaaaaaaaaaa,gateways[0].volumes[0].name=x,gateways[0].volumes[0].size=1GiB'
refused_vm() { ! "$HELM" template release vm --kube-version 1.31.0 >"$WORK/said" 2>&1 && grep -qF 'store.url is required' "$WORK/said"; }
check "the example without a store" refused_vm

echo "counted: $passed passed; $failed failed"
[ "$failed" = 0 ]
