//! What a worker knows of its clusters, for the admin port and the command line.

use crate::cluster::LiveCluster;
use crate::hosts::Host;
use weft_core::Strng;
use weft_proxy_config::EndpointHealth;

/// One cluster in one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Name.
    pub name: Strng,
    /// Endpoints.
    pub hosts: Vec<HostStatus>,
}

/// One endpoint in one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Address, `ip:port`.
    pub address: Strng,
    /// Host name, when it has one.
    pub hostname: Option<Strng>,
    /// Locality.
    pub locality: Strng,
    /// Priority.
    pub priority: u32,
    /// Weight.
    pub weight: u32,
    /// Healthy as the control plane says.
    pub healthy: bool,
    /// Left out after errors.
    pub ejected: bool,
    /// Active checks have not found it well.
    pub fails_checks: bool,
    /// Requests under way.
    pub rq_active: u64,
    /// Requests sent.
    pub rq_total: u64,
    /// Requests answered well.
    pub rq_success: u64,
    /// Requests answered with an error, or not at all.
    pub rq_error: u64,
    /// Connections open.
    pub cx_active: u64,
    /// Connections made.
    pub cx_total: u64,
    /// Connections that failed.
    pub cx_connect_fail: u64,
}

impl ClusterStatus {
    pub(crate) fn of(cluster: &LiveCluster) -> Self {
        let mut hosts: Vec<HostStatus> = cluster.hosts.borrow().all.iter().map(|h| HostStatus::of(h)).collect();
        hosts.extend(cluster.destinations.borrow().values().map(|h| HostStatus::of(h)));
        Self { name: cluster.config.name.clone(), hosts }
    }

    /// Adds what another worker knows of the same cluster.
    pub fn add(&mut self, other: &ClusterStatus) {
        for host in &other.hosts {
            match self.hosts.iter_mut().find(|h| h.address == host.address) {
                Some(known) => known.add(host),
                None => self.hosts.push(host.clone()),
            }
        }
    }
}

impl HostStatus {
    fn of(host: &Host) -> Self {
        Self {
            address: host.name.clone(),
            hostname: host.hostname.clone(),
            locality: host.locality.clone(),
            priority: host.priority,
            weight: host.weight.get(),
            healthy: host.health.get() == EndpointHealth::Healthy,
            ejected: host.outlier.is_ejected(),
            fails_checks: host.fails_checks(),
            rq_active: u64::from(host.active.get()),
            rq_total: host.counts.rq_total.get(),
            rq_success: host.counts.rq_success.get(),
            rq_error: host.counts.rq_error.get(),
            cx_active: host.counts.cx_active.get(),
            cx_total: host.counts.cx_total.get(),
            cx_connect_fail: host.counts.cx_connect_fail.get(),
        }
    }

    fn add(&mut self, other: &HostStatus) {
        self.ejected |= other.ejected;
        self.fails_checks |= other.fails_checks;
        self.rq_active += other.rq_active;
        self.rq_total += other.rq_total;
        self.rq_success += other.rq_success;
        self.rq_error += other.rq_error;
        self.cx_active += other.cx_active;
        self.cx_total += other.cx_total;
        self.cx_connect_fail += other.cx_connect_fail;
    }
}
