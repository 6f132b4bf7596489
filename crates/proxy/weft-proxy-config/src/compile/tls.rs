//! TLS contexts and secrets.

use super::Ctx;
use crate::{
    AutoSni, BoundSecrets, ClientTls, ClientTlsSpec, Pins, SanKind, SanMatcher, Secret, SecretSource, ServerTls,
    ServerTlsSpec, TlsParams,
};
use std::sync::{Arc, OnceLock};
use weft_core::Strng;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use weft_route::error::Path;
use weft_route::{StringMatcher, refuse_set};

/// Beginning of the names of roots that the agent reads from files; a `~` and a file of revocation lists may follow.
const FILE_ROOTS: &str = "file-root:";
/// Largest file or inline text read.
const MAX_PEM: u64 = 1 << 20;

impl Ctx<'_> {
    /// TLS towards endpoints.
    pub(crate) fn client_tls(
        &mut self,
        message: &proto::UpstreamTlsContext,
        auto_sni: bool,
        path: &Path<'_>,
    ) -> ClientTls {
        let proto::UpstreamTlsContext {
            common_tls_context,
            sni,
            auto_host_sni,
            auto_sni_san_validation,
            // rustls never renegotiates.
            allow_renegotiation: _,
            max_session_keys: _,
            ..
        } = message;
        let common = common_tls_context.clone().unwrap_or_default();
        let path = path.field("common_tls_context");
        let mut secrets = BoundSecrets::default();
        let certificate = self.certificates(&common, &mut secrets, &path).into_iter().next();
        let validation = self.validation(&common, &mut secrets, &path);
        self.refuse_names_without_roots(&validation, &path);
        let auto_sni = match (*auto_host_sni, auto_sni && sni.is_empty()) {
            (true, _) => AutoSni::Endpoint,
            (false, true) => AutoSni::Request,
            (false, false) => AutoSni::No,
        };
        // Names that are listed are those that count, but for a context that says otherwise.
        let by_name = auto_sni != AutoSni::No && validation.san.is_empty() && validation.pins == Pins::default();
        let spec = ClientTlsSpec {
            certificate,
            validation: validation.source,
            san: validation.san,
            pins: validation.pins,
            crl: validation.crl,
            sni: self.c.pool.text(sni),
            auto_sni,
            check_name: by_name || *auto_sni_san_validation,
            alpn: common.alpn_protocols.iter().map(|p| self.c.pool.text(p)).collect(),
            params: self.params(common.tls_params.as_ref(), &path),
            insecure_skip_verify: validation.insecure,
        };
        ClientTls { spec, secrets, built: OnceLock::new() }
    }

    /// TLS towards clients.
    pub(crate) fn server_tls(&mut self, message: &proto::DownstreamTlsContext, path: &Path<'_>) -> ServerTls {
        let proto::DownstreamTlsContext {
            common_tls_context,
            require_client_certificate,
            require_sni,
            // Tickets are bound to the context and short-lived: see weft-tls, "Sessions".
            disable_stateful_session_resumption: _,
            session_timeout: _,
            ocsp_staple_policy: _,
            full_scan_certs_on_sni_mismatch: _,
            prefer_client_ciphers: _,
            session_ticket_keys_type,
        } = message;
        refuse_set!(self.c.errors, path, require_sni, session_ticket_keys_type);
        let common = common_tls_context.clone().unwrap_or_default();
        let path = path.field("common_tls_context");
        let mut secrets = BoundSecrets::default();
        let certificates = self.certificates(&common, &mut secrets, &path);
        if certificates.is_empty() {
            self.c.errors.refuse(&path, "a TLS server needs tls_certificates or tls_certificate_sds_secret_configs");
        }
        let validation = self.validation(&common, &mut secrets, &path);
        self.refuse_names_without_roots(&validation, &path);
        let require = require_client_certificate.unwrap_or(false);
        let judges = validation.source.is_some() || validation.pins != Pins::default();
        if require && !judges {
            self.c.errors.refuse(&path, "require_client_certificate needs a validation context with trusted roots");
        }
        let spec = ServerTlsSpec {
            certificates,
            request_client_certificate: judges,
            validation: validation.source,
            require_client_certificate: require,
            san: validation.san,
            pins: validation.pins,
            crl: validation.crl,
            alpn: common.alpn_protocols.iter().map(|p| self.c.pool.text(p)).collect(),
            params: self.params(common.tls_params.as_ref(), &path),
        };
        ServerTls { spec, secrets, built: OnceLock::new() }
    }

    /// Names prove nothing in a certificate that nobody vouches for (Envoy refuses the same).
    fn refuse_names_without_roots(&mut self, validation: &Validation, path: &Path<'_>) {
        if validation.source.is_none() && !validation.san.is_empty() {
            self.c.errors.refuse(path, "names can only be matched with a validation context that has trusted roots");
        }
    }

    /// Certificates to show: by SDS, or in the message.
    fn certificates(
        &mut self,
        common: &proto::CommonTlsContext,
        secrets: &mut BoundSecrets,
        path: &Path<'_>,
    ) -> Vec<SecretSource> {
        let proto::CommonTlsContext {
            tls_certificates,
            tls_certificate_sds_secret_configs,
            tls_certificate_provider_instance,
            custom_tls_certificate_selector,
            custom_handshaker,
            key_log,
            ..
        } = common;
        refuse_set!(
            self.c.errors,
            path,
            tls_certificate_provider_instance,
            custom_tls_certificate_selector,
            custom_handshaker,
            key_log
        );
        let mut sources = Vec::new();
        for sds in tls_certificate_sds_secret_configs {
            let name = self.c.pool.text(&sds.name);
            secrets.certificates.push(self.secrets.get(&name).cloned());
            sources.push(SecretSource::Sds(name));
        }
        for (i, certificate) in tls_certificates.iter().enumerate() {
            if let Some((source, secret)) = self.inline_certificate(certificate, &path.item("tls_certificates", i)) {
                secrets.certificates.push(Some(secret));
                sources.push(source);
            }
        }
        sources
    }

    fn inline_certificate(
        &mut self,
        message: &proto::TlsCertificate,
        path: &Path<'_>,
    ) -> Option<(SecretSource, Arc<Secret>)> {
        let proto::TlsCertificate { certificate_chain, private_key, pkcs12, private_key_provider, password, .. } =
            message;
        refuse_set!(self.c.errors, path, pkcs12, private_key_provider, password);
        let chain = self.data(certificate_chain.as_ref(), &path.field("certificate_chain"))?;
        let key = self.data(private_key.as_ref(), &path.field("private_key"))?;
        let hash = text_hash(&[&chain, &key]);
        let parsed = self
            .shared
            .inline_secret(&hash, || weft_tls::CertifiedKey::from_pem(&chain, &key).map(Secret::Certificate));
        match parsed {
            Ok(secret) => Some((SecretSource::Inline(hash, None), secret)),
            Err(error) => {
                self.c.errors.refuse(path, error.to_string());
                None
            }
        }
    }

    fn validation(
        &mut self,
        common: &proto::CommonTlsContext,
        secrets: &mut BoundSecrets,
        path: &Path<'_>,
    ) -> Validation {
        use proto::common_tls_context::ValidationContextType as Kind;
        match &common.validation_context_type {
            None => Validation::default(),
            Some(Kind::ValidationContext(context)) => {
                let mut all = self.validation_context(context, secrets, &path.field("validation_context"));
                if context.trusted_ca.is_some() {
                    // They are among the roots.
                    all.crl = None;
                }
                all
            }
            Some(Kind::ValidationContextSdsSecretConfig(sds)) => {
                Validation { source: Some(self.sds_validation(sds, secrets)), ..Validation::default() }
            }
            Some(Kind::CombinedValidationContext(combined)) => {
                let path = path.field("combined_validation_context");
                let default = combined.default_validation_context.clone().unwrap_or_default();
                let mut all = self.validation_context(&default, secrets, &path.field("default_validation_context"));
                match &combined.validation_context_sds_secret_config {
                    Some(sds) => {
                        let mut sds = sds.clone();
                        if let Some(lists) = default.crl.as_ref().and_then(list_file)
                            && sds.name.starts_with(FILE_ROOTS)
                        {
                            // Watched like the roots: lists are made anew before they end.
                            sds.name = format!("{}~{lists}", sds.name);
                            all.crl = None;
                        }
                        all.source = Some(self.sds_validation(&sds, secrets));
                    }
                    None if default.trusted_ca.is_some() => all.crl = None,
                    None => {}
                }
                all
            }
            Some(_) => {
                self.c.errors.refuse(path, "certificate providers are not supported by weft-proxy; use SDS or files");
                Validation::default()
            }
        }
    }

    fn sds_validation(&mut self, sds: &proto::SdsSecretConfig, secrets: &mut BoundSecrets) -> SecretSource {
        let name = self.c.pool.text(&sds.name);
        secrets.validation = self.secrets.get(&name).cloned();
        SecretSource::Sds(name)
    }

    #[allow(deprecated)]
    fn validation_context(
        &mut self,
        message: &proto::CertificateValidationContext,
        secrets: &mut BoundSecrets,
        path: &Path<'_>,
    ) -> Validation {
        let proto::CertificateValidationContext {
            trusted_ca,
            ca_certificate_provider_instance,
            system_root_certs,
            watched_directory: _,
            verify_certificate_spki,
            verify_certificate_hash,
            match_typed_subject_alt_names,
            match_subject_alt_names,
            require_signed_certificate_timestamp,
            crl,
            allow_expired_certificate,
            trust_chain_verification,
            custom_validator_config,
            only_verify_leaf_cert_crl: _,
            max_verify_depth: _,
            suppress_client_ca_list: _,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            ca_certificate_provider_instance,
            require_signed_certificate_timestamp,
            allow_expired_certificate,
            custom_validator_config
        );
        let typed = match_typed_subject_alt_names.iter().enumerate();
        let mut san: Vec<SanMatcher> =
            typed.filter_map(|(i, m)| self.san(m, &path.item("match_typed_subject_alt_names", i))).collect();
        for (i, value) in match_subject_alt_names.iter().enumerate() {
            let value = self.c.string_matcher(value, &path.item("match_subject_alt_names", i));
            san.extend(value.map(|value| SanMatcher { kind: None, value }));
        }
        let lists = match crl {
            Some(lists) => self.revocation_lists(lists, path),
            None => None,
        };
        let source = match (trusted_ca, system_root_certs) {
            (Some(ca), _) => self.inline_roots(ca, crl.as_ref(), secrets, path),
            (None, Some(_)) => self.system_roots(secrets, path),
            (None, None) => None,
        };
        let accept_untrusted = proto::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
        let pins = self.pins(verify_certificate_hash, verify_certificate_spki, path);
        Validation { source, san, pins, crl: lists, insecure: *trust_chain_verification == accept_untrusted }
    }

    /// Lists beside roots that come by SDS: read now, and used once the roots are there.
    fn revocation_lists(&mut self, lists: &core::DataSource, path: &Path<'_>) -> Option<Arc<[u8]>> {
        let path = path.field("crl");
        let text = self.data(Some(lists), &path)?;
        let readable = weft_tls::check_crls(&text);
        readable.map_err(|error| self.c.errors.refuse(&path, error.to_string())).ok()?;
        Some(text.into())
    }

    /// Hashes as Envoy takes them: of a certificate 64 hex digits with or without colons, of a key 44 characters of base64.
    fn pins(&mut self, certificates: &[String], keys: &[String], path: &Path<'_>) -> Pins {
        use base64::Engine as _;
        let mut pins = Pins::default();
        for (i, hash) in certificates.iter().enumerate() {
            let plain = hash.replace(':', "").to_ascii_lowercase();
            if plain.len() != 64 || !plain.bytes().all(|b| b.is_ascii_hexdigit()) {
                let path = path.item("verify_certificate_hash", i);
                self.c.errors.refuse(&path, "must be a SHA-256 digest: 64 hexadecimal digits");
            }
            pins.certificates.push(plain.into());
        }
        for (i, hash) in keys.iter().enumerate() {
            let digest = base64::engine::general_purpose::STANDARD.decode(hash);
            if !digest.is_ok_and(|digest| digest.len() == 32) {
                let path = path.item("verify_certificate_spki", i);
                self.c.errors.refuse(&path, "must be a SHA-256 digest in base64: 44 characters");
            }
            pins.keys.push(self.c.pool.text(hash));
        }
        pins
    }

    fn inline_roots(
        &mut self,
        ca: &core::DataSource,
        crl: Option<&core::DataSource>,
        secrets: &mut BoundSecrets,
        path: &Path<'_>,
    ) -> Option<SecretSource> {
        let roots = self.data(Some(ca), &path.field("trusted_ca"))?;
        let lists = match crl {
            Some(crl) => Some(self.data(Some(crl), &path.field("crl"))?),
            None => None,
        };
        let hash = text_hash(&[&roots, lists.as_deref().unwrap_or_default()]);
        let parsed = self.shared.inline_secret(&hash, || anchors(&roots, lists.as_deref()).map(Secret::Validation));
        match parsed {
            Ok(secret) => {
                secrets.validation = Some(secret);
                Some(SecretSource::Inline(hash, None))
            }
            Err(error) => {
                self.c.errors.refuse(&path.field("trusted_ca"), error.to_string());
                None
            }
        }
    }

    fn system_roots(&mut self, secrets: &mut BoundSecrets, path: &Path<'_>) -> Option<SecretSource> {
        let hash: Strng = "system".into();
        match self.shared.inline_secret(&hash, || weft_tls::TrustAnchors::system().map(Secret::Validation)) {
            Ok(secret) => {
                secrets.validation = Some(secret);
                Some(SecretSource::Inline(hash, None))
            }
            Err(error) => {
                self.c.errors.refuse(&path.field("system_root_certs"), error.to_string());
                None
            }
        }
    }

    fn san(&mut self, message: &proto::SubjectAltNameMatcher, path: &Path<'_>) -> Option<SanMatcher> {
        use proto::subject_alt_name_matcher::SanType;
        let kind = match SanType::try_from(message.san_type) {
            Ok(SanType::Uri) => SanKind::Uri,
            Ok(SanType::Dns) => SanKind::Dns,
            Ok(SanType::Email) => SanKind::Email,
            Ok(SanType::IpAddress) => SanKind::Ip,
            _ => {
                self.c.errors.refuse(&path.field("san_type"), "must be URI, DNS, EMAIL or IP_ADDRESS");
                return None;
            }
        };
        let Some(matcher) = &message.matcher else {
            self.c.errors.refuse(&path.field("matcher"), "must be set");
            return None;
        };
        let value = self.c.string_matcher(matcher, &path.field("matcher"))?;
        Some(SanMatcher { kind: Some(kind), value })
    }

    fn params(&mut self, message: Option<&proto::TlsParameters>, path: &Path<'_>) -> TlsParams {
        use proto::tls_parameters::TlsProtocol;
        let Some(message) = message else { return TlsParams::default() };
        let path = path.field("tls_params");
        let version = |v: i32| TlsProtocol::try_from(v).unwrap_or_default();
        let (min, max) = (version(message.tls_minimum_protocol_version), version(message.tls_maximum_protocol_version));
        if matches!(max, TlsProtocol::TlSv10 | TlsProtocol::TlSv11) {
            self.c.errors.refuse(&path.field("tls_maximum_protocol_version"), "TLS below 1.2 is not supported");
        }
        let compliance_policies = &message.compliance_policies;
        refuse_set!(self.c.errors, path, compliance_policies);
        self.leave_out(!message.signature_algorithms.is_empty(), &path.field("signature_algorithms"));
        TlsParams {
            min_tls13: min == TlsProtocol::TlSv13,
            max_tls12: max == TlsProtocol::TlSv12,
            ciphers: message.cipher_suites.iter().map(|s| self.c.pool.text(s)).collect(),
            groups: message.ecdh_curves.iter().map(|s| self.c.pool.text(s)).collect(),
        }
    }

    /// The bytes of a data source: a file is read now, and again when the resource comes again.
    pub(crate) fn data(&mut self, source: Option<&core::DataSource>, path: &Path<'_>) -> Option<Vec<u8>> {
        read_source(source).map_err(|reason| self.c.errors.refuse(path, reason)).ok()
    }

    /// Conditions on certificates that a secret carries: they belong into the context that names it, where they are checked.
    fn refuse_secret_conditions(&mut self, message: &proto::CertificateValidationContext, path: &Path<'_>) {
        let proto::CertificateValidationContext {
            verify_certificate_spki,
            verify_certificate_hash,
            match_typed_subject_alt_names,
            require_signed_certificate_timestamp,
            custom_validator_config,
            ..
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            verify_certificate_spki,
            verify_certificate_hash,
            match_typed_subject_alt_names,
            require_signed_certificate_timestamp,
            custom_validator_config
        );
    }

    /// A secret as SDS delivers it. `None`: it was refused.
    pub(crate) fn secret(&mut self, message: &proto::Secret, path: &Path<'_>) -> Option<Secret> {
        use proto::secret::Type;
        match &message.r#type {
            Some(Type::TlsCertificate(certificate)) => {
                let path = path.field("tls_certificate");
                let chain = self.data(certificate.certificate_chain.as_ref(), &path.field("certificate_chain"))?;
                let key = self.data(certificate.private_key.as_ref(), &path.field("private_key"))?;
                match weft_tls::CertifiedKey::from_pem(&chain, &key) {
                    Ok(key) => Some(Secret::Certificate(key)),
                    Err(error) => {
                        self.c.errors.refuse(&path, error.to_string());
                        None
                    }
                }
            }
            Some(Type::ValidationContext(context)) => {
                let path = path.field("validation_context");
                self.refuse_secret_conditions(context, &path);
                let roots = self.data(context.trusted_ca.as_ref(), &path.field("trusted_ca"))?;
                let lists = match &context.crl {
                    Some(crl) => Some(self.data(Some(crl), &path.field("crl"))?),
                    None => None,
                };
                match anchors(&roots, lists.as_deref()) {
                    Ok(anchors) => Some(Secret::Validation(anchors)),
                    Err(error) => {
                        self.c.errors.refuse(&path.field("trusted_ca"), error.to_string());
                        None
                    }
                }
            }
            _ => {
                self.c.errors.refuse(path, "must be a tls_certificate or a validation_context");
                None
            }
        }
    }
}

/// What a validation context asks for.
#[derive(Default)]
struct Validation {
    source: Option<SecretSource>,
    san: Vec<SanMatcher>,
    pins: Pins,
    crl: Option<Arc<[u8]>>,
    insecure: bool,
}

/// The file of revocation lists.
fn list_file(lists: &core::DataSource) -> Option<&str> {
    match &lists.specifier {
        Some(core::data_source::Specifier::Filename(file)) => Some(file),
        _ => None,
    }
}

fn anchors(roots: &[u8], crls: Option<&[u8]>) -> Result<weft_tls::TrustAnchors, weft_tls::TlsError> {
    let anchors = weft_tls::TrustAnchors::from_pem(roots)?;
    match crls {
        Some(crls) => anchors.with_crls(crls),
        None => Ok(anchors),
    }
}

fn text_hash(texts: &[&[u8]]) -> Strng {
    let digest = weft_tls::sha256(&texts.concat());
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}").into()
}

pub(crate) fn read_source(source: Option<&core::DataSource>) -> Result<Vec<u8>, String> {
    use core::data_source::Specifier;
    match source.and_then(|s| s.specifier.as_ref()) {
        Some(Specifier::Filename(name)) => read_file(name),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(name)) => {
            std::env::var(name).map(String::into_bytes).map_err(|e| format!("environment variable {name}: {e}"))
        }
        None => Err("must be set: filename, inline_bytes or inline_string".into()),
    }
}

fn read_file(name: &str) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(name).map_err(|e| format!("{name}: {e}"))?.len();
    if size > MAX_PEM {
        return Err(format!("{name} has {size} bytes; the limit is {MAX_PEM}"));
    }
    std::fs::read(name).map_err(|e| format!("{name}: {e}"))
}

/// The predicate that a list of matchers makes; `None` when any name is accepted.
pub(crate) fn predicate(san: &[SanMatcher], pins: &Pins) -> Option<weft_tls::SanPredicate> {
    if san.is_empty() && *pins == Pins::default() {
        return None;
    }
    let (matchers, pins) = (san.to_vec(), pins.clone());
    Some(Arc::new(move |peer: &weft_tls::PeerCertificate| {
        (matchers.is_empty() || matchers.iter().any(|m| san_matches(m, peer))) && is_pinned(&pins, peer)
    }))
}

/// One hash of either list is enough.
fn is_pinned(pins: &Pins, peer: &weft_tls::PeerCertificate) -> bool {
    use base64::Engine as _;
    if pins.certificates.is_empty() && pins.keys.is_empty() {
        return true;
    }
    let key = || base64::engine::general_purpose::STANDARD.encode(peer.key_sha256());
    pins.certificates.iter().any(|hash| **hash == *peer.sha256()) || {
        !pins.keys.is_empty() && pins.keys.iter().any(|hash| **hash == *key())
    }
}

fn san_matches(matcher: &SanMatcher, peer: &weft_tls::PeerCertificate) -> bool {
    let facts = peer.facts();
    let any = |names: &[Strng]| names.iter().any(|name| matcher.value.matches(name.as_bytes()));
    match matcher.kind {
        Some(SanKind::Uri) => any(&facts.uris),
        // An exact DNS name is matched as TLS matches names: a wildcard in the certificate stands for one label.
        Some(SanKind::Dns) => match &matcher.value {
            StringMatcher::Exact(name) => facts.dns_matches(name),
            _ => any(&facts.dns),
        },
        Some(SanKind::Email) => any(&facts.emails),
        Some(SanKind::Ip) => facts.ips.iter().any(|ip| matcher.value.matches(ip.to_string().as_bytes())),
        None => any(&facts.uris) || any(&facts.dns),
    }
}
