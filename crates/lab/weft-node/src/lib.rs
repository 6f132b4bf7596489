//! Pods in network namespaces, and the controllers that make them.
pub mod controllers;
pub mod init;
pub mod network;
pub mod sandbox;
