//! Where settings come from: defaults < file < environment < flags, and what is wrong with them.
//!
//! Knows no setting by name. Invariants: every key that is given is known or an error; every error names the key, the
//! value, what is allowed, and where the value came from; all errors are told at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::environment::{self, Variable};
use super::kind::{Bound, Kind, quote};
use super::settings::{Config, Setting, reference};

/// What is wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// File.
        path: PathBuf,
        /// The system's or the parser's word.
        why: String,
    },
    /// There is no such key.
    #[error("unknown setting {key} ({origin}); {hint}")]
    Unknown {
        /// Key.
        key: String,
        /// Where it is.
        origin: String,
        /// What there is.
        hint: String,
    },
    /// A value that is not allowed.
    #[error("{key} = {value}: {why} ({origin})")]
    Invalid {
        /// Key.
        key: String,
        /// Value.
        value: String,
        /// What is allowed.
        why: String,
        /// Where it is.
        origin: String,
    },
}

/// All that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl Errors {
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

/// Where each setting came from, and its value there; those that have their default are not in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(BTreeMap<&'static str, (String, String)>);

impl Config {
    /// An error for a value whose form only another layer knows.
    #[must_use]
    pub fn refuse(&self, key: &'static str, why: impl fmt::Display) -> Error {
        let (value, origin) = self.sources.0.get(key).cloned().unwrap_or_else(|| {
            let named = |s: &Setting| key == format!("{}.{}", s.section, s.key);
            let default = reference().into_iter().find(named).map(|s| s.default);
            (format!("{:?}", default.unwrap_or_default()), "the default".to_owned())
        });
        Error::Invalid { key: key.to_owned(), value, why: why.to_string(), origin }
    }

    /// Keys whose value here is not the one there, in order.
    #[must_use]
    pub fn changed(&self, there: &Self) -> Vec<&'static str> {
        let keys = self.sources.0.keys().chain(there.sources.0.keys());
        let differs = |key: &&'static str| {
            let value = |of: &Self| of.sources.0.get(*key).map(|(value, _)| value.clone());
            value(self) != value(there)
        };
        let mut changed: Vec<_> = keys.copied().filter(differs).collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// Whether a setting was given, by whatever source.
    #[must_use]
    pub fn is_given(&self, key: &str) -> bool {
        self.sources.0.contains_key(key)
    }
}

/// A flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// Key.
    pub key: &'static str,
    /// As it is written on the command line.
    pub flag: &'static str,
    /// What it says.
    pub value: FlagValue,
}

/// What a flag says.
#[derive(Clone, Debug)]
pub enum FlagValue {
    /// A single value.
    One(String),
    /// A list, which replaces that of weaker sources.
    Many(Vec<String>),
}

/// Reads the settings.
///
/// # Errors
/// All that is wrong with the file, the environment and the flags.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: impl IntoIterator<Item = Flag>,
) -> Result<Config, Errors> {
    let mut errors = Errors::default();
    let mut figment = Figment::new();
    if let Some(path) = file {
        match read_file(path) {
            Ok(dict) => figment = figment.merge(Layer::new(format!("file {}", path.display()), dict)),
            Err(error) => errors.0.push(error),
        }
    }
    let mut variables = Layer::new("environment".to_owned(), Dict::new());
    for (name, value) in environment {
        match environment::read(&name, &value, &reference()) {
            Variable::NotOurs => {}
            Variable::Wrong(error) => errors.0.push(error),
            Variable::Setting { section, key, value } => {
                let origin = format!("environment variable {}", name.display());
                variables.insert(&section, &key, Value::from(value), origin);
            }
        }
    }
    let mut given = Layer::new("flags".to_owned(), Dict::new());
    for Flag { key, flag, value } in flags {
        let (section, key) = key.split_once('.').expect("a flag sets section.key");
        let value = match value {
            FlagValue::One(value) => Value::from(value),
            FlagValue::Many(values) => Value::from(values),
        };
        given.insert(section, key, value, format!("flag {flag}"));
    }
    let layers = Layers { figment: figment.merge(variables).merge(given) };
    layers.check_keys(&mut errors);
    match Config::read(&layers) {
        Ok(config) => errors.into_result(config),
        Err(more) => {
            errors.0.extend(more.0);
            Err(errors)
        }
    }
}

fn read_file(path: &Path) -> Result<Dict, Error> {
    let failed = |why: String| Error::File { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    Toml::from_str(&text).map_err(|e| failed(e.to_string().trim_end().to_owned()))
}

/// One source.
struct Layer {
    name: String,
    values: Dict,
    /// By `section.key`, where the source as a whole does not say it.
    origins: BTreeMap<String, String>,
}

impl Layer {
    fn new(name: String, values: Dict) -> Self {
        Self { name, values, origins: BTreeMap::new() }
    }

    fn insert(&mut self, section: &str, key: &str, value: Value, origin: String) {
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

/// All sources, the stronger over the weaker.
pub(super) struct Layers {
    figment: Figment,
}

impl Layers {
    fn origin(&self, value: &Value, path: &str) -> String {
        let keys: Vec<&str> = path.split('.').collect();
        let metadata = self.figment.get_metadata(value.tag());
        metadata.map_or_else(String::new, |m| m.interpolate(&Profile::Default, &keys))
    }

    /// Complains of every key that the table does not have.
    fn check_keys(&self, errors: &mut Errors) {
        let all: Dict = self.figment.extract().expect("a dictionary of any values is always one");
        let known = reference();
        let mut complain = |key: String, value: &Value, hint: String| {
            let origin = self.origin(value, &key);
            errors.0.push(Error::Unknown { key, origin, hint });
        };
        for section in all.keys() {
            let keys: Vec<&str> = known.iter().filter(|s| s.section == section).map(|s| s.key).collect();
            let hint = if keys.is_empty() {
                let mut sections: Vec<&str> = known.iter().map(|s| s.section).collect();
                sections.dedup();
                format!("the sections are {}", sections.join(", "))
            } else {
                format!("the settings of section {section} are {}", keys.join(", "))
            };
            // Read again, since extracting values loses where they came from.
            match self.figment.find_value(section).expect("it was just found") {
                Value::Dict(_, dict) => {
                    for (key, value) in dict.iter().filter(|(key, _)| !keys.contains(&key.as_str())) {
                        complain(format!("{section}.{key}"), value, hint.clone());
                    }
                }
                value => complain(section.clone(), &value, hint),
            }
        }
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
