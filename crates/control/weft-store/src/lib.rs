//! Kubernetes-shaped object store with memory and cluster backends.
