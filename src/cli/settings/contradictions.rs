//! Settings that are valid individually but contradict each other.
//!
//! Owns these rules, and must not report a value that is wrong by itself: that is an error of its own.
//! Invariant: every error names both settings, so that nobody relies on the one that would be ignored.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::given;
use crate::cli::listeners::Oldstyle;
use crate::cli::size::Wanted;
use crate::config::{self, Config};
use crate::server::ListenAddress;

/// Returns all contradictions.
pub(super) fn of(config: &Config) -> Vec<config::Error> {
    let mut errors = Vec::new();
    bounds(config, &mut errors);
    oldstyle_and_tls(config, &mut errors);
    one_use_of_an_address(config, &mut errors);
    errors
}

/// Limits of which the smaller one would always apply.
fn bounds(config: &Config, errors: &mut Vec<config::Error>) {
    let Config { store, server, lease, volumes, .. } = config;
    let mut refuse = |key, why: String| errors.push(config.refuse(key, why));
    if store.retry_base > store.retry_cap {
        refuse("store.retry_base", "must not be more than store.retry_cap".to_owned());
    }
    if server.bytes_in_flight.0 > server.total_bytes_in_flight.0 {
        let total = server.total_bytes_in_flight;
        let why = format!("must not be more than server.total_bytes_in_flight, which is {total}");
        refuse("server.bytes_in_flight", why);
    }
    if lease.head_interval > lease.ttl {
        let ttl = humantime::format_duration(lease.ttl);
        let why = format!(
            "must not be more than lease.ttl, which is {ttl}: the lease would expire before it is renewed"
        );
        refuse("lease.head_interval", why);
    }
    let created =
        volumes.create.iter().filter_map(|text| text.parse::<Wanted>().ok()).map(|wanted| wanted.name);
    let configured: BTreeSet<String> = created.chain(volumes.open.iter().cloned()).collect();
    if configured.len() > usize::try_from(volumes.maximum).expect("32 bits fit a usize") {
        let why = format!(
            "must be at least {}, the number of volumes in volumes.create and volumes.open",
            configured.len()
        );
        refuse("volumes.maximum", why);
    }
}

/// Oldstyle clients cannot use TLS, and have no certificate.
fn oldstyle_and_tls(config: &Config, errors: &mut Vec<config::Error>) {
    let Config { server, tls, .. } = config;
    if tls.mode == "off" {
        // Without TLS no client presents a certificate, so everybody could use the export.
        if !tls.subjects.is_empty() {
            errors.push(config.refuse(
                "tls.subjects",
                "has no effect, because Cairn checks no certificates if tls.mode is off",
            ));
        }
        return;
    }
    if tls.mode == "required" && !server.oldstyle.is_empty() {
        let why = "oldstyle clients cannot use TLS, but tls.mode is required";
        errors.push(config.refuse("server.oldstyle", why));
        return;
    }
    let exports =
        server.oldstyle.iter().filter_map(|text| text.parse::<Oldstyle>().ok()).map(|old| old.export);
    for export in exports {
        // What holds for a volume holds for its snapshots.
        let holds =
            |of: &str| export.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'));
        let is_its = |text: &&String| text.split_once('=').is_some_and(|(of, _)| holds(of));
        if let Some(subject) = tls.subjects.iter().find(is_its) {
            let why =
                format!("oldstyle clients present no certificate, but tls.subjects contains {subject:?}");
            errors.push(config.refuse("server.oldstyle", why));
        }
    }
}

/// An address serves one purpose. The default address of the admin server is an exception, because it may
/// remain unused.
fn one_use_of_an_address(config: &Config, errors: &mut Vec<config::Error>) {
    let Config { server, admin, .. } = config;
    let unix = |path: &String| given(path).map(|path| ListenAddress::Unix(PathBuf::from(path)));
    let mut uses: Vec<(&'static str, ListenAddress)> = Vec::new();
    let listen = server.listen.iter().filter_map(|text| text.parse().ok());
    uses.extend(listen.collect::<BTreeSet<_>>().into_iter().map(|address| ("server.listen", address)));
    let oldstyle = server.oldstyle.iter().filter_map(|text| text.parse::<Oldstyle>().ok());
    uses.extend(oldstyle.map(|old| ("server.oldstyle", old.address)));
    uses.extend(unix(&server.handover).map(|address| ("server.handover", address)));
    if config.is_given("admin.listen") && admin.listen != "none" {
        uses.extend(admin.listen.parse().ok().map(|address| ("admin.listen", address)));
    }
    if admin.socket != "none" {
        uses.extend(unix(&admin.socket).map(|address| ("admin.socket", address)));
    }
    for (n, (key, address)) in uses.iter().enumerate() {
        // Port 0 is a different port each time.
        let any = matches!(address, ListenAddress::Tcp(text) if text.ends_with(":0"));
        if let Some((other, _)) = uses[..n].iter().find(|(_, taken)| taken == address && !any) {
            errors.push(config.refuse(key, format!("{address} is already used by {other}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Vec<String> {
        let variable = |key: &str| format!("CAIRN_{}", key.to_uppercase().replace('.', "__"));
        let pairs = pairs.iter().map(|(key, value)| (variable(key).into(), (*value).into()));
        super::of(&config::load(None, pairs, []).unwrap()).iter().map(ToString::to_string).collect()
    }

    /// Pairs of settings that contradict each other. The error names both.
    #[test]
    fn contradictory_settings_are_refused_and_both_are_named() {
        for (one, other) in [
            (("server.oldstyle", "127.0.0.1:1=disk"), ("tls.mode", "required")),
            (("server.bytes_in_flight", "257MiB"), ("server.total_bytes_in_flight", "256MiB")),
            (("lease.head_interval", "2s"), ("lease.ttl", "1999ms")),
            (("store.retry_base", "2s"), ("store.retry_cap", "1s")),
            (("volumes.maximum", "1"), ("volumes.open", "a,b")),
            (("volumes.maximum", "2"), ("volumes.create", "a=1MiB,b=1MiB,c=1MiB")),
            (("tls.subjects", "disk=CN=vm"), ("tls.mode", "off")),
            (("server.oldstyle", "127.0.0.1:1=disk"), ("server.listen", "127.0.0.1:2,127.0.0.1:1")),
            // This is the default address.
            (("server.oldstyle", "127.0.0.1:10809=disk"), ("server.listen", "127.0.0.1:10809")),
            (("admin.listen", "127.0.0.1:1"), ("server.listen", "127.0.0.1:1")),
            (("admin.listen", "unix:/s"), ("server.handover", "/s")),
            (("admin.socket", "/s"), ("server.handover", "/s")),
            (("admin.socket", "/s"), ("server.listen", "unix:/s")),
            (("admin.socket", "/s"), ("admin.listen", "unix:/s")),
            (("server.handover", "/s"), ("server.listen", "unix:/s")),
            (("server.handover", "/s"), ("server.oldstyle", "unix:/s=disk")),
        ] {
            let errors = of(&[one, other]);
            let [error] = &errors[..] else { panic!("{one:?} {other:?}: {errors:?}") };
            assert!(error.starts_with(one.0) && error.contains(other.0), "{error}");
        }
        let alone = of(&[("server.oldstyle", "127.0.0.1:10809=disk")]);
        assert!(alone[0].contains("server.listen"), "{alone:?}");
        let twice = of(&[("server.oldstyle", "127.0.0.1:1=a,127.0.0.1:1=b")]);
        assert!(twice[0].contains("already used by server.oldstyle"), "{twice:?}");
        let subject = [("server.oldstyle", "127.0.0.1:1=disk"), ("tls.mode", "allowed")];
        let hidden = of(&[&subject[..], &[("tls.subjects", "other=CN=a,disk=CN=b")]].concat());
        assert!(hidden[0].starts_with("server.oldstyle") && hidden[0].contains("tls.subjects"), "{hidden:?}");
        let snapshot = [
            ("server.oldstyle", "127.0.0.1:1=disk@monday"),
            ("tls.mode", "allowed"),
            ("tls.subjects", "disk=CN=b"),
        ];
        let hidden = of(&snapshot);
        assert!(hidden[0].starts_with("server.oldstyle") && hidden[0].contains("tls.subjects"), "{hidden:?}");
    }

    #[test]
    fn compatible_settings_are_accepted() {
        for pairs in [
            &[][..],
            &[("server.oldstyle", "127.0.0.1:1=disk"), ("tls.mode", "allowed")],
            &[("server.oldstyle", "127.0.0.1:1=disk"), ("tls.mode", "allowed"), ("tls.subjects", "x=CN=a")],
            &[("server.oldstyle", "127.0.0.1:1=disk"), ("tls.mode", "allowed"), ("tls.subjects", "dis=CN=a")],
            &[("server.bytes_in_flight", "256MiB"), ("server.total_bytes_in_flight", "256MiB")],
            &[("lease.head_interval", "1s"), ("lease.ttl", "1s")],
            &[("volumes.maximum", "2"), ("volumes.open", "a,b"), ("volumes.create", "a=1MiB")],
            &[("server.listen", "127.0.0.1:0,[::1]:0"), ("admin.listen", "127.0.0.1:0")],
            &[("server.listen", "127.0.0.1:0,127.0.0.1:0"), ("server.oldstyle", "127.0.0.1:0=disk")],
            &[("server.listen", "127.0.0.1:9180")],
            &[("admin.socket", "none"), ("admin.listen", "none")],
            &[("tls.certificate", "/c"), ("tls.key", "/k")],
        ] {
            assert_eq!(of(pairs), Vec::<String>::new(), "{pairs:?}");
        }
    }
}
