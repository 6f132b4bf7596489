{{/* `NAME`, or `NAME-REVISION`. Called with a list: the context, the name. */}}
{{- define "named" -}}
{{- $revision := (index . 0).Values.revision | default "" -}}
{{- index . 1 }}{{ if and $revision (ne $revision "default") }}-{{ $revision }}{{ end -}}
{{- end -}}

{{/* Value of the label istio.io/rev. */}}
{{- define "revision" -}}
{{- .Values.revision | default "default" -}}
{{- end -}}

{{- define "labels" -}}
app: istiod
istio.io/rev: {{ include "revision" . | quote }}
app.kubernetes.io/name: istiod
app.kubernetes.io/part-of: weft
{{- end -}}

{{- define "selector" -}}
app: istiod
istio.io/rev: {{ include "revision" . | quote }}
{{- end -}}

{{/* Name of the injector's webhook configuration. */}}
{{- define "injector" -}}
{{- include "named" (list . "istio-sidecar-injector") }}{{ if ne .Release.Namespace "istio-system" }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}

{{- define "validator" -}}
{{- include "named" (list . "istio-validator") }}-{{ .Release.Namespace -}}
{{- end -}}

{{- define "pilot.names" -}}
autoscaleEnabled autoscaleMin autoscaleMax autoscaleBehavior replicaCount rollingMaxSurge rollingMaxUnavailable hub tag image traceSampling resources cni env cpu crlConfigMapName keepaliveMaxServerConnectionAge nodeSelector affinity tolerations podAnnotations podLabels serviceAnnotations serviceAccountAnnotations extraContainerArgs volumes volumeMounts
{{- end -}}

{{/* What is set of the control plane: under pilot, or at the top as newer versions have it. YAML. */}}
{{- define "pilot" -}}
{{- $own := pick .Values "autoscaleEnabled" "autoscaleMin" "autoscaleMax" "autoscaleBehavior" "replicaCount" "rollingMaxSurge" "rollingMaxUnavailable" "hub" "tag" "image" "traceSampling" "resources" "cni" "env" "cpu" "crlConfigMapName" "nodeSelector" "affinity" "tolerations" "podAnnotations" "podLabels" "serviceAnnotations" "serviceAccountAnnotations" "extraContainerArgs" "keepaliveMaxServerConnectionAge" "volumes" "volumeMounts" -}}
{{- $all := mergeOverwrite (deepCopy (.Values.pilot | default dict)) (deepCopy $own) -}}
{{- if (.Values.istio_cni | default dict).enabled -}}
{{- $_ := set $all "cni" (mergeOverwrite ($all.cni | default dict) (dict "enabled" true)) -}}
{{- end -}}
{{- $all | toYaml -}}
{{- end -}}

{{/* Whether an autoscaler says how many replicas there are: who gives a number does not want somebody else to. */}}
{{- define "autoscaled" -}}
{{- $pilot := include "pilot" . | fromYaml -}}
{{- if hasKey $pilot "autoscaleEnabled" }}{{ if $pilot.autoscaleEnabled }}true{{ end }}{{ else if not (hasKey $pilot "replicaCount") }}true{{ end -}}
{{- end -}}

{{- define "list.names" -}}
{{- $known := index . 0 -}}{{- $of := index . 1 -}}
{{- range $name, $value := index . 2 -}}
{{- if not (has $name $known) -}}
{{- fail (printf "chart istio-discovery has no value %s%s; %s are %s" $of $name (ternary "the names at the top" (printf "the names of %s" (trimSuffix "." $of)) (eq $of "")) (join ", " (sortAlpha $known))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses what is not known, and what cannot be. */}}
{{- define "check" -}}
{{- $pilot := splitList " " (include "pilot.names" .) -}}
{{- $top := concat $pilot (list "revision" "revisionTags" "defaultRevision" "meshConfig" "pilot" "gateways" "sidecarInjectorWebhook" "global" "base" "telemetry" "istio_cni" "profile" "ownerName") -}}
{{- include "list.names" (list $top "" .Values) -}}
{{- include "list.names" (list $pilot "pilot." (.Values.pilot | default dict)) -}}
{{- $global := list "istioNamespace" "hub" "tag" "variant" "imagePullPolicy" "imagePullSecrets" "logAsJson" "logging" "caAddress" "meshID" "meshNetworks" "mountMtlsCerts" "multiCluster" "network" "pilotCertProvider" "sds" "nativeNftables" "trustBundleName" "configValidation" "proxy" "proxy_init" "jwtPolicy" "certSigners" "priorityClassName" "defaultPodDisruptionBudget" "defaultResources" "defaultNodeSelector" "defaultTolerations" "monitoringPort" "platform" -}}
{{- include "list.names" (list $global "global." .Values.global) -}}
{{- with .Values.revision -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .) -}}
{{- fail (printf "revision %q: use lower-case letters, digits and dashes, such as 1-0-0 or canary" .) -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.global.jwtPolicy | default "third-party-jwt" -}}
{{- if ne $policy "third-party-jwt" -}}
{{- fail (printf "global.jwtPolicy is %s: workloads prove themselves by tokens made for the mesh alone (third-party-jwt), which every Kubernetes since 1.21 has; leave it out" $policy) -}}
{{- end -}}
{{- end -}}

{{/* Port of metrics and debug endpoints. */}}
{{- define "monitoring" -}}
{{- .Values.global.monitoringPort | default 15014 | int -}}
{{- end -}}

{{/* Istio's scope:level,… as a filter of weftd. */}}
{{- define "log.level" -}}
{{- $scopes := dict "ads" "weft_xds_server" "ca" "weft_ca" "default" "" "all" "" "model" "weft_model" "validation" "weftd::webhook" -}}
{{- $levels := dict "none" "off" "fatal" "error" "error" "error" "warn" "warn" "info" "info" "debug" "debug" -}}
{{- $all := "info" -}}{{- $parts := list -}}
{{- range $part := compact (splitList "," .Values.global.logging.level) -}}
{{- $pair := splitList ":" (ternary $part (printf "default:%s" $part) (contains ":" $part)) -}}
{{- $scope := trim (first $pair) -}}{{- $level := last $pair -}}
{{- if not (hasKey $levels $level) -}}
{{- fail (printf "global.logging.level: %q is no level; there are none, error, warn, info, debug" $level) -}}
{{- else if not (hasKey $scopes $scope) -}}
{{- fail (printf "global.logging.level: %q is no scope; there are %s" $scope (join ", " (sortAlpha (keys $scopes)))) -}}
{{- else if get $scopes $scope -}}
{{- $parts = append $parts (printf "%s=%s" (get $scopes $scope) (get $levels $level)) -}}
{{- else -}}
{{- $all = get $levels $level -}}
{{- end -}}
{{- end -}}
{{- join "," (prepend $parts $all) -}}
{{- end -}}

{{/* Rules of the mesh: ours, then what the user wrote. YAML. */}}
{{- define "mesh" -}}
{{- $address := printf "%s.%s.svc:15012" (include "named" (list . "istiod")) .Release.Namespace -}}
{{- $mesh := dict "trustDomain" "cluster.local" "rootNamespace" .Release.Namespace "defaultConfig" (dict "discoveryAddress" $address) -}}
{{- $pilot := include "pilot" . | fromYaml -}}
{{- if hasKey $pilot "traceSampling" -}}
{{- $_ := set $mesh.defaultConfig "tracing" (dict "sampling" (float64 $pilot.traceSampling)) -}}
{{- end -}}
{{- mergeOverwrite $mesh (deepCopy .Values.meshConfig) | toYaml -}}
{{- end -}}

{{/* One webhook of the injector up to its selectors. Called with a dict: prefix, revision, namespace, policy. */}}
{{- define "injection" -}}
- name: {{ .prefix }}sidecar-injector.istio.io
  clientConfig:
    service:
      name: istiod{{ if and .revision (ne .revision "default") }}-{{ .revision }}{{ end }}
      namespace: {{ .namespace }}
      path: /inject
      port: 443
  sideEffects: None
  rules:
  - {operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods]}
  failurePolicy: Fail
  reinvocationPolicy: {{ .policy }}
  admissionReviewVersions: [v1]
  timeoutSeconds: 10
{{- end -}}

{{/* The webhooks by which a revision, or a tag, is asked for, and those of the default. Called with a dict as "injection",
and `label`: the name that stands in istio.io/rev, `default`: whether those without revision are its own, `auto`. */}}
{{- define "injections" -}}
{{ include "injection" (merge (dict "prefix" "rev.namespace.") .) }}
  namespaceSelector:
    matchExpressions:
    - {key: istio.io/rev, operator: In, values: [{{ .label | quote }}]}
    - {key: istio-injection, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
{{ include "injection" (merge (dict "prefix" "rev.object.") .) }}
  namespaceSelector:
    matchExpressions:
    - {key: istio.io/rev, operator: DoesNotExist}
    - {key: istio-injection, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
    - {key: istio.io/rev, operator: In, values: [{{ .label | quote }}]}
{{- if .default }}
{{ include "injection" (merge (dict "prefix" "namespace.") .) }}
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: In, values: [enabled]}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
{{ include "injection" (merge (dict "prefix" "object.") .) }}
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: In, values: ["true"]}
    - {key: istio.io/rev, operator: DoesNotExist}
{{- if .auto }}
{{ include "injection" (merge (dict "prefix" "auto.") .) }}
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
    - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, kube-public, kube-node-lease, local-path-storage]}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
{{- end }}
{{- end }}
{{- end -}}
