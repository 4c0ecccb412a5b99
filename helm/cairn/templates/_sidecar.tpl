{{/*
Cairn as a native sidecar of your own pod: an init container that restarts always (Kubernetes 1.29), so that it starts
before your containers and ends after them. Your containers see the disk at {socketDirectory}/nbd.sock.

In the pod's spec:

  terminationGracePeriodSeconds: {{ include "cairn.sidecar.graceSeconds" (dict "root" . "workloadSeconds" 60) }}
  securityContext:
    fsGroup: 65532
  initContainers:
    {{- include "cairn.sidecar" (dict "root" . "volumes" (list (dict "name" "vm" "size" "20GiB"))) | nindent 4 }}
  containers:
    - name: yours
      volumeMounts:
        {{- include "cairn.sidecar.mount" (dict "root" .) | nindent 8 }}
  volumes:
    {{- include "cairn.sidecar.volume" (dict "root" .) | nindent 4 }}

`root` is the context of the chart cairn: `.` within it, `.Subcharts.cairn` in a chart that depends on it.
*/}}
{{- define "cairn.sidecar" -}}
{{- $root := .root -}}
- name: cairn
  restartPolicy: Always
  {{- include "cairn.container" $root | nindent 2 }}
  env:
    - name: CAIRN_SERVER__LISTEN
      value: {{ printf "unix:%s/nbd.sock" $root.Values.sidecar.socketDirectory | quote }}
    - name: CAIRN_VOLUMES__CREATE
      value: {{ include "cairn.volumes" (required "cairn.sidecar needs volumes" .volumes) | quote }}
    # Your containers may have the same user, and are not to delete volumes.
    - name: CAIRN_ADMIN__SOCKET
      value: none
    {{- include "cairn.holder" $root | nindent 4 }}
  ports:
    - name: admin
      containerPort: {{ $root.Values.admin.port }}
  # Your containers start only once the disk is open.
  startupProbe:
    httpGet:
      path: /health/ready
      port: admin
    periodSeconds: 1
    timeoutSeconds: 6
    failureThreshold: {{ $root.Values.sidecar.startupSeconds }}
  volumeMounts:
    {{- include "cairn.sidecar.mount" . | nindent 4 }}
{{- end -}}

{{- define "cairn.sidecar.mount" -}}
- name: {{ .root.Values.sidecar.socketVolume }}
  mountPath: {{ .root.Values.sidecar.socketDirectory }}
{{- end -}}

{{- define "cairn.sidecar.volume" -}}
- name: {{ .root.Values.sidecar.socketVolume }}
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end -}}

{{/* Grace period of the pod: what your containers take to end, and then what Cairn does. */}}
{{- define "cairn.sidecar.graceSeconds" -}}
{{- add (required "cairn.sidecar.graceSeconds needs workloadSeconds" .workloadSeconds) (include "cairn.graceSeconds" .root) -}}
{{- end -}}
