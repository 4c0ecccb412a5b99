//! Configuration: every setting with its default and range, and where its value comes from.
//!
//! Owns the settings, and must not know any other layer: each layer decides what a value means to it.
//! Invariant: a [`Config`] was loaded completely, from known keys only, and each value is within its range.

mod environment;
mod error;
mod kind;
mod layers;
mod load;
mod settings;
mod size;
#[cfg(test)]
mod tests;

pub use environment::{CONFIG_FILE, variable};
pub(crate) use error::without_user;
pub use error::{Error, Errors};
pub use load::{Flag, FlagValue, load};
pub use settings::{
    Admin, Cache, Commit, Config, Journal, Lease, Log, Server, Setting, Store, Tls, Volumes, reference,
};
pub use size::{Size, SizeError};

/// Returns the reference of all settings as a Markdown table.
#[must_use]
pub fn reference_table() -> String {
    let mut table = "| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n".to_owned();
    for Setting { section, key, kind, default, range, meaning } in reference() {
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        let default = code(&default);
        table.push_str(&format!("| `{section}.{key}` | {kind} | {default} | {range} | {meaning} |\n"));
    }
    table
}
