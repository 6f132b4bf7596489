//! From a MeshSnapshot and a proxy node to xDS resources. Pure.
