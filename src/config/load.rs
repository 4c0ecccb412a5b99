//! Loads the settings. The precedence is: defaults < file < environment < flags.
//!
//! Owns the sources and the search for unknown keys, and must not know a setting by name. Invariants: every
//! key is known or an error. Every error names the key, the value, what is allowed, and where the value was
//! set. All errors are reported at once.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use figment::Figment;
use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Value};

use super::environment::{self, Variable};
use super::error::{Error, Errors};
use super::layers::{Layer, Layers};
use super::settings::{Config, Setting, reference};

impl Config {
    /// Creates an error for a value whose syntax only another layer knows.
    #[must_use]
    pub fn refuse(&self, key: &'static str, why: impl fmt::Display) -> Error {
        let (value, origin) = self.sources.0.get(key).cloned().unwrap_or_else(|| {
            let named = |s: &Setting| key == format!("{}.{}", s.section, s.key);
            let default = reference().into_iter().find(named).map(|s| s.default);
            (format!("{:?}", default.unwrap_or_default()), "the default".to_owned())
        });
        Error::Invalid { key: key.to_owned(), value, why: why.to_string(), origin }
    }

    /// Returns the keys whose value differs between `self` and `there`, in order.
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

    /// Returns whether any source sets this key.
    #[must_use]
    pub fn is_given(&self, key: &str) -> bool {
        self.sources.0.contains_key(key)
    }
}

/// A flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key, as `section.key`.
    pub key: &'static str,
    /// The flag as it is written on the command line.
    pub flag: &'static str,
    /// The value of the flag.
    pub value: FlagValue,
}

/// The value of a flag.
#[derive(Clone, Debug)]
pub enum FlagValue {
    /// A single value.
    One(String),
    /// A list. It replaces the list of sources with lower precedence.
    Many(Vec<String>),
}

/// Loads the settings.
///
/// # Errors
/// Everything that is wrong with the file, the environment and the flags.
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
    check_keys(&layers, &mut errors);
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

/// Adds an error for every key that the table does not contain.
fn check_keys(layers: &Layers, errors: &mut Errors) {
    let all: Dict = layers.figment.extract().expect("a dictionary of any values is always one");
    let known = reference();
    let mut complain = |key: String, value: &Value, hint: String| {
        let origin = layers.origin(value, &key);
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
        // Read again, because extracting a value loses its origin.
        match layers.figment.find_value(section).expect("it was just found") {
            Value::Dict(_, dict) => {
                for (key, value) in dict.iter().filter(|(key, _)| !keys.contains(&key.as_str())) {
                    complain(format!("{section}.{key}"), value, hint.clone());
                }
            }
            value => complain(section.clone(), &value, hint),
        }
    }
}
