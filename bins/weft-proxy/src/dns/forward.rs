//! Asking a resolver: the client's own bytes under an id of ours, each from a socket of its own, so that an answer can only
//! come from who was asked (RFC 5452).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

/// Time that one resolver has.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes before the question: id, flags, counts.
const HEADER: usize = 12;
/// Largest message over UDP that is taken.
const MAX_UDP: usize = 4096;

/// Asks each resolver in turn over UDP; the answer with the client's id.
///
/// # Errors
/// When none answers in time.
pub async fn over_udp(query: &[u8], servers: &[SocketAddr]) -> io::Result<Vec<u8>> {
    let mut last = no_servers();
    for server in servers {
        match timeout(TRY_TIMEOUT, ask_udp(query, *server)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")),
        }
    }
    Err(last)
}

/// Asks each resolver in turn over TCP; the answer with the client's id.
///
/// # Errors
/// When none answers in time.
pub async fn over_tcp(query: &[u8], servers: &[SocketAddr]) -> io::Result<Vec<u8>> {
    let mut last = no_servers();
    for server in servers {
        match timeout(TRY_TIMEOUT, ask_tcp(query, *server)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")),
        }
    }
    Err(last)
}

fn no_servers() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "there is no name server in /etc/resolv.conf")
}

async fn ask_udp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    weft_runtime::net::mark(&socket)?;
    socket.connect(server).await?;
    let (sent, id) = with_new_id(query)?;
    socket.send(&sent).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is not an answer to this question is noise or an attempt to poison: wait for the real one.
        if is_answer(&buffer[..length], &sent, id) {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(&query[..2]);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    weft_runtime::net::mark(&socket)?;
    let mut stream = socket.connect(server).await?;
    let (sent, id) = with_new_id(query)?;
    stream.write_all(&frame(&sent)?).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if !is_answer(&answer, &sent, id) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{server} answers another question")));
    }
    answer[..2].copy_from_slice(&query[..2]);
    Ok(answer)
}

/// A message with its length before it (RFC 1035, section 4.2.2).
pub fn frame(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("a DNS message over 64 KiB"))?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}

fn with_new_id(query: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    if query.len() < HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too short for a DNS message"));
    }
    let id = fastrand::u16(..).to_be_bytes();
    let mut sent = query.to_vec();
    sent[..2].copy_from_slice(&id);
    Ok((sent, id))
}

/// An answer has our id, the response bit, and our question, byte for byte but for letter case.
fn is_answer(answer: &[u8], sent: &[u8], id: [u8; 2]) -> bool {
    let question = |message: &[u8]| message.get(HEADER..).and_then(question_length);
    let Some(length) = question(sent) else { return false };
    answer.len() >= HEADER + length
        && answer[..2] == id
        && answer[2] & 0x80 != 0
        && answer[HEADER..HEADER + length].eq_ignore_ascii_case(&sent[HEADER..HEADER + length])
}

/// Length of the first question: labels to the root, type, class.
fn question_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => break,
            // A pointer has no place in a question that we forward.
            label if label > 63 => return None,
            label => at += label + 1,
        }
    }
    (at + 5 <= bytes.len()).then_some(at + 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u16, response: bool, name: &[u8]) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend([if response { 0x80 } else { 0 }, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.push(u8::try_from(name.len()).unwrap());
        bytes.extend_from_slice(name);
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn only_answers_to_the_question_count() {
        let sent = message(5, false, b"name");
        for (answer, counts) in [
            (message(5, true, b"name"), true),
            (message(5, true, b"NaMe"), true),
            (message(6, true, b"name"), false),
            (message(5, false, b"name"), false),
            (message(5, true, b"evil"), false),
            (vec![0, 5, 0x80], false),
            (Vec::new(), false),
        ] {
            assert_eq!(is_answer(&answer, &sent, [0, 5]), counts, "{answer:?}");
        }
        assert_eq!(question_length(&[0xc0, 0x0c, 0, 1, 0, 1]), None);
        assert_eq!(question_length(&[3, b'a']), None);
    }
}
