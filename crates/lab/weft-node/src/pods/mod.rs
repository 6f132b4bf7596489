//! Pods: what the kubelet is in a cluster.
//!
//! Reading order: [`node`] (takes pods over), [`worker`] (one pod), [`container`] (one container over its runs), [`state`]
//! (what is known, and the pod's status), [`proxy`] (what a lab adds to it), [`images`], [`env`], [`volumes`], [`probe`], [`events`], [`backend`] (logs, commands, ports).

pub mod backend;
pub mod container;
pub mod env;
pub mod events;
pub mod images;
pub mod node;
pub mod probe;
pub mod proxy;
pub mod state;
mod usage;
pub mod volumes;
pub mod worker;

pub use images::ImageTable;
pub use node::Node;
