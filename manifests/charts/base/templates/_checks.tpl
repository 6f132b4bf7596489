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
