{{- define "name" -}}
{{- .Values.name | default .Release.Name -}}
{{- end -}}

{{- define "account" -}}
{{- .Values.serviceAccount.name | default (ternary (include "name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "labels" -}}
{{- $name := include "name" . -}}
{{- mergeOverwrite (dict "app" $name "istio" (trimPrefix "istio-" $name)) (deepCopy .Values.labels) | toYaml -}}
{{- end -}}

{{/* Refuses names that mean nothing here: they are mistyped more often than not. */}}
{{- define "check" -}}
{{- $top := list "name" "revision" "replicaCount" "serviceAccount" "rbac" "labels" "podAnnotations" "service" "resources" "autoscaling" "env" "nodeSelector" "affinity" "tolerations" "imagePullSecrets" "global" "meshConfig" -}}
{{- range $name, $value := .Values -}}
{{- if not (has $name $top) -}}
{{- fail (printf "chart gateway has no value %s; the names at the top are %s" $name (join ", " (sortAlpha $top))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
