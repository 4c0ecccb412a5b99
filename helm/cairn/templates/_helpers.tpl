{{/* Names, labels, and the parts that standalone gateways and sidecars share. */}}

{{- define "cairn.name" -}}
{{- default "cairn" .Values.nameOverride | trunc 35 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for what Kubernetes makes of a gateway's name: 52 characters for a StatefulSet, 63 for a Service. */}}
{{- define "cairn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 35 | trimSuffix "-" -}}
{{- else if contains (include "cairn.name" .) .Release.Name -}}
{{- .Release.Name | trunc 35 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "cairn.name" .) | trunc 35 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cairn.selector" -}}
app.kubernetes.io/name: {{ include "cairn.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cairn.labels" -}}
helm.sh/chart: {{ printf "cairn-%s" .Chart.Version | replace "+" "_" }}
{{ include "cairn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cairn.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "cairn.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "cairn.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Gives the series of a standalone gateway the name of its workload. Pods of a library have none. */}}
{{- define "cairn.gatewayLabel" -}}
- sourceLabels: [__meta_kubernetes_pod_label_cairn_internal_gateway]
  regex: (.+)
  targetLabel: gateway
  replacement: {{ include "cairn.fullname" . }}-${1}
{{- end -}}

{{/* The secret with the store's keys; empty where a role gives access. */}}
{{- define "cairn.storeSecret" -}}
{{- if .Values.store.existingSecret -}}
{{- .Values.store.existingSecret -}}
{{- else if .Values.store.accessKeyId -}}
{{- printf "%s-store" (include "cairn.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* What Cairn needs to end in good order, and a margin. */}}
{{- define "cairn.graceSeconds" -}}
{{- add .Values.drain.preStopSeconds .Values.drain.commandsSeconds .Values.drain.closeSeconds .Values.drain.marginSeconds -}}
{{- end -}}

{{- define "cairn.podSecurityContext" -}}
{{- $ours := dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- mergeOverwrite $ours (deepCopy .Values.podSecurityContext) | toYaml -}}
{{- end -}}

{{- define "cairn.securityContext" -}}
{{- $ours := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "capabilities" (dict "drop" (list "ALL")) "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- mergeOverwrite $ours (deepCopy .Values.securityContext) | toYaml -}}
{{- end -}}

{{/* Where pods go, and how long they stay bound to a node that does not answer. */}}
{{- define "cairn.scheduling" -}}
{{- range $why := list "unreachable" "not-ready" }}
- key: node.kubernetes.io/{{ $why }}
  operator: Exists
  effect: NoExecute
  tolerationSeconds: {{ $.Values.nodeLoss.tolerationSeconds }}
{{- end }}
{{- with .Values.tolerations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every gateway has, without its listeners, volumes and probes; takes `root`, `what`, `volumes`, `settings` and `resources`. */}}
{{- define "cairn.container" -}}
{{- $root := .root -}}
image: {{ include "cairn.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
args: {{ concat (list "serve") $root.Values.extraArgs | toJson }}
envFrom:
  - configMapRef:
      name: {{ include "cairn.fullname" $root }}
livenessProbe:
  httpGet:
    path: /health/live
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /health/ready
    port: admin
  periodSeconds: 10
  timeoutSeconds: 6
resources:
  {{- include "cairn.resources" . | nindent 2 }}
securityContext:
  {{- include "cairn.securityContext" $root | nindent 2 }}
{{- if $root.Values.drain.preStopSeconds }}
{{- if not (semverCompare ">=1.30.0-0" $root.Capabilities.KubeVersion.Version) }}{{ fail "drain.preStopSeconds needs Kubernetes 1.30: the image has no program that sleeps" }}{{ end }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ $root.Values.drain.preStopSeconds }}
{{- end }}
{{- end -}}

{{/*
The name in the lease, by which a container that is started again in its pod knows the lease as its own: Kubernetes runs one
pod of a name at a time. First of all variables, since Kubernetes puts a variable only into those that come after it.
*/}}
{{- define "cairn.holder" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: CAIRN_LEASE__HOLDER
  value: {{ with .Values.clusterName }}{{ . }}/{{ end }}$(POD_NAMESPACE)/$(POD_NAME)
{{- end -}}

{{/* Keys and authorities of the store, settings of one gateway, and whatever else; takes `root` and `settings`. */}}
{{- define "cairn.environment" -}}
{{- $root := .root -}}
{{- with include "cairn.storeSecret" $root }}
{{- $secret := . }}
{{- range $name, $of := dict "AWS_ACCESS_KEY_ID" "accessKeyId" "AWS_SECRET_ACCESS_KEY" "secretAccessKey" "AWS_SESSION_TOKEN" "sessionToken" }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ if $root.Values.store.existingSecret }}{{ get $root.Values.store.secretKeys $of }}{{ else }}{{ $name }}{{ end }}
      {{- if eq $of "sessionToken" }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}
{{- if include "cairn.authorities" $root }}
- name: AWS_CA_BUNDLE
  value: /etc/cairn/store/authorities.pem
{{- end }}
{{- range $name, $value := .settings }}
{{- include "cairn.checkSetting" $name }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- with $root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Volumes of the pod that every gateway has. */}}
{{- define "cairn.podVolumes" -}}
{{- with include "cairn.authorities" . }}
- name: cairn-store-authorities
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where they are in the container. */}}
{{- define "cairn.mounts" -}}
{{- if include "cairn.authorities" . }}
- name: cairn-store-authorities
  mountPath: /etc/cairn/store
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The source of the store's authorities, if there is one. */}}
{{- define "cairn.authorities" -}}
{{- with .Values.store.authorities -}}
{{- if and .secret .configMap }}{{ fail "store.authorities.secret and store.authorities.configMap exclude one another" }}{{ end -}}
{{- if .secret -}}
secret:
  secretName: {{ .secret }}
{{- else if .configMap -}}
configMap:
  name: {{ .configMap }}
{{- end -}}
{{- if or .secret .configMap }}
  items:
    - key: {{ .key }}
      path: authorities.pem
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Settings that have a value of their own in values.yaml are refused elsewhere. */}}
{{- define "cairn.checkSetting" -}}
{{- $ours := list "STORE__URL" "STORE__ENDPOINT" "STORE__PATH_STYLE" "STORE__CREATE_BUCKET" "ADMIN__LISTEN" "ADMIN__TOKEN_FILE" "ADMIN__READ_WITHOUT_TOKEN" "ADMIN__SOCKET" "SERVER__LISTEN" "SERVER__SOCKET_MODE" "SERVER__DRAIN_TIMEOUT" "SERVER__FAREWELL" "TLS__MODE" "TLS__CERTIFICATE" "TLS__KEY" "TLS__CLIENT_AUTHORITIES" "TLS__SUBJECTS" "VOLUMES__CREATE" "VOLUMES__CLOSE_TIMEOUT" "LEASE__TAKEOVER" "LEASE__HOLDER" "LOG__FORMAT" -}}
{{- if has (trimPrefix "CAIRN_" .) $ours }}{{ fail (printf "settings.%s has a value of its own in values.yaml" .) }}{{ end -}}
{{- end -}}

{{/* Volumes as CAIRN_VOLUMES__CREATE has them. */}}
{{- define "cairn.volumes" -}}
{{- $parts := list -}}
{{- range . -}}{{- $parts = append $parts (printf "%s=%s" .name .size) -}}{{- end -}}
{{- join "," $parts -}}
{{- end -}}
