//! Codes of messages about objects: their names, and how much they weigh.
//!
//! Source: Istio's reference, "Configuration Analysis Messages"; codes without `IST` are words of ours.

/// How much a message weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Something may not be meant so.
    Warning,
    /// Something does not work.
    Error,
}

impl Level {
    /// The word, as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

/// Name and level of a code.
pub fn about(code: &str) -> (&'static str, Level) {
    match code {
        "IST0101" => ("ReferencedResourceNotFound", Level::Error),
        "IST0102" => ("NamespaceNotInjected", Level::Info),
        "IST0103" => ("PodMissingProxy", Level::Warning),
        "IST0106" => ("SchemaValidationError", Level::Error),
        "IST0109" => ("ConflictingMeshGatewayVirtualServiceHosts", Level::Error),
        "IST0110" => ("ConflictingSidecarWorkloadSelectors", Level::Error),
        "IST0111" => ("MultipleSidecarsWithoutWorkloadSelectors", Level::Error),
        "IST0112" => ("VirtualServiceDestinationPortSelectorRequired", Level::Error),
        "IST0145" => ("ConflictingGateways", Level::Error),
        "OtherRevision" => ("OtherRevision", Level::Info),
        "InvalidCertificate" => ("InvalidCertificate", Level::Warning),
        "CertificateHostMismatch" => ("CertificateHostMismatch", Level::Warning),
        _ => ("Warning", Level::Warning),
    }
}

/// The page that explains a code; `None` for ours.
pub fn page(code: &str) -> Option<String> {
    let number = code.to_ascii_lowercase();
    code.starts_with("IST").then(|| format!("https://istio.io/latest/docs/reference/config/analysis/{number}/"))
}
