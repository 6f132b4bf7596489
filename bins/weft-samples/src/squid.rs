//! squid: a proxy that tunnels by CONNECT to port 443, and writes its access log where and as the original does. Of
//! `/etc/squid/squid.conf` it reads `http_port`.

use crate::serve;
use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Largest head of a request.
const MAX_HEAD: u64 = 16 << 10;
/// Time for a request's head, and for the connection to its destination.
const LIMIT: Duration = Duration::from_secs(10);
/// The only port that tunnels may lead to.
const TLS_PORT: u16 = 443;

#[derive(ClapArgs)]
pub struct Args {
    /// Settings
    #[arg(long, default_value = "/etc/squid/squid.conf")]
    config: PathBuf,
    /// Access log
    #[arg(long, default_value = "/var/log/squid/access.log")]
    log: PathBuf,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = std::fs::read_to_string(&args.config).with_context(|| args.config.display().to_string())?;
    let port = config.lines().find_map(|line| line.trim().strip_prefix("http_port")?.trim().parse().ok());
    let listener = serve::bind(port.unwrap_or(3128)).await?;
    if let Some(folder) = args.log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    println!("listening on {}", listener.local_addr()?);
    let accept = async {
        loop {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let log = args.log.clone();
            tokio::spawn(async move {
                if let Err(error) = tunnel(stream, peer, &log).await {
                    println!("{peer}: {error:#}");
                }
            });
        }
    };
    tokio::select! {
        () = accept => {}
        _ = weft_runtime::signal::stop() => {}
    }
    Ok(())
}

async fn tunnel(stream: TcpStream, peer: SocketAddr, log: &std::path::Path) -> anyhow::Result<()> {
    let mut client = BufReader::new(stream);
    let target = match tokio::time::timeout(LIMIT, asked(&mut client)).await? {
        Ok(target) => target,
        Err(error) => {
            client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
            return Err(error);
        }
    };
    let server = tokio::time::timeout(LIMIT, TcpStream::connect(&target)).await;
    let mut server = match server {
        Ok(Ok(server)) => server,
        _ => {
            client
                .write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await?;
            bail!("no connection to {target}");
        }
    };
    let address = server.peer_addr()?.ip();
    let begun = jiff::Timestamp::now();
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    let (_, down) = tokio::io::copy_bidirectional(&mut client, &mut server).await.unwrap_or_default();
    let took = jiff::Timestamp::now().as_millisecond() - begun.as_millisecond();
    let (seconds, millis) = (begun.as_second(), begun.as_millisecond().rem_euclid(1000));
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log)?;
    let client = peer.ip().to_canonical();
    let line = format!(
        "{seconds}.{millis:03} {took:6} {client} TCP_TUNNEL/200 {down} CONNECT {target} - HIER_DIRECT/{address} -\n"
    );
    file.write_all(line.as_bytes())?;
    Ok(())
}

/// Reads the request's head: host and port of a CONNECT to the TLS port.
async fn asked(client: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut head = client.take(MAX_HEAD);
    let mut first = String::new();
    head.read_line(&mut first).await?;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line).await? == 0 {
            bail!("the request has no end");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let target = first.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.with_context(|| format!("{:?} is no CONNECT", first.trim()))?;
    let port = target.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    if port != Some(TLS_PORT) {
        bail!("CONNECT to {target}: only port {TLS_PORT} is permitted");
    }
    Ok(target.to_string())
}
