{{/* Refuses names that mean nothing here: they are mistyped more often than not. */}}
{{- define "base.check" -}}
{{- $known := list "defaultRevision" "global" "base" "revision" "profile" -}}
{{- range $name, $value := .Values -}}
{{- if not (has $name $known) -}}
{{- fail (printf "chart base has no value %q; the names at the top are %s" $name (join ", " $known)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.base -}}
{{- if not (has $name (list "validationURL" "validationCABundle" "validationFailurePolicy" "enableCRDTemplates" "enableIstioConfigCRDs")) -}}
{{- fail (printf "chart base has no value base.%s; there are validationURL, validationCABundle and validationFailurePolicy" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Revision that checks what names none. Once the control plane without a revision is gone and one other is left, that one
does: an upgrade need not say so. Who names another revision than the default one is believed. */}}
{{- define "base.revision" -}}
{{- $wanted := .Values.defaultRevision | default "" -}}
{{- $left := list -}}
{{- if eq $wanted "default" -}}
{{- range $service := (lookup "v1" "Service" .Values.global.istioNamespace "").items | default list -}}
{{- $labels := $service.metadata.labels | default dict -}}
{{- if eq ($labels.app | default "") "istiod" -}}
{{- $left = append $left (index $labels "istio.io/rev" | default "default") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq (len $left) 1) (not (has "default" $left)) }}{{ first $left }}{{ else }}{{ $wanted }}{{ end -}}
{{- end -}}
