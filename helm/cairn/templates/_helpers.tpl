{{/* Names, labels, and the parts that standalone gateways and sidecars share. */}}

{{- define "cairn.name" -}}
{{- default "cairn" .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "cairn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "cairn.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "cairn.name" .) | trunc 40 | trimSuffix "-" -}}
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
{{- end -}}

{{- define "cairn.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "cairn.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "cairn.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
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
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cairn.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: ["ALL"]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What every gateway has, without its listeners, volumes and probes. */}}
{{- define "cairn.container" -}}
image: {{ include "cairn.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["serve"]
envFrom:
  - configMapRef:
      name: {{ include "cairn.fullname" . }}
  {{- with include "cairn.storeSecret" . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
livenessProbe:
  httpGet:
    path: /health/live
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "cairn.securityContext" . | nindent 2 }}
{{- if .Values.drain.preStopSeconds }}
lifecycle:
  preStop:
    exec:
      command: ["sleep", {{ .Values.drain.preStopSeconds | quote }}]
{{- end }}
{{- end -}}

{{/*
The name in the lease, by which a pod knows its own from before: Kubernetes runs one pod of a name at a time, and a
StatefulSet gives its pods the same names again.
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

{{/* Volumes as CAIRN_VOLUMES__CREATE has them. */}}
{{- define "cairn.volumes" -}}
{{- $parts := list -}}
{{- range . -}}{{- $parts = append $parts (printf "%s=%s" .name .size) -}}{{- end -}}
{{- join "," $parts -}}
{{- end -}}
