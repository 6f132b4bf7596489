//! Listeners of sidecars.
//!
//! Reading order: [`chain`] (filter chains and what they match), [`hcm`] (HTTP), [`tcp`] (TCP), [`inspect`] (listener
//! filters); outbound: [`outbound`] (one listener for each address and port that services have), [`l4`] (TCP and TLS rules of
//! virtual services), [`catch_all`] (everything else); inbound: [`ports`] (which ports the workload serves), [`inbound`].

pub(crate) mod catch_all;
pub(crate) mod chain;
pub(crate) mod hcm;
pub(crate) mod inbound;
pub(crate) mod inspect;
pub(crate) mod l4;
pub(crate) mod outbound;
pub(crate) mod ports;
pub(crate) mod tcp;

use crate::observe::Observability;
use crate::scope::View;

/// What listeners are made of: the view of the scope, and what the workload reports.
#[derive(Clone, Copy)]
pub(crate) struct Maker<'a> {
    pub view: View<'a>,
    pub observe: &'a Observability,
}
