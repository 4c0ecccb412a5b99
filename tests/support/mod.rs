//! What tests need beside Cairn: other programs, and servers that misbehave.

pub(crate) mod fake_s3;
pub(crate) mod minio;
