//! Floods over HTTP/2: each is bounded in memory, ends the flooding connection or is borne, and others are served meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;
use std::time::{Duration, Instant};
use weft_protocol_tests::backend::Backend;
use weft_protocol_tests::frame::{GET, block, flag, frame, get, kind, post, settings};
use weft_protocol_tests::http2::{Connection, Taken};
use weft_protocol_tests::proxy::Proxy;

/// What a flood may add to the proxy's memory.
const MOST_BYTES: u64 = 60 << 20;
/// CPU time that one flood may take of the proxy.
const MOST_CPU: Duration = Duration::from_secs(8);

/// Sends what `flood` makes, until the connection ends or `rounds` are over; another connection is served all the time.
fn borne(name: &str, rounds: usize, flood: impl Fn(usize) -> Vec<u8>) {
    let backend = Backend::start().unwrap();
    let proxy = Proxy::start(backend.port, &json!({})).unwrap();
    let mut other = Connection::ready(proxy.address()).unwrap();
    let (memory, cpu, begun) = (proxy.resident().unwrap(), proxy.cpu().unwrap(), Instant::now());
    let mut flooding = Connection::ready(proxy.address()).unwrap();
    for round in 0..rounds {
        // One that is no longer read has been stopped.
        if flooding.send(&flood(round)).is_err() {
            break;
        }
        if round % (rounds / 4).max(1) == 0 {
            let stream = 1 + 2 * (round / (rounds / 4).max(1)) as u32;
            other.send(&get(stream)).unwrap();
            assert_eq!(other.outcome(stream).unwrap(), Taken::Answered(200), "{name}: another connection");
        }
    }
    let (grown, used) = (proxy.resident().unwrap().saturating_sub(memory), proxy.cpu().unwrap() - cpu);
    println!("{name}: {} kB more, {used:?} of CPU in {:?}", grown / 1024, begun.elapsed());
    assert!(grown < MOST_BYTES, "{name}: {grown} bytes");
    assert!(used < MOST_CPU, "{name}: {used:?} of CPU");
    let mut next = Connection::ready(proxy.address()).unwrap();
    next.send(&get(1)).unwrap();
    assert_eq!(next.outcome(1).unwrap(), Taken::Answered(200), "{name}: the next connection");
}

#[test]
fn rapid_reset() {
    borne("rapid reset", 20_000, |round| {
        let stream = 1 + 2 * round as u32;
        [get(stream), frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
}

#[test]
fn continuations_without_end() {
    let piece = block(&[("x-flood", &"a".repeat(1000))]);
    borne("continuations", 50_000, move |round| match round {
        0 => frame(kind::HEADERS, flag::END_STREAM, 1, &block(GET)),
        _ => frame(kind::CONTINUATION, 0, 1, &piece),
    });
}

#[test]
fn empty_continuations() {
    borne("empty continuations", 100_000, |round| match round {
        0 => frame(kind::HEADERS, flag::END_STREAM, 1, &block(GET)),
        _ => frame(kind::CONTINUATION, 0, 1, &[]),
    });
}

#[test]
fn settings_without_end() {
    borne("settings", 50_000, |round| settings(&[(4, 65_535 + (round % 2) as u32)]));
}

#[test]
fn pings_without_end() {
    borne("pings", 50_000, |_| frame(kind::PING, 0, 0, b"flooding"));
}

#[test]
fn empty_data_without_end() {
    borne("empty data", 100_000, |round| match round {
        0 => post(1),
        _ => frame(kind::DATA, 0, 1, &[]),
    });
}

#[test]
fn a_small_block_that_decodes_to_much() {
    // One header of 4 kB is put into the table, then named a thousand times by one byte each.
    let value = "a".repeat(4000);
    let mut bomb = block(GET);
    bomb.extend([0x40, 1, b'x', 127, (4000 - 127) as u8 & 127 | 128, ((4000 - 127) >> 7) as u8]);
    bomb.extend(value.as_bytes());
    bomb.extend([0xbe; 1000]);
    borne("decoded size", 200, move |round| {
        let stream = 1 + 2 * round as u32;
        if round == 0 {
            return frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &bomb);
        }
        let again = [&block(GET)[..], &[0xbe; 4000]].concat();
        frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &again)
    });
}

#[test]
fn priorities_without_end() {
    borne("priorities", 100_000, |round| {
        let stream = 1 + 2 * (round as u32 % 1_000_000);
        frame(kind::PRIORITY, 0, stream, &[0, 0, 0, 0, 15])
    });
}

/// Answers that the client does not read: bounded by windows, not kept.
#[test]
fn answers_that_nobody_reads() {
    borne("unread answers", 2000, |round| {
        let stream = 1 + 2 * round as u32;
        if round == 0 { [settings(&[(4, 0)]), get(stream)].concat() } else { get(stream) }
    });
}
