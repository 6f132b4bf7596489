//! Which of several replicas writes to the API server: the one that holds the Lease. All of them serve proxies.

use crate::settings::Settings;
use std::time::SystemTime;
use tokio::sync::watch;
use weft_store::{ApiClient, Leadership, LeaseOptions};

/// Begins to compete for the Lease of this revision.
pub(crate) fn compete(client: &ApiClient, settings: &Settings) -> Leadership {
    Leadership::start(
        client,
        LeaseOptions {
            namespace: settings.namespace.clone(),
            name: lease_name(&settings.revision),
            identity: identity(&settings.pod_name),
            duration: settings.lease_duration,
        },
    )
}

fn lease_name(revision: &str) -> String {
    match revision {
        "" | "default" => "weftd-leader".into(),
        revision => format!("weftd-leader-{revision}"),
    }
}

/// The pod's name, and what tells this process from one before it of the same name.
fn identity(pod_name: &str) -> String {
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{pod_name}_{:x}{:x}", started, std::process::id())
}

/// Runs `work` whenever this process is leader, and drops it when it no longer is. Ends when `work` ends by itself.
pub(crate) async fn while_leader<F: Future<Output = ()>>(mut leader: watch::Receiver<bool>, work: impl Fn() -> F) {
    loop {
        if leader.wait_for(|is| *is).await.is_err() {
            return;
        }
        tokio::select! {
            () = work() => return,
            _ = leader.wait_for(|is| !*is) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn works_only_while_leader() {
        assert_eq!((lease_name("").as_str(), lease_name("canary").as_str()), ("weftd-leader", "weftd-leader-canary"));
        let (sender, leader) = watch::channel(false);
        let (begun, mut begins) = watch::channel(0);
        let running = Arc::new(AtomicUsize::new(0));
        struct Count(Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let (now, begun) = (running.clone(), Arc::new(begun));
        let task = tokio::spawn(while_leader(leader, move || {
            let (now, begun) = (now.clone(), begun.clone());
            async move {
                now.fetch_add(1, Ordering::SeqCst);
                let _count = Count(now);
                begun.send_modify(|n| *n += 1);
                std::future::pending::<()>().await;
            }
        }));
        tokio::task::yield_now().await;
        assert_eq!(running.load(Ordering::SeqCst), 0, "a follower does nothing");
        for round in 1..=2 {
            sender.send_replace(true);
            begins.wait_for(|n| *n == round).await.unwrap();
            assert_eq!(running.load(Ordering::SeqCst), 1);
            sender.send_replace(false);
            while running.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(sender);
        task.await.unwrap();
    }
}
