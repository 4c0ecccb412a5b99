//! What `cairn serve` suggests can be typed as it is: libnbd's tools and QEMU accept its URIs and options.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::certificates::Authority;
use crate::support::process::{command, run};

/// A gateway, its suggestions, and a directory in which to type them.
struct Suggested {
    _gateway: Gateway,
    lines: Vec<String>,
    at: TempDir,
    certificates: Option<TempDir>,
    _store: Store,
}

impl Suggested {
    /// Starts a gateway with such a listener, with or without TLS.
    async fn by(listen: impl FnOnce(Setup, &Path) -> Setup, encrypted: bool) -> Self {
        let (store, at) = (Store::directory(), tempfile::tempdir().expect("a directory"));
        let mut setup = listen(Setup::new(&store).create("disk", "1MiB"), at.path());
        let mut certificates = None;
        let authority = Authority::new();
        if encrypted {
            let own = authority.server_by_number();
            setup = setup
                .env("CAIRN_TLS__MODE", "required")
                .env("CAIRN_TLS__CERTIFICATE", own.certificate.to_str().unwrap())
                .env("CAIRN_TLS__KEY", own.key.to_str().unwrap());
            certificates = Some(authority.directory(None, None));
        }
        let mut gateway = setup.start().await;
        let found = |lines: &[String]| {
            let last = lines.iter().any(|line| line.starts_with("  qemu-system-x86_64 "));
            last.then(|| lines.iter().filter_map(|line| line.strip_prefix("  ")).map(str::to_owned).collect())
        };
        let lines: Vec<String> = gateway.process.wait_until("its suggestions", found).await;
        std::fs::write(at.path().join("disk.img"), vec![7; 1 << 20]).expect("an image can be written");
        Self { _gateway: gateway, lines, at, certificates, _store: store }
    }

    /// Returns the suggestion for a program, with the directory of certificates of this test.
    fn line(&self, program: &str) -> String {
        let found = self.lines.iter().find(|line| line.split(' ').next() == Some(program));
        let line = found.unwrap_or_else(|| panic!("no {program} in {:?}", self.lines));
        match &self.certificates {
            Some(at) => line.replace("/etc/pki/qemu", &at.path().display().to_string()),
            None => line.clone(),
        }
    }

    /// Types a line into a shell. Returns its output.
    async fn typed(&self, line: &str) -> String {
        let mut shell = command(["sh", "-c", line]);
        shell.current_dir(self.at.path());
        if let Some(certificates) = &self.certificates {
            // Where libnbd looks for what the URI does not contain.
            let home = self.at.path().join("home");
            let of_libnbd = home.join(".pki/libnbd");
            std::fs::create_dir_all(&of_libnbd).expect("a directory");
            std::fs::copy(certificates.path().join("ca-cert.pem"), of_libnbd.join("ca-cert.pem"))
                .expect("a certificate");
            shell.env("HOME", home);
        }
        run(&mut shell).await
    }

    /// Returns the words into which a shell splits a line.
    async fn words(&self, line: &str) -> Vec<String> {
        let said = self.typed(&format!("set -- {line}; printf '%s\\n' \"$@\"")).await;
        said.lines().map(str::to_owned).collect()
    }

    async fn all_work(&self) {
        assert!(self.typed(&self.line("nbdinfo")).await.contains("export-size: 1048576"), "{:?}", self.lines);
        self.typed(&self.line("nbdcopy")).await;
        let qemu = self.line("qemu-system-x86_64");
        let machine = "-nodefaults -machine pc,accel=tcg -S -display none -monitor stdio";
        let said = self.typed(&format!("printf 'info block\\nquit\\n' | {qemu} {machine}")).await;
        assert!(said.contains("nbd"), "{said}");
        let words = self.words(&qemu).await;
        let after = |option: &str| {
            let at =
                words.iter().position(|word| word == option).unwrap_or_else(|| panic!("{option}: {words:?}"));
            words[at + 1].clone()
        };
        let mut image = command(["qemu-img", "compare", "-f", "raw", "disk.img"]);
        image.current_dir(self.at.path());
        if self.certificates.is_some() {
            // The program names its only node itself.
            let (object, disk) = (after("-object"), after("-blockdev").replace("node-name=disk,", ""));
            image = command(["qemu-img", "info", "--object", &object, "--image-opts", &disk]);
        } else {
            let drive = after("-drive");
            let file = drive.strip_prefix("file=").and_then(|drive| drive.split(",format=raw").next());
            image.args(["-F", "raw", file.expect("a file")]);
        }
        run(&mut image).await;
    }
}

/// Returns a path with every character that is special in a URI, in QEMU's options or in a shell.
fn strange(at: &Path) -> PathBuf {
    let directory = at.join("a b,c&d?e#f%41'\"$g=+ö");
    std::fs::create_dir_all(&directory).expect("a directory");
    directory.join("nbd.sock")
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn over_tcp() {
    let suggested = Suggested::by(|setup, _| setup.tcp(), false).await;
    suggested.all_work().await;
    assert!(suggested.line("nbd-client").starts_with("nbd-client -N disk 127.0.0.1 "));
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd, nbd-client"]
async fn over_a_unix_socket_of_any_name() {
    let suggested = Suggested::by(|setup, at| setup.unix(&strange(at)), false).await;
    suggested.all_work().await;
    let words = suggested.words(&suggested.line("nbd-client")).await;
    let path = strange(suggested.at.path()).display().to_string();
    assert_eq!(words, ["nbd-client", "-N", "disk", "-unix", &path, "/dev/nbd0"]);
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn over_tcp_with_tls() {
    Suggested::by(|setup, _| setup.tcp(), true).await.all_work().await;
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn over_a_unix_socket_of_any_name_with_tls() {
    Suggested::by(|setup, at| setup.unix(&strange(at)), true).await.all_work().await;
}
