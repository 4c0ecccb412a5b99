//! What the integration tests share: processes, stores, gateways, misbehaving servers, and a proxy that
//! records and disturbs HTTP.

pub(crate) mod cairn;
pub(crate) mod certificates;
pub(crate) mod fake_bucket;
pub(crate) mod fake_s3;
pub(crate) mod files;
pub(crate) mod http;
#[allow(dead_code, reason = "the power cuts use the rest")]
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod marked_export;
pub(crate) mod memory_export;
pub(crate) mod minio;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod scripted_export;
pub(crate) mod wire;
