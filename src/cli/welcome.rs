//! What `cairn serve` says on standard output once it serves: where, and what to type next.

use std::fmt::Write as _;

use super::output;
use crate::server::{Greeting, ListenAddress};

/// Prints where it listens, a line each, and how to connect.
pub(super) fn print(
    addresses: &[(ListenAddress, Greeting)],
    encrypted: bool,
    volumes: &[String],
    admin: Option<&ListenAddress>,
) {
    let mut text = text(addresses, encrypted, volumes);
    match admin {
        Some(ListenAddress::Tcp(address)) => {
            text.push_str(&format!("metrics and health: http://{address}/metrics\n"))
        }
        Some(unix) => text.push_str(&format!("metrics and health: HTTP on {unix}\n")),
        None => {}
    }
    // Nobody reads: that is no reason not to serve.
    output::announce(&text);
}

/// The NBD URI of an export.
fn uri(address: &ListenAddress, encrypted: bool, export: &str) -> String {
    let scheme = if encrypted { "nbds" } else { "nbd" };
    match address {
        ListenAddress::Tcp(address) => format!("{scheme}://{address}/{export}"),
        ListenAddress::Unix(path) => format!("{scheme}+unix:///{export}?socket={}", path.display()),
    }
}

fn text(addresses: &[(ListenAddress, Greeting)], encrypted: bool, volumes: &[String]) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes all");
    for (address, greeting) in addresses {
        let uri = uri(address, encrypted, "");
        let uri = uri.trim_end_matches('/');
        match greeting {
            Greeting::Newstyle => line(format!("listening on {uri}")),
            Greeting::Oldstyle { export } => line(format!("oldstyle, {export}: listening on {uri}")),
        }
    }
    let newstyle = addresses.iter().find(|(_, greeting)| *greeting == Greeting::Newstyle);
    let Some((address, _)) = newstyle else { return text };
    // Clients connect to an address, not to all of them.
    let address = match address {
        ListenAddress::Tcp(text) => {
            ListenAddress::Tcp(text.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:"))
        }
        unix @ ListenAddress::Unix(_) => unix.clone(),
    };
    let Some(volume) = volumes.first() else {
        line(
            "no volume is configured; make one with `cairn volume create NAME SIZE` or --create NAME=SIZE"
                .into(),
        );
        return text;
    };
    let uri = uri(&address, encrypted, volume);
    line("try:".to_owned());
    line(format!("  nbdinfo '{uri}'"));
    line(format!("  nbdcopy disk.img '{uri}'"));
    line(format!(
        "  qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio,cache=writeback,discard=unmap'"
    ));
    match &address {
        // It has TLS by options of its own, and not on Unix sockets.
        _ if encrypted => {}
        ListenAddress::Tcp(address) => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "10809"));
            let host = host.trim_matches(['[', ']']);
            line(format!("  nbd-client -N {volume} {host} {port} /dev/nbd0"));
        }
        ListenAddress::Unix(path) => {
            line(format!("  nbd-client -N {volume} -unix {} /dev/nbd0", path.display()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> ListenAddress {
        ListenAddress::Tcp(address.to_owned())
    }

    fn text(addresses: &[ListenAddress], volumes: &[String]) -> String {
        let newstyle = |address: &ListenAddress| (address.clone(), Greeting::Newstyle);
        super::text(&addresses.iter().map(newstyle).collect::<Vec<_>>(), false, volumes)
    }

    #[test]
    fn tls_and_oldstyle_are_told() {
        let oldstyle = Greeting::Oldstyle { export: "disk".to_owned() };
        let addresses = [(tcp("127.0.0.1:1"), oldstyle), (tcp("127.0.0.1:2"), Greeting::Newstyle)];
        let text = super::text(&addresses, true, &["disk".to_owned()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "oldstyle, disk: listening on nbds://127.0.0.1:1");
        assert_eq!(lines[1], "listening on nbds://127.0.0.1:2");
        assert!(lines.contains(&"  nbdinfo 'nbds://127.0.0.1:2/disk'"), "{text}");
        assert!(!text.contains("nbd-client"), "{text}");
    }

    #[test]
    fn every_listener_has_its_line() {
        let text =
            text(&[tcp("127.0.0.1:10809"), ListenAddress::Unix("/run/c.sock".into())], &["disk".to_owned()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "listening on nbd://127.0.0.1:10809");
        assert_eq!(lines[1], "listening on nbd+unix:///?socket=/run/c.sock");
        assert!(lines.contains(&"  nbdinfo 'nbd://127.0.0.1:10809/disk'"), "{text}");
        assert!(lines.contains(&"  nbd-client -N disk 127.0.0.1 10809 /dev/nbd0"), "{text}");
    }

    #[test]
    fn what_to_type_names_an_address_that_can_be_reached() {
        let of = |address| text(&[address], &["d".to_owned()]);
        assert!(of(tcp("0.0.0.0:1")).contains("'nbd://127.0.0.1:1/d'"));
        assert!(of(tcp("[::]:1")).contains("nbd-client -N d ::1 1 /dev/nbd0"));
        let unix = of(ListenAddress::Unix("/s".into()));
        assert!(unix.contains("file=nbd+unix:///d?socket=/s,format=raw"), "{unix}");
        assert!(unix.contains("nbd-client -N d -unix /s /dev/nbd0"), "{unix}");
    }

    #[test]
    fn without_volumes_it_says_how_to_make_one() {
        assert!(text(&[tcp("127.0.0.1:1")], &[]).contains("cairn volume create NAME SIZE"));
    }
}
