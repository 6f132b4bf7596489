//! Isolation of one pod: namespaces, file tree, processes and their output. Knows nothing of Kubernetes objects.
//!
//! Reading order: [`netns`], [`rootfs`], [`process`], [`logs`], [`sys`] (the system calls underneath).

pub mod logs;
pub mod netns;
pub mod process;
pub mod rootfs;
pub mod sys;

pub use logs::{ContainerLog, LogLine};
pub use netns::NetNs;
pub use process::{Process, ProcessSpec, Sandbox, exit_code};
pub use rootfs::{Bind, CA_BUNDLE, OWN_PROGRAMS, RootFs};
