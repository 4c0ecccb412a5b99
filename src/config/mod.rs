//! Configuration: every setting, its default and range, and where its value comes from.
//!
//! Knows no other layer: what a value means to them is theirs. Invariant: a [`Config`] was read whole, from
//! known keys only, and each value is within its range.

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
pub use error::{Error, Errors};
pub use load::{Flag, FlagValue, load};
pub use settings::{
    Admin, Cache, Commit, Config, Journal, Lease, Log, Server, Setting, Store, Tls, Volumes, reference,
};
pub use size::{Size, SizeError};

/// The reference of all settings as a table in Markdown.
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
