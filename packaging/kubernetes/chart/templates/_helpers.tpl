{{/* What weft-kube is told of nodeSelector, where that is not its default. */}}
{{- define "weft.selector" -}}
{{- $labels := list -}}
{{- range $key, $value := .Values.nodeSelector -}}
{{- $labels = append $labels (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- $labels = join "," $labels -}}
{{- if ne $labels "kubernetes.io/os=linux" -}}
- name: WEFT_KUBE_NODE_SELECTOR
  value: {{ $labels | quote }}
{{- end -}}
{{- end -}}
