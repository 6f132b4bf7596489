//! tcp-echo: answers each line with a prefix and the line.

use crate::serve;
use anyhow::Context as _;
use clap::Args as ClapArgs;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Longest line; a client that sends more without a newline is cut off.
const MAX_LINE: u64 = 1 << 20;

#[derive(ClapArgs)]
pub struct Args {
    /// Ports, separated by commas
    #[arg(default_value = "9000")]
    ports: String,
    /// What each answer begins with
    #[arg(default_value = "hello")]
    prefix: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    for port in args.ports.split(',') {
        let port: u16 = port.trim().parse().with_context(|| format!("{port:?} is not a port"))?;
        let listener = serve::bind(port).await?;
        println!("listening on port {port}, prefix: {}", args.prefix);
        let prefix = args.prefix.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let prefix = prefix.clone();
                tokio::spawn(async move {
                    if let Err(error) = echo(stream, &prefix).await {
                        println!("{peer}: {error}");
                    }
                });
            }
        });
    }
    weft_runtime::signal::stop().await?;
    Ok(())
}

async fn echo(stream: TcpStream, prefix: &str) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        line.push(b' ');
        if (&mut read).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        write.write_all(&line).await?;
        println!("{}", String::from_utf8_lossy(&line).trim_end());
    }
}
