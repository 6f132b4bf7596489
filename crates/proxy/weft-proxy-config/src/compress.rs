//! Filters that compress bodies and take them apart again.

use weft_core::Strng;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// As `accept-encoding` and `content-encoding` name it.
    pub const fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }
}

/// A compressor of responses.
#[derive(Debug, Clone, PartialEq)]
pub struct Compressor {
    /// Name of the filter, by which routes switch it off.
    pub name: Strng,
    /// What it makes.
    pub coding: Coding,
    /// How hard it tries, in the coding's own scale.
    pub level: i32,
    /// Window of brotli, in bits.
    pub window: u32,
    /// Responses said to be shorter stay as they are; 30 unless set.
    pub min_length: u64,
    /// Media types that are compressed.
    pub types: Vec<String>,
    /// Responses with an `etag` stay as they are.
    pub spares_etag: bool,
    /// A strong `etag` becomes a weak one, in place of none.
    pub weakens_etag: bool,
    /// The endpoint does not hear what the client accepts.
    pub hides_accept: bool,
    /// Statuses whose responses stay as they are.
    pub spared: Vec<u16>,
    /// Among codings that are equally welcome, this filter's first one is taken.
    pub choose_first: bool,
}

/// What takes bodies apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Decompressor {
    /// Name of the filter, by which routes switch it off.
    pub name: Strng,
    /// What it reads.
    pub coding: Coding,
    /// Bytes that may come of each byte.
    pub max_ratio: u32,
    /// Requests; whether `cache-control: no-transform` is ignored.
    pub request: Option<bool>,
    /// Responses; whether `cache-control: no-transform` is ignored.
    pub response: Option<bool>,
    /// Endpoints hear that the coding is welcome.
    pub advertises: bool,
}
