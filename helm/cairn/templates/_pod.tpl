{{/* The pod of a standalone gateway, as a template of a Deployment or a StatefulSet; takes `root` and `gateway`. */}}
{{- define "cairn.pod" -}}
{{- $root := .root -}}
{{- $gateway := .gateway -}}
{{- $tls := ne $root.Values.tls.mode "off" -}}
{{- if and $tls (not $root.Values.tls.secret) }}{{ fail "tls.mode needs tls.secret" }}{{ end -}}
metadata:
  # Not the chart's version: a new chart alone is no reason to start a disk anew.
  labels:
    {{- include "cairn.selector" $root | nindent 4 }}
    cairn.internal/gateway: {{ $gateway.name }}
    {{- with $root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Changed settings start the gateway anew.
    checksum/config: {{ include (print $root.Template.BasePath "/configmap.yaml") $root | sha256sum }}
    {{- with $root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "cairn.serviceAccountName" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "cairn.graceSeconds" $root }}
  securityContext:
    {{- include "cairn.podSecurityContext" $root | nindent 4 }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  containers:
    - name: cairn
      {{- include "cairn.container" (dict "root" $root "what" (printf "gateway %s" $gateway.name) "volumes" $gateway.volumes "settings" $gateway.settings "resources" $gateway.resources) | nindent 6 }}
      env:
        {{- include "cairn.holder" $root | nindent 8 }}
        - name: CAIRN_SERVER__LISTEN
          value: 0.0.0.0:10809
        - name: CAIRN_VOLUMES__CREATE
          value: {{ include "cairn.volumes" $gateway.volumes | quote }}
        # For kubectl exec … -- cairn volume list --gateway
        - name: CAIRN_ADMIN__SOCKET
          value: /run/cairn/admin/admin.sock
        {{- if $root.Values.admin.tokenSecret }}
        - name: CAIRN_ADMIN__TOKEN_FILE
          value: /run/secrets/cairn/token
        {{- end }}
        {{- if $tls }}
        - name: CAIRN_TLS__MODE
          value: {{ $root.Values.tls.mode }}
        - name: CAIRN_TLS__CERTIFICATE
          value: /etc/cairn/tls/tls.crt
        - name: CAIRN_TLS__KEY
          value: /etc/cairn/tls/tls.key
        {{- if $root.Values.tls.clientAuthoritiesSecret }}
        - name: CAIRN_TLS__CLIENT_AUTHORITIES
          value: /etc/cairn/clients/authorities.pem
        {{- end }}
        {{- if $root.Values.tls.subjects }}
        - name: CAIRN_CONFIG
          value: /etc/cairn/file/cairn.toml
        {{- end }}
        {{- end }}
        {{- include "cairn.environment" (dict "root" $root "settings" $gateway.settings) | nindent 8 }}
      ports:
        - name: nbd
          containerPort: 10809
        - name: admin
          containerPort: {{ $root.Values.admin.port }}
      # Replaying a journal and waiting for a lease take time; that is not being stuck.
      startupProbe:
        httpGet:
          path: /health/ready
          port: admin
        periodSeconds: 2
        timeoutSeconds: 6
        failureThreshold: 150
      volumeMounts:
        # Everybody can write to it; the gateway makes a directory of its own in it for the admin socket.
        - name: run
          mountPath: /run/cairn
        {{- if $root.Values.admin.tokenSecret }}
        - name: token
          mountPath: /run/secrets/cairn
          readOnly: true
        {{- end }}
        {{- if $tls }}
        - name: tls
          mountPath: /etc/cairn/tls
          readOnly: true
        {{- if $root.Values.tls.clientAuthoritiesSecret }}
        - name: tls-clients
          mountPath: /etc/cairn/clients
          readOnly: true
        {{- end }}
        {{- if $root.Values.tls.subjects }}
        - name: file
          mountPath: /etc/cairn/file
          readOnly: true
        {{- end }}
        {{- end }}
        {{- include "cairn.mounts" $root | nindent 8 }}
  volumes:
    - name: run
      emptyDir:
        medium: Memory
        sizeLimit: 1Mi
    {{- if $root.Values.admin.tokenSecret }}
    - name: token
      secret:
        secretName: {{ $root.Values.admin.tokenSecret }}
        items:
          - key: {{ $root.Values.admin.tokenKey }}
            path: token
    {{- end }}
    {{- if $tls }}
    - name: tls
      secret:
        secretName: {{ $root.Values.tls.secret }}
        defaultMode: 0440
        items:
          - key: tls.crt
            path: tls.crt
          - key: tls.key
            path: tls.key
    {{- if $root.Values.tls.clientAuthoritiesSecret }}
    - name: tls-clients
      secret:
        secretName: {{ $root.Values.tls.clientAuthoritiesSecret }}
        items:
          - key: {{ $root.Values.tls.clientAuthoritiesKey }}
            path: authorities.pem
    {{- end }}
    {{- if $root.Values.tls.subjects }}
    - name: file
      configMap:
        name: {{ include "cairn.fullname" $root }}-file
    {{- end }}
    {{- end }}
    {{- include "cairn.podVolumes" $root | nindent 4 }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  tolerations:
    {{- include "cairn.scheduling" $root | nindent 4 }}
{{- end -}}
