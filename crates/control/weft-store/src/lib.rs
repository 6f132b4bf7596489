//! Kubernetes-shaped object store: the memory backend that the lab serves, and the client side of any Kubernetes API.
//!
//! Reading order: [`selector`] (label and field selectors), [`memory`] (objects, revisions, create/update/delete/list),
//! [`watch`] (events from a revision on), [`durable`] (objects in a file), [`merge`] (three-way and strategic merges),
//! [`error`]; then the other side of the
//! wire: [`client`] (`ApiClient`, the only user of a Kubernetes client library), [`cache`] (a local copy of some kinds),
//! [`source`] (what keeps that copy equal to the server's state: `follow` for one kind, `definitions` for its version) and
//! [`lease`] (which of several replicas may write).

pub mod cache;
pub mod client;
mod definitions;
pub mod durable;
pub mod error;
mod follow;
pub mod lease;
pub mod memory;
pub mod merge;
pub mod selector;
pub mod source;
pub mod watch;

pub use cache::{Cache, Changes};
pub use client::{ApiClient, ClientError};
pub use definitions::is_built_in;
pub use durable::{Durable, DurableError};
pub use error::StoreError;
pub use lease::{Leadership, LeaseOptions, while_leader};
pub use memory::{
    DeleteOptions, Deleted, ListQuery, MemoryStore, ObjectList, Preconditions, Propagation, StoreOptions,
};
pub use selector::{FieldSelector, LabelSelector, SelectorError};
pub use source::{KubeSource, SourceOptions, SourceState};
pub use watch::{EventType, Watch, WatchEvent, WatchQuery};
