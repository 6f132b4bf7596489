//! Pods in network namespaces, and the controllers that make them: a Kubernetes-shaped lab on one Linux machine, without
//! root, without containers, without images.
//!
//! Reading order. Outside the namespaces: [`host`] (one lab at a time, ports of the machine), [`init`] (how the lab gets its
//! namespaces, and why nothing survives it), [`event`] (what it tells). Inside: [`lab`] (everything put together),
//! [`config`], [`manifests`] (the objects it starts with), [`admission`] (what is done to objects; `families`: of a service's addresses),
//! [`controllers`], [`making`] (their pods), [`pods`], [`network`], [`outside`] (hosts beyond the cluster), and under them [`sandbox`] (namespaces, file trees, processes).
//!
//! Not here: the API server (`weft-apiserver`), the redirection rules (`weft-capture`), and the commands `weft up` and
//! `weft down`, which talk to the user.

pub mod admission;
pub mod config;
pub mod controllers;
pub mod event;
mod families;
pub mod host;
pub mod init;
pub mod kept;
pub mod lab;
pub mod making;
pub mod manifests;
pub mod network;
pub mod node_ports;
pub mod outside;
pub mod pods;
pub mod sandbox;
