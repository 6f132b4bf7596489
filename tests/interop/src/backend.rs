//! A plain HTTP/1.1 server that says who it is, and the least client there is.

use crate::LIMIT;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

/// A request as a backend saw it: its lines up to the empty one, names of headers in lower case.
pub type Seen = Vec<String>;

/// A server that answers every request with its name. Ends with the test.
pub struct Backend {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// What it was asked.
    pub requests: Receiver<Seen>,
}

impl Backend {
    /// Starts one; it answers the body `name`.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut writer = stream;
                    while let Some(seen) = head(&mut reader) {
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                        let _ = sender.send(seen);
                        if writer.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, requests }
    }
}

/// Reads one request without a body.
fn head(reader: &mut impl BufRead) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Some(lines);
        }
        lines.push(match line.split_once(": ") {
            Some((name, value)) if !lines.is_empty() => format!("{}: {value}", name.to_ascii_lowercase()),
            _ => line.to_string(),
        });
    }
}

/// Status and body of a GET, on a connection of its own.
///
/// # Errors
/// When nobody answers.
pub fn get(port: u16, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<(u16, String), String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n");
        stream.write_all(head.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = exchange().map_err(|e| e.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| format!("no status: {head}"))?;
    Ok((status, body.to_string()))
}
