//! The record of a TCP connection: filled as facts become known, turned into log lines and metrics at the end. (A request's
//! record is its `Exchange`.)

use crate::downstream::Downstream;
use crate::log::{AccessLogs, LogFacts, LoggedUpstream};
use crate::worker::Worker;
use std::rc::Rc;
use std::time::{Instant, SystemTime};
use weft_codec::Flags;

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    worker: Rc<Worker>,
    began: Instant,
    started: SystemTime,
    pub upstream: LoggedUpstream,
    pub flags: Flags,
    details: String,
    /// Why this proxy ended it (`%CONNECTION_TERMINATION_DETAILS%`).
    pub termination: Option<String>,
    pub transport_failure: Option<String>,
    pub attempts: u32,
    pub received: u64,
    pub sent: u64,
}

impl ConnectionRecord {
    pub fn new(worker: &Rc<Worker>, logs: &AccessLogs) -> Self {
        let started = if logs.is_empty() { SystemTime::UNIX_EPOCH } else { SystemTime::now() };
        Self {
            worker: worker.clone(),
            began: Instant::now(),
            started,
            upstream: LoggedUpstream::default(),
            flags: Flags::NONE,
            details: String::new(),
            termination: None,
            transport_failure: None,
            attempts: 0,
            received: 0,
            sent: 0,
        }
    }

    /// Notes why the connection failed.
    pub fn fail(&mut self, flags: Flags, details: &str) {
        self.flags |= flags;
        if self.details.is_empty() {
            self.details = details.to_string();
        }
    }

    /// Notes why this proxy closes the connection.
    pub fn close(&mut self, flags: Flags, details: &str) {
        self.fail(flags, details);
        self.termination.get_or_insert_with(|| details.to_string());
    }

    /// Writes the log lines.
    pub fn emit(&self, downstream: &Downstream, logs: &AccessLogs) {
        if logs.is_empty() {
            return;
        }
        logs.write(&LogFacts {
            downstream,
            request: None,
            upstream: &self.upstream,
            start: self.started,
            duration: self.began.elapsed(),
            request_duration: None,
            response_duration: None,
            code: 0,
            flags: self.flags,
            details: &self.details,
            termination: self.termination.as_deref(),
            transport_failure: self.transport_failure.as_deref(),
            received: self.received,
            sent: self.sent,
            route: None,
            attempts: self.attempts,
            grpc_status: None,
            workload: &self.worker.parties.local_workload().metadata.name,
        });
    }
}
