//! Pods in network namespaces, and the controllers that make them.
