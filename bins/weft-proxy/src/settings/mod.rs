//! What a mesh proxy is told: by environment, by its proxy config, by the pod's labels and annotations. Reading only; what is
//! done with it stands elsewhere.
//!
//! Reading order: [`environment`] (variables and files), [`proxy_config`] (the `PROXY_CONFIG` object), [`agent`] (all of it
//! put together), [`node`] (who we tell the control plane that we are).

pub mod agent;
pub mod environment;
pub mod node;
pub mod proxy_config;

pub use agent::{AgentSettings, Scrape};
pub use environment::Environment;
