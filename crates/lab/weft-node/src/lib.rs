//! Pods in network namespaces, and the controllers that make them.
pub mod config;
pub mod controllers;
pub mod init;
pub mod network;
pub mod pods;
pub mod sandbox;
