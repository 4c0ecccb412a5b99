//! What `cairn serve` prints once it serves: its addresses, and what to type next.
//!
//! Owns these suggestions, and must not know the server. Invariant: every suggestion can be typed as it is,
//! whatever the names are. Only the directory of certificates may differ.

use std::fmt::Write as _;

use super::output;
use crate::client::uri::{Address, DEFAULT_PORT, Uri, UriTls};
use crate::server::{Greeting, ListenAddress};

/// Where QEMU users keep `ca-cert.pem`, and their own certificate if one is required.
const CERTIFICATES: &str = "/etc/pki/qemu";

/// The facts to print.
pub(super) struct Welcome<'a> {
    /// Addresses of the listeners, and the kind of their clients.
    pub(super) addresses: &'a [(ListenAddress, Greeting)],
    /// Whether clients must use TLS.
    pub(super) encrypted: bool,
    /// Names of the configured volumes.
    pub(super) volumes: &'a [String],
    /// Address of metrics and health.
    pub(super) metrics: Option<&'a ListenAddress>,
    /// Address of the admin socket.
    pub(super) admin_socket: Option<&'a ListenAddress>,
}

impl Welcome<'_> {
    /// Prints everything, if a client can connect.
    pub(super) fn print(&self) {
        if self.addresses.is_empty() {
            return;
        }
        // If nobody reads it, the gateway serves all the same.
        output::announce(&self.text());
    }

    /// Logs the addresses instead, because standard output belongs to a client.
    pub(super) fn log(&self) {
        for line in self.listening() {
            tracing::info!("{line}");
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").expect("a String takes all");
        self.listening().into_iter().for_each(&mut line);
        self.suggestions().into_iter().for_each(&mut line);
        match self.metrics {
            Some(ListenAddress::Tcp(address)) => {
                line(format!("metrics and health: http://{address}/metrics"));
            }
            Some(unix) => line(format!("metrics and health: HTTP on {unix}")),
            None => {}
        }
        if let Some(ListenAddress::Unix(path)) = self.admin_socket {
            let option = quote(&format!("--gateway={}", path.display()));
            line(format!("admin socket: cairn volume list {option}"));
        }
        text
    }

    /// Returns a line for each listener.
    fn listening(&self) -> Vec<String> {
        let of = |(address, greeting): &(ListenAddress, Greeting)| {
            let uri = uri(address, "", self.encrypted).to_string();
            let uri = uri.trim_end_matches('/');
            match greeting {
                Greeting::Newstyle => format!("listening on {uri}"),
                Greeting::Oldstyle { export } => format!("oldstyle, {export}: listening on {uri}"),
            }
        };
        self.addresses.iter().map(of).collect()
    }

    /// Returns what to type next.
    fn suggestions(&self) -> Vec<String> {
        let newstyle = self.addresses.iter().find(|(_, greeting)| *greeting == Greeting::Newstyle);
        let Some((address, _)) = newstyle else { return Vec::new() };
        let Some(volume) = self.volumes.first() else {
            let how = "create one with `cairn volume create NAME SIZE` or --create NAME=SIZE";
            return vec![format!("no volume is configured; {how}")];
        };
        // Clients connect to one address, not to all of them.
        let address = match address {
            ListenAddress::Tcp(text) => {
                ListenAddress::Tcp(text.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:"))
            }
            unix @ ListenAddress::Unix(_) => unix.clone(),
        };
        let uri = uri(&address, volume, self.encrypted);
        let quoted = quote(&uri.to_string());
        let mut lines =
            vec!["try:".to_owned(), format!("  nbdinfo {quoted}"), format!("  nbdcopy disk.img {quoted}")];
        lines.push(format!("  {}", qemu(&uri)));
        lines.extend(nbd_client(&uri).map(|line| format!("  {line}")));
        lines
    }
}

/// Returns the URI of an export at a listener. Its `Display` encodes what must be encoded.
pub(super) fn uri(address: &ListenAddress, export: &str, encrypted: bool) -> Uri {
    let tls = UriTls { hostname: None, verify_peer: true, certificates: None };
    let address = match address {
        ListenAddress::Unix(path) => Address::Unix(path.clone()),
        ListenAddress::Tcp(text) => {
            // After binding, the address is a number with a port.
            let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
            let host = host.trim_matches(['[', ']']).to_owned();
            Address::Tcp { host, port: port.parse().unwrap_or(DEFAULT_PORT) }
        }
    };
    Uri { address, export: export.to_owned(), tls: encrypted.then_some(tls) }
}

/// Returns how QEMU opens a disk. QEMU has no URI for TLS; it uses an object and options of its own.
fn qemu(uri: &Uri) -> String {
    if uri.tls.is_none() {
        let file = quote(&format!("file={uri},format=raw,if=virtio,cache=writeback,discard=unmap"));
        return format!("qemu-system-x86_64 -drive {file}");
    }
    // Within the options, a comma in a value is doubled.
    let value = |text: &str| text.replace(',', ",,");
    let server = match &uri.address {
        Address::Tcp { host, port } => format!("server.type=inet,server.host={host},server.port={port}"),
        // There is no host whose name the certificate could contain. QEMU has this option since 7.0.
        Address::Unix(path) => {
            let path = value(&path.to_string_lossy());
            format!("server.type=unix,server.path={path},tls-hostname=localhost")
        }
    };
    let export = value(&uri.export);
    let object = quote(&format!("tls-creds-x509,id=tls0,endpoint=client,dir={CERTIFICATES}"));
    let disk =
        quote(&format!("driver=nbd,node-name=disk,export={export},{server},tls-creds=tls0,discard=unmap"));
    format!("qemu-system-x86_64 -object {object} -blockdev {disk} -device virtio-blk-pci,drive=disk")
}

/// Returns how the kernel opens a disk. `nbd-client` has its own options for TLS, and does not support TLS on
/// Unix sockets.
fn nbd_client(uri: &Uri) -> Option<String> {
    if uri.tls.is_some() {
        return None;
    }
    let (export, server) = (
        quote(&uri.export),
        match &uri.address {
            Address::Tcp { host, port } => format!("{host} {port}"),
            Address::Unix(path) => format!("-unix {}", quote(&path.to_string_lossy())),
        },
    );
    Some(format!("nbd-client -N {export} {server} /dev/nbd0"))
}

/// Quotes a word for a shell's command line.
fn quote(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) && !text.contains("://") {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> ListenAddress {
        ListenAddress::Tcp(address.to_owned())
    }

    fn said(addresses: &[(ListenAddress, Greeting)], encrypted: bool, volumes: &[&str]) -> String {
        let volumes: Vec<String> = volumes.iter().map(|name| (*name).to_owned()).collect();
        Welcome { addresses, encrypted, volumes: &volumes, metrics: None, admin_socket: None }.text()
    }

    fn text(addresses: &[ListenAddress], volumes: &[&str]) -> String {
        let newstyle = |address: &ListenAddress| (address.clone(), Greeting::Newstyle);
        said(&addresses.iter().map(newstyle).collect::<Vec<_>>(), false, volumes)
    }

    #[test]
    fn tls_and_oldstyle_are_shown() {
        let oldstyle = Greeting::Oldstyle { export: "disk".to_owned() };
        let addresses = [(tcp("127.0.0.1:1"), oldstyle), (tcp("127.0.0.1:2"), Greeting::Newstyle)];
        let text = said(&addresses, true, &["disk"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "oldstyle, disk: listening on nbds://127.0.0.1:1");
        assert_eq!(lines[1], "listening on nbds://127.0.0.1:2");
        assert!(lines.contains(&"  nbdinfo 'nbds://127.0.0.1:2/disk'"), "{text}");
        assert!(!text.contains("nbd-client") && !text.contains("file=nbds"), "{text}");
        assert!(text.contains("server.host=127.0.0.1,server.port=2,tls-creds=tls0"), "{text}");
    }

    #[test]
    fn every_listener_has_its_line() {
        let text = text(&[tcp("127.0.0.1:10809"), ListenAddress::Unix("/run/c.sock".into())], &["disk"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "listening on nbd://127.0.0.1:10809");
        assert_eq!(lines[1], "listening on nbd+unix:///?socket=/run/c.sock");
        assert!(lines.contains(&"  nbdinfo 'nbd://127.0.0.1:10809/disk'"), "{text}");
        assert!(lines.contains(&"  nbd-client -N disk 127.0.0.1 10809 /dev/nbd0"), "{text}");
    }

    #[test]
    fn what_to_type_names_an_address_that_can_be_reached() {
        let of = |address| text(&[address], &["d"]);
        assert!(of(tcp("0.0.0.0:1")).contains("'nbd://127.0.0.1:1/d'"));
        assert!(of(tcp("[::]:1")).contains("nbd-client -N d ::1 1 /dev/nbd0"));
        assert!(of(tcp("[::1]:1")).contains("listening on nbd://[::1]:1\n"));
        let unix = of(ListenAddress::Unix("/s".into()));
        assert!(unix.contains("file=nbd+unix:///d?socket=/s,format=raw"), "{unix}");
        assert!(unix.contains("nbd-client -N d -unix /s /dev/nbd0"), "{unix}");
    }

    #[test]
    fn paths_are_encoded_in_uris_and_quoted_in_command_lines() {
        let path = "/run/it's 100%,&?#/ä";
        let text = text(&[ListenAddress::Unix(path.into())], &["d"]);
        let socket = "socket=/run/it%27s%20100%25%2C%26%3F%23/%C3%A4";
        assert!(text.starts_with(&("listening on nbd+unix:///?".to_owned() + socket + "\n")), "{text}");
        assert!(text.contains(&("nbdinfo 'nbd+unix:///d?".to_owned() + socket + "'\n")), "{text}");
        assert!(text.contains(r"nbd-client -N d -unix '/run/it'\''s 100%,&?#/ä' /dev/nbd0"), "{text}");
        let unix = [(ListenAddress::Unix("/a,b".into()), Greeting::Newstyle)];
        assert!(said(&unix, true, &["d"]).contains("server.path=/a,,b,tls-hostname="));
    }

    #[test]
    fn without_volumes_it_says_how_to_make_one() {
        assert!(text(&[tcp("127.0.0.1:1")], &[]).contains("cairn volume create NAME SIZE"));
    }
}
