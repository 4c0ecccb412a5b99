//! Which environment variables are settings: `CAIRN_<SECTION>__<KEY>`.
//!
//! Owns the mapping between variables and settings, and must not know what a setting means. Kubernetes sets
//! variables for each Service of a namespace in every pod. For a Service named `cairn` or `cairn-…`, they
//! also begin with `CAIRN_`, but they are not settings. Invariant: any other variable that begins with
//! `CAIRN_` is a setting or an error.

use std::ffi::OsStr;

use super::error::Error;
use super::settings::Setting;

const PREFIX: &str = "CAIRN_";

/// The variable with the path of the configuration file. The command line reads it.
pub const CONFIG_FILE: &str = "CAIRN_CONFIG";

/// What a variable means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Variable {
    /// The variable does not concern Cairn, or is not a setting.
    NotOurs,
    /// A setting. Its key may turn out to be unknown.
    Setting { section: String, key: String, value: String },
    /// Meant as a setting, but wrong.
    Wrong(Error),
}

/// Determines what the variable `name` means.
pub(super) fn read(name: &OsStr, value: &OsStr, known: &[Setting]) -> Variable {
    let Some(name) = name.to_str() else { return Variable::NotOurs };
    let Some(rest) = name.strip_prefix(PREFIX) else { return Variable::NotOurs };
    if name == CONFIG_FILE {
        return Variable::NotOurs;
    }
    let Some((section, key)) = rest.split_once("__") else {
        return if is_of_kubernetes(rest) {
            Variable::NotOurs
        } else {
            Variable::Wrong(stray(name, rest, known))
        };
    };
    let (section, key) = (section.to_lowercase(), key.to_lowercase());
    match value.to_str() {
        Some(value) => Variable::Setting { section, key, value: value.to_owned() },
        None => Variable::Wrong(Error::Invalid {
            key: format!("{section}.{key}"),
            value: format!("{value:?}"),
            why: "must be UTF-8".to_owned(),
            origin: format!("environment variable {name}"),
        }),
    }
}

fn stray(name: &str, rest: &str, known: &[Setting]) -> Error {
    let joined = |s: &&Setting| format!("{}_{}", s.section, s.key).eq_ignore_ascii_case(rest);
    let hint = match known.iter().find(joined) {
        Some(s) => format!("write {}", variable(s)),
        None => "a setting is written CAIRN_<SECTION>__<KEY>, with two underscores in between".to_owned(),
    };
    Error::Unknown { key: name.to_owned(), origin: "environment".to_owned(), hint }
}

/// Returns the name of the variable that sets `setting`.
#[must_use]
pub fn variable(setting: &Setting) -> String {
    format!("{PREFIX}{}__{}", setting.section, setting.key).to_uppercase()
}

/// Returns whether `CAIRN_<rest>` is a variable that Kubernetes sets for a Service: `[NAME_]SERVICE_HOST`,
/// `[NAME_]SERVICE_PORT[_PORTNAME]`, or `[NAME_]PORT[_80_TCP[_PROTO|_PORT|_ADDR]]`.
fn is_of_kubernetes(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    if words.iter().any(|word| word.is_empty() || word.bytes().any(|b| !b.is_ascii_alphanumeric())) {
        return false;
    }
    (0..words.len()).any(|start| match words[start..] {
        ["SERVICE", "HOST"] | ["SERVICE", "PORT", ..] | ["PORT"] => true,
        ["PORT", number, "TCP" | "UDP" | "SCTP", ref rest @ ..] => {
            number.parse::<u16>().is_ok() && matches!(rest, [] | ["PROTO" | "PORT" | "ADDR"])
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::reference;

    fn of(name: &str) -> Variable {
        read(OsStr::new(name), OsStr::new("x"), &reference())
    }

    #[test]
    fn variables_of_kubernetes_are_ignored() {
        for name in [
            "CAIRN_SERVICE_HOST",
            "CAIRN_SERVICE_PORT",
            "CAIRN_SERVICE_PORT_NBD",
            "CAIRN_SERVICE_PORT_HTTP_METRICS",
            "CAIRN_PORT",
            "CAIRN_PORT_10809_TCP",
            "CAIRN_PORT_10809_TCP_PROTO",
            "CAIRN_PORT_10809_TCP_PORT",
            "CAIRN_PORT_10809_TCP_ADDR",
            "CAIRN_PORT_53_UDP",
            "CAIRN_STORE_SERVICE_HOST",
            "CAIRN_MY_GATEWAY_PORT_9180_TCP_ADDR",
            "PATH",
            "CAIRNSTORE__URL",
            "CAIRN_CONFIG",
        ] {
            assert_eq!(of(name), Variable::NotOurs, "{name}");
        }
    }

    #[test]
    fn two_underscores_make_a_setting() {
        let setting = |section: &str, key: &str| Variable::Setting {
            section: section.into(),
            key: key.into(),
            value: "x".into(),
        };
        assert_eq!(of("CAIRN_STORE__URL"), setting("store", "url"));
        assert_eq!(of("CAIRN_COMMIT__MAX_AGE"), setting("commit", "max_age"));
        assert_eq!(of("CAIRN_STORE__TYPO"), setting("store", "typo"));
        assert_eq!(of("CAIRN_SERVER__PORT"), setting("server", "port"), "not of Kubernetes");
    }

    #[test]
    fn other_variables_are_errors_with_a_hint() {
        for (name, hint) in [
            ("CAIRN_STORE_URL", "CAIRN_STORE__URL"),
            ("CAIRN_COMMIT_MAX_AGE", "CAIRN_COMMIT__MAX_AGE"),
            ("CAIRN_STORE", "CAIRN_<SECTION>__<KEY>"),
            ("CAIRN_", "CAIRN_<SECTION>__<KEY>"),
            ("CAIRN_PORT_X_TCP", "CAIRN_<SECTION>__<KEY>"),
            ("CAIRN_PORT_1_TCP_FOO", "CAIRN_<SECTION>__<KEY>"),
        ] {
            let Variable::Wrong(error) = of(name) else { panic!("{name} passes") };
            let message = error.to_string();
            assert!(message.contains(name) && message.contains(hint), "{message}");
        }
    }
}
