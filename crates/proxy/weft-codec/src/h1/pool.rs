//! Memory that a worker uses again: header maps, output buffers, and the piece of memory that is read into. An idle
//! connection holds none of it.

use bytes::BytesMut;
use http::HeaderMap;
use std::cell::RefCell;

/// Things of one kind kept by a worker.
const KEPT: usize = 64;
/// Headers that a kept map has room for at most.
const MAP_ROOM: usize = 64;
/// Bytes that a kept buffer has room for at most.
const BUFFER_ROOM: usize = 32 * 1024;
/// Bytes read at once into the common memory.
const SCRATCH: usize = 16 * 1024;
/// Piece from which small reads are cut. A head that lives on keeps all of its piece, hence no larger.
const PIECE: usize = 4 * 1024;

thread_local! {
    static MAPS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static CUT: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// An empty map with room for the usual number of headers.
pub fn map() -> HeaderMap {
    MAPS.with(|maps| maps.borrow_mut().pop()).unwrap_or_else(|| HeaderMap::with_capacity(16))
}

/// Takes a map back.
pub fn keep_map(mut map: HeaderMap) {
    if map.capacity() == 0 || map.capacity() > MAP_ROOM {
        return;
    }
    MAPS.with(|maps| {
        let mut maps = maps.borrow_mut();
        if maps.len() < KEPT {
            map.clear();
            maps.push(map);
        }
    });
}

/// An empty output buffer.
pub fn buffer() -> Vec<u8> {
    BUFFERS.with(|buffers| buffers.borrow_mut().pop()).unwrap_or_else(|| Vec::with_capacity(1024))
}

/// Takes a buffer back.
pub fn keep_buffer(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > BUFFER_ROOM {
        return;
    }
    BUFFERS.with(|buffers| {
        let mut buffers = buffers.borrow_mut();
        if buffers.len() < KEPT {
            buffer.clear();
            buffers.push(buffer);
        }
    });
}

/// Lends the memory that is read into.
pub fn scratch<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    READ.with(|read| {
        let mut read = read.borrow_mut();
        if read.is_empty() {
            read.resize(SCRATCH, 0);
        }
        with(&mut read)
    })
}

/// `bytes`, kept. Small ones share a piece of memory, which is used again when all of them are gone.
pub fn cut(bytes: &[u8]) -> BytesMut {
    if bytes.len() > PIECE / 2 {
        return BytesMut::from(bytes);
    }
    CUT.with(|cut| {
        let mut cut = cut.borrow_mut();
        if cut.capacity() < bytes.len() {
            cut.reserve(PIECE);
        }
        cut.extend_from_slice(bytes);
        cut.split()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_comes_back_is_empty() {
        let mut headers = map();
        headers.insert("x-a", HeaderValue::from_static("1"));
        keep_map(headers);
        assert!(map().is_empty());
        let mut bytes = buffer();
        bytes.extend_from_slice(b"abc");
        keep_buffer(bytes);
        assert!(buffer().is_empty());
    }

    #[test]
    fn pieces_do_not_overlap() {
        let kept: Vec<BytesMut> = (0..1000u32).map(|n| cut(format!("piece {n}").as_bytes())).collect();
        for (n, piece) in kept.iter().enumerate() {
            assert_eq!(&piece[..], format!("piece {n}").as_bytes());
        }
    }
}
