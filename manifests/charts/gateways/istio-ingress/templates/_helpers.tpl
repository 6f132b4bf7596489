{{/* Its settings. */}}
{{- define "gateway" -}}
{{- index .Values.gateways "istio-ingressgateway" | toYaml -}}
{{- end -}}

{{/* Whether an autoscaler says how many replicas there are: who gives a number does not want somebody else to. */}}
{{- define "autoscaled" -}}
{{- $gateway := include "gateway" . | fromYaml -}}
{{- if hasKey $gateway "autoscaleEnabled" }}{{ if $gateway.autoscaleEnabled }}true{{ end }}{{ else if not (hasKey $gateway "replicaCount") }}true{{ end -}}
{{- end -}}

{{/* Refuses names that mean nothing here: they are mistyped more often than not. */}}
{{- define "check" -}}
{{- $top := list "gateways" "revision" "global" "meshConfig" "ownerName" "profile" -}}
{{- range $name, $value := .Values -}}
{{- if not (has $name $top) -}}
{{- fail (printf "chart istio-ingress has no value %s; the names at the top are %s" $name (join ", " $top)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.gateways -}}
{{- if ne $name "istio-ingressgateway" -}}
{{- fail (printf "chart istio-ingress has no gateway %s; its settings are under gateways.istio-ingressgateway" $name) -}}
{{- end -}}
{{- end -}}
{{- $own := list "name" "labels" "type" "ports" "resources" "replicaCount" "autoscaleEnabled" "autoscaleMin" "autoscaleMax" "cpu" "nodeSelector" "affinity" "tolerations" "podAnnotations" "serviceAnnotations" "loadBalancerIP" "loadBalancerSourceRanges" "externalTrafficPolicy" "env" "injectionTemplate" "rollingMaxSurge" "rollingMaxUnavailable" "debug" -}}
{{- range $name, $value := include "gateway" . | fromYaml -}}
{{- if not (has $name $own) -}}
{{- fail (printf "chart istio-ingress has no value gateways.istio-ingressgateway.%s; there are %s" $name (join ", " (sortAlpha $own))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
