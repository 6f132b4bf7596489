#!/bin/sh
# Prints a helloworld Deployment (and its Service) of a version: gen-helloworld.sh --version VERSION [--locality REGION.ZONE]
# Locality: the pod label istio-locality, for a lab whose nodes are one machine.
set -eu
version=v1 locality=
while [ $# -gt 0 ]; do
  case "$1" in
    --version) version=$2; shift 2 ;;
    --locality) locality=$2; shift 2 ;;
    *) echo "unknown option $1; there are --version and --locality" >&2; exit 1 ;;
  esac
done
cat <<YAML
apiVersion: v1
kind: Service
metadata:
  name: helloworld
  labels:
    app: helloworld
    service: helloworld
spec:
  ports:
  - port: 5000
    name: http
  selector:
    app: helloworld
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: helloworld-$version
  labels:
    app: helloworld
    version: $version
spec:
  replicas: 1
  selector:
    matchLabels:
      app: helloworld
      version: $version
  template:
    metadata:
      annotations:
        # A drained proxy is soon seen as not ready.
        readiness.status.sidecar.istio.io/periodSeconds: "1"
        readiness.status.sidecar.istio.io/failureThreshold: "2"
      labels:
        app: helloworld
        version: $version
${locality:+        istio-locality: $locality
}    spec:
      containers:
      - name: helloworld
        env:
        - name: SERVICE_VERSION
          value: $version
        image: docker.io/istio/examples-helloworld
        imagePullPolicy: IfNotPresent
        ports:
        - containerPort: 5000
YAML
