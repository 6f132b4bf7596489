//! A protocol in which the server speaks first: a greeting, then each line comes back.

use crate::serve;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

pub async fn run(listen: serve::Listen) -> anyhow::Result<()> {
    let port = listen.port.unwrap_or(3333);
    let listener = serve::bind(port).await?;
    println!("listening on port {port}");
    let accept = async {
        loop {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                if let Err(error) = greet(stream).await {
                    println!("{peer}: {error}");
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

async fn greet(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"220 greeter ready\r\n").await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.map(drop)
}
