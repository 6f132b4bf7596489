//! Keeps the configuration's identity at what the SVID manager has, and readiness at what it says.

use crate::plane::Plane;
use weft_runtime::ReadyBlock;
use weft_sds::{SvidManager, SvidStatus};

/// Follows the manager for as long as the process lives. Readiness waits for the first identity; one that is lost later
/// fails connections, not the pod: the application may be reachable in plain text all the same.
pub async fn follow(manager: &SvidManager, plane: Plane, block: ReadyBlock) {
    let mut block = Some(block);
    let mut secrets = manager.secrets();
    let mut status = manager.status();
    loop {
        let current = secrets.borrow_and_update().clone();
        if current.is_some() {
            plane.set_identity(current.as_deref());
            block = None;
        } else if block.is_none() {
            plane.set_identity(None);
        }
        explain(block.as_ref(), &status.borrow_and_update());
        tokio::select! {
            changed = secrets.changed() => if changed.is_err() { return },
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

fn explain(block: Option<&ReadyBlock>, status: &SvidStatus) {
    if let (Some(block), SvidStatus::Waiting(reason)) = (block, status) {
        block.set_reason(format!("an identity ({reason})"));
    }
}
