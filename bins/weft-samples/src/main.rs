//! The sample workloads, as one multi-call program: `weft-samples NAME [ARGS]`.
//!
//! They behave as the documents of the mesh's users describe, down to the time-outs that some journeys exist to find. They
//! know nothing of the mesh: trace headers are passed on, and that is all.

mod bookinfo;
mod client;
mod ext_authz;
mod fortio;
mod greeter;
mod grpc_echo;
mod helloworld;
mod httpbin;
mod serve;
mod squid;
mod tcp_echo;
mod website;
mod websocket;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "weft-samples", version, about = "Sample workloads of the mesh, in one program")]
struct Cli {
    #[command(subcommand)]
    sample: Sample,
}

#[derive(Subcommand)]
enum Sample {
    /// Bookinfo: the product page
    Productpage(serve::Listen),
    /// Bookinfo: book details
    Details(serve::Listen),
    /// Bookinfo: reviews
    Reviews(bookinfo::reviews::Args),
    /// Bookinfo: ratings
    Ratings(serve::Listen),
    /// An HTTP request and response service
    Httpbin(httpbin::Args),
    /// httpbin under the command line of its usual image
    Gunicorn(httpbin::GunicornArgs),
    /// Says its version and instance
    Helloworld(helloworld::Args),
    /// A site of the world outside, over HTTP and HTTPS
    Website(website::Args),
    /// A proxy that tunnels by CONNECT
    Squid(squid::Args),
    /// An external authorizer, over HTTP and gRPC
    ExtAuthz(ext_authz::Args),
    /// Answers each line with a prefix and the line
    TcpEcho(tcp_echo::Args),
    /// WebSockets: sends back what it gets
    Websockets(serve::Listen),
    /// A client of WebSockets
    Ws(websocket::ClientArgs),
    /// gRPC: sends messages back
    GrpcEcho(serve::Listen),
    /// A client of grpc-echo
    Grpc(grpc_echo::ClientArgs),
    /// Speaks first, then sends back what it gets
    Greeter(serve::Listen),
    /// Shows one answer, or makes load
    Fortio(fortio::Args),
    /// Waits for ever: a pod to run commands in
    Sleep {
        /// Ignored: `infinity`, `3650d`
        duration: Option<String>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Cli::parse_from(arguments()).sample {
        Sample::Productpage(listen) => serve::http(listen, 9080, bookinfo::productpage::router()).await,
        Sample::Details(listen) => serve::http(listen, 9080, bookinfo::details::router()).await,
        Sample::Reviews(args) => bookinfo::reviews::run(args).await,
        Sample::Ratings(listen) => serve::http(listen, 9080, bookinfo::ratings::router()).await,
        Sample::Httpbin(args) => httpbin::run(args).await,
        Sample::Gunicorn(args) => httpbin::run(args.into()).await,
        Sample::Helloworld(args) => helloworld::run(args).await,
        Sample::Website(args) => website::run(args).await,
        Sample::Squid(args) => squid::run(args).await,
        Sample::ExtAuthz(args) => ext_authz::run(args).await,
        Sample::TcpEcho(args) => tcp_echo::run(args).await,
        Sample::Websockets(listen) => websocket::run(listen).await,
        Sample::Ws(args) => websocket::client(args).await,
        Sample::GrpcEcho(listen) => grpc_echo::run(listen).await,
        Sample::Grpc(args) => grpc_echo::client(args).await,
        Sample::Greeter(listen) => greeter::run(listen).await,
        Sample::Fortio(args) => fortio::run(args).await,
        Sample::Sleep { .. } => {
            weft_runtime::signal::stop().await?;
            Ok(())
        }
    }
}

/// The command line; called under the name of a sample, it is that sample.
fn arguments() -> Vec<String> {
    let mut arguments: Vec<String> = std::env::args().collect();
    let own = arguments.first().and_then(|path| path.rsplit('/').next()).unwrap_or_default().to_string();
    if own == "fortio" {
        arguments.insert(1, own);
    }
    if arguments.get(1).is_some_and(|sample| sample == "fortio") {
        arguments = arguments.into_iter().map(fortio::with_two_dashes).collect();
    }
    arguments
}
