//! helloworld: says its version and instance, so that a journey can see who answered.

use crate::serve;
use axum::Router;
use axum::routing::get;
use clap::Args as ClapArgs;

#[derive(ClapArgs)]
pub struct Args {
    /// Version to report
    #[arg(long, env = "SERVICE_VERSION", default_value = "v1")]
    version: String,
    #[command(flatten)]
    listen: serve::Listen,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let instance = std::env::var("HOSTNAME").unwrap_or_else(|_| "unknown".into());
    let text = format!("Hello version: {}, instance: {instance}\n", args.version);
    let router = Router::new()
        .route("/hello", get(move || async move { text }))
        .route("/health", get(|| async { "Helloworld is healthy" }));
    serve::http(args.listen, 5000, router).await
}
