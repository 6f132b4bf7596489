//! Compressors and decompressors.

use super::Ctx;
use crate::{Coding, Compressor, Decompressor};
use weft_proto::any::TypeUrl as _;
use weft_proto::envoy::config::core::v3::{RuntimeFeatureFlag, TypedExtensionConfig};
use weft_proto::envoy::extensions::compression::{brotli, gzip, zstd};
use weft_proto::envoy::extensions::filters::http::compressor::v3 as compressor;
use weft_proto::envoy::extensions::filters::http::decompressor::v3 as decompressor;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Responses below are not worth the effort (Envoy's default).
const MIN_LENGTH: u32 = 30;
/// Media types that Envoy compresses unless told otherwise.
const TYPES: &[&str] = &[
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
];
/// Levels of Envoy: quick ones.
const GZIP_LEVEL: i32 = 6;
const BROTLI_QUALITY: u32 = 3;
const BROTLI_WINDOW: u32 = 18;
const ZSTD_LEVEL: u32 = 3;
/// Beyond it zstd takes memory by the hundred megabytes.
const MAX_ZSTD_LEVEL: u32 = 19;
/// Bytes that may come of each byte unless set (Envoy's default for gzip).
const MAX_RATIO: u32 = 100;

impl Ctx<'_> {
    /// A compressor; `None` when it was refused, or does nothing.
    #[allow(deprecated)]
    pub(super) fn compressor(
        &mut self,
        name: &str,
        message: &compressor::Compressor,
        path: &Path<'_>,
    ) -> Option<Compressor> {
        let compressor::Compressor {
            content_length,
            content_type,
            disable_on_etag_header,
            remove_accept_encoding_header,
            runtime_enabled,
            compressor_library,
            request_direction_config,
            response_direction_config,
            choose_first,
        } = message;
        refuse_set!(self.c.errors, path, request_direction_config);
        let old = compressor::compressor::ResponseDirectionConfig {
            common_config: Some(compressor::compressor::CommonDirectionConfig {
                enabled: runtime_enabled.clone(),
                min_content_length: *content_length,
                content_type: content_type.clone(),
                content_type_matcher: Vec::new(),
            }),
            disable_on_etag_header: *disable_on_etag_header,
            remove_accept_encoding_header: *remove_accept_encoding_header,
            ..Default::default()
        };
        let compressor::compressor::ResponseDirectionConfig {
            common_config,
            disable_on_etag_header,
            weaken_etag_on_compress,
            remove_accept_encoding_header,
            uncompressible_response_codes,
            status_header_enabled,
        } = response_direction_config.as_ref().unwrap_or(&old);
        let at = path.field("response_direction_config");
        self.leave_out(*status_header_enabled, &at.field("status_header_enabled"));
        let common = common_config.clone().unwrap_or_default();
        let compressor::compressor::CommonDirectionConfig {
            enabled,
            min_content_length,
            content_type,
            content_type_matcher,
        } = common;
        let content_type_matcher = &content_type_matcher;
        refuse_set!(self.c.errors, at.field("common_config"), content_type_matcher);
        let (coding, level, window) = self.compressor_library(compressor_library.as_ref(), path)?;
        let types = match &content_type[..] {
            [] => TYPES.iter().map(ToString::to_string).collect(),
            list => list.to_vec(),
        };
        is_on(enabled.as_ref()).then(|| Compressor {
            name: self.c.pool.text(name),
            coding,
            level,
            window,
            // Envoy takes 0 for "not set".
            min_length: u64::from(min_content_length.filter(|length| *length > 0).unwrap_or(MIN_LENGTH)),
            types,
            spares_etag: *disable_on_etag_header,
            weakens_etag: *weaken_etag_on_compress,
            hides_accept: *remove_accept_encoding_header,
            spared: uncompressible_response_codes.iter().filter_map(|code| u16::try_from(*code).ok()).collect(),
            choose_first: *choose_first,
        })
    }

    /// Coding, level, and window of brotli. Settings of memory say nothing of what is made.
    fn compressor_library(
        &mut self,
        library: Option<&TypedExtensionConfig>,
        path: &Path<'_>,
    ) -> Option<(Coding, i32, u32)> {
        let path = &path.field("compressor_library");
        let path = path.field("typed_config");
        let Some(any) = library.and_then(|library| library.typed_config.as_ref()) else {
            self.c.errors.refuse(&path, "must be set: a compressor of gzip, brotli or zstd");
            return None;
        };
        if any.type_url == gzip::compressor::v3::Gzip::type_url_of() {
            let message: gzip::compressor::v3::Gzip = self.c.unpacked(any, &path)?;
            let level = Some(message.compression_level).filter(|level| (1..=9).contains(level));
            Some((Coding::Gzip, level.unwrap_or(GZIP_LEVEL), 0))
        } else if any.type_url == brotli::compressor::v3::Brotli::type_url_of() {
            let message: brotli::compressor::v3::Brotli = self.c.unpacked(any, &path)?;
            let quality = message.quality.unwrap_or(BROTLI_QUALITY).min(11);
            let window = message.window_bits.unwrap_or(BROTLI_WINDOW).clamp(10, 24);
            Some((Coding::Brotli, i32::try_from(quality).unwrap_or(0), window))
        } else if any.type_url == zstd::compressor::v3::Zstd::type_url_of() {
            let message: zstd::compressor::v3::Zstd = self.c.unpacked(any, &path)?;
            let zstd::compressor::v3::Zstd { compression_level, dictionary, .. } = &message;
            refuse_set!(self.c.errors, path, dictionary);
            let level = compression_level.unwrap_or(ZSTD_LEVEL).min(MAX_ZSTD_LEVEL);
            Some((Coding::Zstd, i32::try_from(level).unwrap_or(0), 0))
        } else {
            self.c.errors.refuse(&path, format!("{} is no compressor that weft-proxy has", any.type_url));
            None
        }
    }

    /// A decompressor; `None` when it was refused.
    pub(super) fn decompressor(
        &mut self,
        name: &str,
        message: &decompressor::Decompressor,
        path: &Path<'_>,
    ) -> Option<Decompressor> {
        let decompressor::Decompressor { decompressor_library, request_direction_config, response_direction_config } =
            message;
        let request = request_direction_config.clone().unwrap_or_default();
        let response = response_direction_config.clone().unwrap_or_default();
        let direction = |config: Option<decompressor::decompressor::CommonDirectionConfig>| {
            let config = config.unwrap_or_default();
            is_on(config.enabled.as_ref()).then_some(config.ignore_no_transform_header)
        };
        let (coding, max_ratio) = self.decompressor_library(decompressor_library.as_ref(), path)?;
        Some(Decompressor {
            name: self.c.pool.text(name),
            coding,
            max_ratio,
            request: direction(request.common_config),
            response: direction(response.common_config),
            advertises: request.advertise_accept_encoding.unwrap_or(true),
        })
    }

    fn decompressor_library(
        &mut self,
        library: Option<&TypedExtensionConfig>,
        path: &Path<'_>,
    ) -> Option<(Coding, u32)> {
        let path = &path.field("decompressor_library");
        let path = path.field("typed_config");
        let url = library.and_then(|library| library.typed_config.as_ref()).map(|any| (any, any.type_url.as_str()));
        match url {
            Some((any, url)) if url == gzip::decompressor::v3::Gzip::type_url_of() => {
                let message: gzip::decompressor::v3::Gzip = self.c.unpacked(any, &path)?;
                Some((Coding::Gzip, message.max_inflate_ratio.unwrap_or(MAX_RATIO).max(1)))
            }
            Some((_, url)) if url == brotli::decompressor::v3::Brotli::type_url_of() => {
                Some((Coding::Brotli, MAX_RATIO))
            }
            Some((any, url)) if url == zstd::decompressor::v3::Zstd::type_url_of() => {
                let message: zstd::decompressor::v3::Zstd = self.c.unpacked(any, &path)?;
                let zstd::decompressor::v3::Zstd { dictionaries, chunk_size: _ } = &message;
                refuse_set!(self.c.errors, path, dictionaries);
                Some((Coding::Zstd, MAX_RATIO))
            }
            Some((_, url)) => {
                self.c.errors.refuse(&path, format!("{url} is no decompressor that weft-proxy has"));
                None
            }
            None => {
                self.c.errors.refuse(&path, "must be set: a decompressor of gzip, brotli or zstd");
                None
            }
        }
    }
}

/// A switch that may be set at run time, which nothing does here; on unless it says otherwise.
fn is_on(flag: Option<&RuntimeFeatureFlag>) -> bool {
    flag.and_then(|flag| flag.default_value).unwrap_or(true)
}
