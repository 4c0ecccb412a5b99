//! Who may connect to the Unix sockets for NBD: their mode and group.
//!
//! Owns the syntax of both settings, and must not create a socket. Invariant: the owner of a socket can
//! always connect to it.

use crate::config::{self, Config};
use crate::server::SocketPermissions;

/// The file with the names of groups. A program without the C library's name services knows no other source.
const GROUPS: &str = "/etc/group";

/// Converts the settings. Each error names its setting.
pub(super) fn permissions(config: &Config) -> Result<SocketPermissions, Vec<config::Error>> {
    let of = |key, text: &str, parse: fn(&str) -> Result<u32, String>| {
        let given = (!text.is_empty()).then(|| parse(text));
        given.transpose().map_err(|why| config.refuse(key, why))
    };
    let mode = of("server.socket_mode", &config.server.socket_mode, parse_mode);
    let group = of("server.socket_group", &config.server.socket_group, parse_group);
    match (mode, group) {
        (Ok(mode), Ok(group)) => Ok(SocketPermissions { mode, group }),
        (mode, group) => Err([mode.err(), group.err()].into_iter().flatten().collect()),
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let bad = || "must be permissions in octal, such as 0660".to_owned();
    let digits = text.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(text);
    if digits.len() != 3 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(bad());
    }
    let mode = u32::from_str_radix(digits, 8).map_err(|_| bad())?;
    // A successor finds out by connecting whether a gateway still listens at the same path.
    if mode & 0o600 == 0o600 { Ok(mode) } else { Err("its owner must be able to read and write".to_owned()) }
}

fn parse_group(text: &str) -> Result<u32, String> {
    // The largest number means "do not change" to chown(2).
    let number = text.parse().ok().filter(|number| *number != u32::MAX);
    let named = || {
        let groups = std::fs::read_to_string(GROUPS).unwrap_or_default();
        let mut entries = groups.lines().map(|line| line.split(':'));
        entries.find_map(|mut entry| (entry.next()? == text).then(|| entry.nth(1)?.parse().ok())?)
    };
    number.or_else(named).ok_or_else(|| format!("must be a number, or the name of a group in {GROUPS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        for (text, mode) in
            [("0660", 0o660), ("660", 0o660), ("0600", 0o600), ("0777", 0o777), ("606", 0o606)]
        {
            assert_eq!(parse_mode(text), Ok(mode), "{text}");
        }
        for bad in ["", "66", "0o660", "0680", "00660", "1777", "u=rw", "060", "0060", "-660", "+660"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }

    /// Group 0 is `root` on every Linux.
    #[test]
    fn groups_are_numbers_or_names() {
        assert_eq!((parse_group("65532"), parse_group("root")), (Ok(65_532), Ok(0)));
        for bad in ["", "root:", "x", "4294967295", "-1"] {
            assert!(parse_group(bad).is_err(), "{bad}");
        }
    }
}
