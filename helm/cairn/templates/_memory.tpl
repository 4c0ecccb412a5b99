{{/* What memory a gateway needs, from its settings; and that its limit is no less. */}}

{{/* A size of Cairn's, or a quantity of Kubernetes', in bytes. */}}
{{- define "cairn.bytes" -}}
{{- $text := toString . | trim -}}
{{- $units := dict "" 1 "B" 1 "KB" 1e3 "MB" 1e6 "GB" 1e9 "TB" 1e12 "PB" 1e15 "KiB" 1024 "MiB" 1048576 "GiB" 1073741824 "TiB" 1099511627776 "PiB" 1125899906842624 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?(e[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text | trim -}}
{{- if or (not $number) (not (hasKey $units $unit)) }}{{ fail (printf "%q is no size: write 512MiB, or 512Mi for a limit" $text) }}{{ end -}}
{{- mulf (float64 $number) (float64 (get $units $unit)) | int64 -}}
{{- end -}}

{{/*
What a gateway may take with these settings, in MiB, rounded up: the bounds that Cairn keeps (its README, Configuration),
64 KiB for each connection, and 96 MiB for the program itself and the buffers that it keeps. Takes `root`, `settings` and `volumes`.
*/}}
{{- define "cairn.memoryMiB" -}}
{{- $defaults := dict "CAIRN_CACHE__CLEAN" "256MiB" "CAIRN_CACHE__DIRTY" "128MiB" "CAIRN_SERVER__TOTAL_BYTES_IN_FLIGHT" "256MiB" "CAIRN_JOURNAL__FOLD_BYTES" "32MiB" "CAIRN_SERVER__CONNECTIONS" "1024" -}}
{{- range .root.Values.extraEnv -}}
{{- if hasKey $defaults .name }}{{ fail (printf "extraEnv.%s: write it under settings, so that the limit of memory follows it" .name) }}{{ end -}}
{{- end -}}
{{- $all := mergeOverwrite $defaults (deepCopy .root.Values.settings) (deepCopy (default dict .settings)) -}}
{{- $bytes := 100663296 -}}
{{- range list "CAIRN_CACHE__CLEAN" "CAIRN_CACHE__DIRTY" "CAIRN_SERVER__TOTAL_BYTES_IN_FLIGHT" -}}
{{- $bytes = add $bytes (include "cairn.bytes" (get $all .)) -}}
{{- end -}}
{{- $bytes = add $bytes (mul (len .volumes) (include "cairn.bytes" (get $all "CAIRN_JOURNAL__FOLD_BYTES"))) -}}
{{- $bytes = add $bytes (mul 65536 (include "cairn.bytes" (get $all "CAIRN_SERVER__CONNECTIONS"))) -}}
{{- div (add $bytes 1048575) 1048576 -}}
{{- end -}}

{{/* The resources of a gateway; takes `root`, `what` (whose), `settings`, `volumes` and `resources`. */}}
{{- define "cairn.resources" -}}
{{- $resources := mergeOverwrite (deepCopy .root.Values.resources) (deepCopy (default dict .resources)) -}}
{{- $needed := include "cairn.memoryMiB" . | int64 -}}
{{- $limits := default dict $resources.limits -}}
{{- $requests := default dict $resources.requests -}}
{{- if not (hasKey $limits "memory") }}{{ $_ := set $limits "memory" (printf "%dMi" $needed) }}{{ end -}}
{{- if lt (include "cairn.bytes" $limits.memory | int64) (mul $needed 1048576) -}}
{{- fail (printf "%s: resources.limits.memory is %v, and its settings may take %dMi: raise it, or lower CAIRN_CACHE__CLEAN, CAIRN_CACHE__DIRTY, CAIRN_SERVER__TOTAL_BYTES_IN_FLIGHT, CAIRN_SERVER__CONNECTIONS or CAIRN_JOURNAL__FOLD_BYTES" .what $limits.memory $needed) -}}
{{- end -}}
{{- if not (hasKey $requests "memory") }}{{ $_ := set $requests "memory" $limits.memory }}{{ end -}}
{{- set $resources "limits" $limits | merge (dict "requests" $requests) | toYaml -}}
{{- end -}}
