//! Bodies that clients send to the lab's API: protobuf, SPDY's header blocks, schemas with values. None may panic or hang.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => weft_apiserver::fuzzing::protobuf(rest),
        // With the mark and an envelope of a known kind, so that more of the reader is reached.
        1 => {
            let length = u8::try_from(rest.len().min(127)).unwrap_or(0);
            let raw = &rest[..usize::from(length)];
            let mut body = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12".to_vec();
            body.push(length);
            body.extend_from_slice(raw);
            weft_apiserver::fuzzing::protobuf(&body);
        }
        2 => weft_apiserver::fuzzing::spdy_headers(rest),
        _ => {
            let mut parts = rest.splitn(3, |b| *b == 0);
            let mut next = || parts.next().unwrap_or_default();
            let path = String::from_utf8_lossy(next()).into_owned();
            let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(Value::Null);
            let (schema, value) = (json(next()), json(next()));
            weft_apiserver::fuzzing::schema(&path, &schema, value);
        }
    }
});
