// Command kube-apiserver is the Kubernetes API server, built from its published Go modules for Weft's tests.
//
// It owns nothing but the choice of version (go.mod) and the entry point; flags are the API server's own.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
