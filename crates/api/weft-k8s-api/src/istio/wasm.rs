//! `WasmPlugin` and `TrafficExtension`: a user's own filters.

use super::common::{PolicySelector, PolicyTargetReference, PortSelector};
use crate::macros::{spec, words};
use serde_json::{Map, Value};

spec! {
    /// A WebAssembly filter.
    pub struct WasmPlugin {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Older, single form of `targetRefs`.
        target_ref: Option<PolicyTargetReference>,
        /// Objects it is bound to instead.
        target_refs: Vec<PolicyTargetReference>,
        /// `oci://`, `https://`, `http://` or `file://`; without a scheme: `oci://`.
        url: String,
        /// SHA-256 of the module, hex.
        sha256: String,
        /// When the image is fetched again.
        image_pull_policy: ImagePullPolicy,
        /// Secret with registry credentials.
        image_pull_secret: String,
        /// Has no effect.
        verification_key: String,
        /// Configuration that the module gets.
        plugin_config: Map<String, Value>,
        /// Name of the plugin in the module.
        plugin_name: String,
        /// Place in the order of filters.
        phase: PluginPhase,
        /// Order within a phase, greatest first. Default: 0.
        priority: Option<i32>,
        /// What happens when the module fails.
        fail_strategy: FailStrategy,
        /// The module's virtual machine.
        vm_config: Option<VmConfig>,
        /// Which traffic. Default: all.
        #[serde(rename = "match")]
        matches: Vec<TrafficSelector>,
        /// HTTP or network filter.
        #[serde(rename = "type")]
        plugin_type: PluginType,
    }

    /// The module's virtual machine.
    pub struct VmConfig {
        /// Environment.
        env: Vec<EnvVar>,
    }

    /// An environment variable.
    pub struct EnvVar {
        /// Name.
        name: String,
        /// Where its value is from.
        value_from: EnvValueSource,
        /// Value, when INLINE.
        value: String,
    }

    /// Which traffic.
    pub struct TrafficSelector {
        /// Which side.
        mode: TrafficMode,
        /// Which ports. Default: all.
        ports: Vec<PortSelector>,
    }

    /// A user's own filter: WebAssembly or Lua.
    pub struct TrafficExtension {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Objects it is bound to instead.
        target_refs: Vec<PolicyTargetReference>,
        /// Place in the order of filters.
        phase: ExtensionPhase,
        /// Order within a phase, greatest first. Default: 0.
        priority: Option<i32>,
        /// Which traffic. Default: all.
        #[serde(rename = "match")]
        matches: Vec<TrafficSelector>,
        /// A WebAssembly module.
        wasm: Option<WasmExtension>,
        /// A Lua script.
        lua: Option<LuaExtension>,
    }

    /// A WebAssembly module.
    pub struct WasmExtension {
        /// `oci://`, `https://`, `http://` or `file://`; without a scheme: `oci://`.
        url: String,
        /// SHA-256 of the module, hex.
        sha256: String,
        /// When the image is fetched again.
        image_pull_policy: ImagePullPolicy,
        /// Secret with registry credentials.
        image_pull_secret: String,
        /// Has no effect.
        verification_key: String,
        /// Configuration that the module gets.
        plugin_config: Map<String, Value>,
        /// Name of the plugin in the module.
        plugin_name: String,
        /// What happens when the module fails.
        fail_strategy: FailStrategy,
        /// The module's virtual machine.
        vm_config: Option<VmConfig>,
        /// HTTP or network filter.
        #[serde(rename = "type")]
        plugin_type: PluginType,
    }

    /// A Lua script.
    pub struct LuaExtension {
        /// The script, at most 64 KiB.
        inline_code: String,
    }
}

words! {
    /// When the image is fetched again.
    pub enum ImagePullPolicy {
        /// `IfNotPresent`, or `Always` for the tag `latest`.
        #[default]
        UnspecifiedPolicy,
        /// When it is not there.
        #[serde(rename = "IfNotPresent")]
        IfNotPresent,
        /// Whenever the resource changes.
        #[serde(rename = "Always")]
        Always,
    }

    /// Place in the order of filters.
    pub enum PluginPhase {
        /// At the end, before the router.
        #[default]
        UnspecifiedPhase,
        /// Before Istio's authentication.
        Authn,
        /// Before Istio's authorization.
        Authz,
        /// Before Istio's statistics.
        Stats,
    }

    /// Place in the order of filters.
    pub enum ExtensionPhase {
        /// At the end, before the router.
        #[default]
        Unspecified,
        /// Before Istio's authentication.
        Authn,
        /// Before Istio's authorization.
        Authz,
        /// Before Istio's statistics.
        Stats,
    }

    /// What happens when the module fails.
    pub enum FailStrategy {
        /// Requests are refused.
        #[default]
        FailClose,
        /// Requests pass.
        FailOpen,
        /// The module is loaded again.
        FailReload,
    }

    /// HTTP or network filter.
    pub enum PluginType {
        /// As `HTTP`.
        #[default]
        UnspecifiedPluginType,
        /// HTTP filter.
        Http,
        /// Network filter.
        Network,
    }

    /// Where a variable's value is from.
    pub enum EnvValueSource {
        /// `value`.
        #[default]
        Inline,
        /// The proxy's own environment.
        Host,
    }

    /// Which side of a request.
    pub enum TrafficMode {
        /// As `CLIENT_AND_SERVER`.
        #[default]
        Undefined,
        /// Caller.
        Client,
        /// Callee.
        Server,
        /// Both.
        ClientAndServer,
    }
}
