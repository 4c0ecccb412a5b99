//! The sources of settings in order of precedence, and how one setting is read from them.
//!
//! Owns the precedence, and must not know a setting by name. Invariant: an error names the source that the
//! value came from.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::error::{Error, Errors};
use super::kind::{Bound, Kind, quote};

/// For each setting that a source sets: the source, and the value as it was written. Settings at their
/// default are missing.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(pub(super) BTreeMap<&'static str, (String, String)>);

/// One source of settings.
pub(super) struct Layer {
    name: String,
    values: Dict,
    /// More precise origins by `section.key`, if the source as a whole does not say where a value was set.
    origins: BTreeMap<String, String>,
}

impl Layer {
    pub(super) fn new(name: String, values: Dict) -> Self {
        Self { name, values, origins: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, section: &str, key: &str, value: Value, origin: String) {
        let entry = self.values.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
        if let Value::Dict(_, dict) = entry {
            dict.insert(key.to_owned(), value);
        }
        self.origins.insert(format!("{section}.{key}"), origin);
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let (name, origins) = (self.name.clone(), self.origins.clone());
        Metadata::named(name.clone())
            .interpolater(move |_: &Profile, keys| origins.get(&keys.join(".")).unwrap_or(&name).clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// All sources. A later one takes precedence over an earlier one.
pub(super) struct Layers {
    pub(super) figment: Figment,
}

impl Layers {
    pub(super) fn origin(&self, value: &Value, path: &str) -> String {
        let keys: Vec<&str> = path.split('.').collect();
        let metadata = self.figment.get_metadata(value.tag());
        metadata.map_or_else(String::new, |m| m.interpolate(&Profile::Default, &keys))
    }

    /// Reads one setting.
    pub(super) fn read<K: Kind>(
        &self,
        path: &'static str,
        default: K,
        bound: &dyn Bound<K>,
        sources: &mut Sources,
        errors: &mut Errors,
    ) -> K {
        let Ok(value) = self.figment.find_value(path) else { return default };
        let origin = self.origin(&value, path);
        let read = K::read(&value).and_then(|read| {
            if bound.allows(&read) { Ok(read) } else { Err(format!("must be {}", bound.show())) }
        });
        match read {
            Ok(read) => {
                sources.0.insert(path, (quote(&value), origin));
                read
            }
            Err(why) => {
                let range = bound.show();
                let why = if range.is_empty() || why.contains(&range) {
                    why
                } else {
                    format!("{why}; allowed: {range}")
                };
                errors.0.push(Error::Invalid { key: path.to_owned(), value: quote(&value), why, origin });
                default
            }
        }
    }
}
