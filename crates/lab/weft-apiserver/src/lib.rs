//! Kubernetes REST over weft-store.
