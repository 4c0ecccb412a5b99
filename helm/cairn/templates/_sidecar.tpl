{{/*
Cairn as a native sidecar of your own pod: an init container that restarts always (Kubernetes 1.29), so that it starts
before your containers and ends after them. Your containers see the disk at {socketDirectory}/nbd.sock, whatever their
user, since the socket has the pod's fsGroup and the mode 0660.

In the pod's spec:

  terminationGracePeriodSeconds: {{ include "cairn.sidecar.graceSeconds" (dict "root" . "workloadSeconds" 60) }}
  securityContext:
    fsGroup: 65532
  initContainers:
    {{- include "cairn.sidecar" (dict "root" . "volumes" (list (dict "name" "vm-$(POD_NAME)" "size" "20GiB"))) | nindent 4 }}
  containers:
    - name: yours
      volumeMounts:
        {{- include "cairn.sidecar.mount" (dict "root" .) | nindent 8 }}
  volumes:
    {{- include "cairn.sidecar.volume" (dict "root" .) | nindent 4 }}

`root` is the context of the chart cairn: `.` within it, `.Subcharts.cairn` in a chart that depends on it. `$(POD_NAME)` and
`$(POD_NAMESPACE)` in the name of a volume are the pod's: with them each replica of a StatefulSet has a disk of its own.
`resources` and `settings` go over those in the values.
*/}}
{{- define "cairn.sidecar" -}}
{{- $root := .root -}}
{{- $volumes := required "cairn.sidecar needs volumes" .volumes -}}
- name: cairn
  restartPolicy: Always
  {{- include "cairn.container" (dict "root" $root "what" "sidecar" "volumes" $volumes "settings" .settings "resources" .resources) | nindent 2 }}
  env:
    {{- include "cairn.holder" $root | nindent 4 }}
    - name: CAIRN_SERVER__LISTEN
      value: {{ printf "unix:%s/nbd.sock" $root.Values.sidecar.socketDirectory | quote }}
    - name: CAIRN_SERVER__SOCKET_MODE
      value: {{ $root.Values.sidecar.socketMode | quote }}
    - name: CAIRN_VOLUMES__CREATE
      value: {{ include "cairn.volumes" $volumes | quote }}
    # Your containers may have the same user, and are not to delete volumes.
    - name: CAIRN_ADMIN__SOCKET
      value: none
    {{- include "cairn.environment" (dict "root" $root "settings" .settings) | nindent 4 }}
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
    {{- include "cairn.mounts" $root | nindent 4 }}
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
{{ include "cairn.podVolumes" .root }}
{{- end -}}

{{/* Grace period of the pod: what your containers take to end, and then what Cairn does. */}}
{{- define "cairn.sidecar.graceSeconds" -}}
{{- add (required "cairn.sidecar.graceSeconds needs workloadSeconds" .workloadSeconds) (include "cairn.graceSeconds" .root) -}}
{{- end -}}
