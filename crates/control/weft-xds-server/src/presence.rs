//! Who is told of proxies that come and go, and of what they say of their workloads' health. What follows from it (workload
//! entries that register themselves) is the observer's affair.

use crate::auth::{BoxFuture, Caller};
use std::sync::Arc;
use tonic::Status;
use weft_model::MeshSnapshot;
use weft_xds_gen::ProxyView;

/// A proxy with an open stream.
#[derive(Debug, Clone)]
pub struct Present {
    /// Tells this stream from all others of the process.
    pub id: u64,
    /// What it says of itself.
    pub view: ProxyView,
    /// Who it is, as proven.
    pub caller: Caller,
}

/// Is told of streams.
pub trait Observer: Send + Sync + 'static {
    /// A proxy came; it gets its configuration after this.
    ///
    /// # Errors
    /// Why the stream is refused.
    fn connected<'a>(&'a self, proxy: &'a Present, snapshot: &'a MeshSnapshot) -> BoxFuture<'a, Result<(), Status>>;

    /// Its workload is well (`None`), or what is wrong.
    fn health(&self, proxy: &Present, wrong: Option<String>);

    /// Its stream ended.
    fn disconnected(&self, proxy: &Present);
}

/// Tells the observer of the end, however that happens.
pub(crate) struct Watched {
    observer: Arc<dyn Observer>,
    proxy: Present,
}

impl Watched {
    /// Tells of a proxy that came.
    pub async fn begin(
        observer: Option<&Arc<dyn Observer>>,
        proxy: Present,
        snapshot: &MeshSnapshot,
    ) -> Result<Option<Self>, Status> {
        let Some(observer) = observer else { return Ok(None) };
        observer.connected(&proxy, snapshot).await?;
        Ok(Some(Self { observer: observer.clone(), proxy }))
    }

    /// Passes on what the proxy says.
    pub fn health(&self, wrong: Option<String>) {
        self.observer.health(&self.proxy, wrong);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.observer.disconnected(&self.proxy);
    }
}
