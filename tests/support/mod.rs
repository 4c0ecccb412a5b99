//! What the integration tests share: processes, stores, gateways, and a proxy that watches and disturbs HTTP.
//!
//! Nothing here knows Cairn's library beyond `task::Tasks`: the product is driven from outside, as its users do.

pub(crate) mod cairn;
pub(crate) mod files;
pub(crate) mod http;
pub(crate) mod minio;
pub(crate) mod process;
pub(crate) mod proxy;
