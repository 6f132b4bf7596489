//! The DNS server beside the workload: answers for the mesh's names from the name table, and passes the rest to the
//! resolvers of `/etc/resolv.conf`. Owns no cache: the table is the mesh's, and the resolvers have caches of their own.
//!
//! Reading order: [`table`] (name → addresses), [`resolv`] (the resolvers), [`answer`] (a query → an answer, pure),
//! [`forward`] (asking a resolver), [`server`] (sockets).

pub mod answer;
pub mod forward;
pub mod resolv;
pub mod server;
pub mod table;

pub use resolv::ResolvConf;
pub use server::{DnsServer, DnsStats};
pub use table::NameTable;
