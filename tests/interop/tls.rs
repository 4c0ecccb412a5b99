//! TLS with clients of others: libnbd and QEMU (GnuTLS) with valid and invalid certificates.

use std::path::Path;

use tempfile::TempDir;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::certificates::{Authority, Pair};
use crate::support::process::{Finished, command, finish, run};

/// A gateway with two volumes, `disk` and `secret`.
struct Encrypted {
    gateway: Gateway,
    authority: Authority,
    _store: Store,
}

impl Encrypted {
    async fn start(mode: &str, more: &[(&str, &str)]) -> Self {
        Self::with_certificate(mode, Authority::server, more).await
    }

    async fn with_certificate(mode: &str, own: fn(&Authority) -> Pair, more: &[(&str, &str)]) -> Self {
        let (authority, store) = (Authority::new(), Store::directory());
        let (Pair { certificate, key }, clients) = (own(&authority), authority.certificate());
        let setup = Setup::new(&store).create("disk", "64MiB").create("secret", "1MiB").tcp();
        let mut setup = setup
            .env("CAIRN_TLS__MODE", mode)
            .env("CAIRN_TLS__CERTIFICATE", certificate.to_str().unwrap())
            .env("CAIRN_TLS__KEY", key.to_str().unwrap());
        for (name, value) in more {
            setup = setup.env(name, &value.replace("{clients}", clients.to_str().unwrap()));
        }
        Self { gateway: setup.start().await, authority, _store: store }
    }

    /// Creates a directory with the certificates of a client.
    fn client(&self, own: Option<&Pair>) -> TempDir {
        self.authority.directory(None, own)
    }

    fn plain(&self, export: &str) -> String {
        self.gateway.uri(export)
    }

    fn uri(&self, export: &str, certificates: &Path) -> String {
        let port = self.gateway.port();
        format!("nbds://localhost:{port}/{export}?tls-certificates={}", certificates.display())
    }

    async fn nbdinfo(&self, export: &str, certificates: &Path) -> Finished {
        finish(&mut command(["nbdinfo", "--size", &self.uri(export, certificates)])).await
    }

    /// Returns the arguments that tell a program of QEMU about the gateway and its TLS.
    fn qemu(&self, program: &[&str], export: &str, certificates: &Path) -> tokio::process::Command {
        let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", certificates.display());
        let port = self.gateway.port();
        let image = format!("driver=nbd,host=localhost,port={port},export={export},tls-creds=tls0");
        let mut qemu = command(program);
        qemu.args(["--object", &object, "--image-opts", &image]);
        qemu
    }
}

const CLIENTS: (&str, &str) = ("CAIRN_TLS__CLIENT_AUTHORITIES", "{clients}");

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn libnbd_and_qemu_use_tls_and_read_what_the_other_wrote() {
    let at = Encrypted::start("required", &[]).await;
    let certificates = at.client(None);
    let uri = at.uri("disk", certificates.path());
    let shell = |script: &str| {
        let allowed = "h.set_uri_allow_local_file(True)\nimport os\nh.connect_uri(os.environ['AT'])\n";
        let mut shell = command(["nbdsh", "-c", &format!("{allowed}{script}")]);
        shell.env("PATH", "/usr/bin:/bin").env("AT", &uri);
        shell
    };
    run(&mut shell("h.pwrite(b'\\x5a' * 100000, 4096); h.flush()")).await;
    let mut io = at.qemu(&["qemu-io"], "disk", certificates.path());
    let said =
        run(io.args(["-c", "read -P 0x5a 4096 100000", "-c", "write -P 7 1M 64k", "-c", "flush"])).await;
    assert!(!said.contains("failed"), "{said}");
    let check = "assert h.pread(65536, 1048576) == b'\\x07' * 65536; print(h.get_tls_negotiated())";
    let said = run(&mut shell(check)).await;
    assert_eq!(said.trim(), "True");
    let out = certificates.path().join("out");
    let copy = ["nbdcopy", "--connections=4", &uri, out.to_str().unwrap()];
    run(&mut command(copy)).await;
    assert_eq!(&std::fs::read(out).unwrap()[4095..4097], b"\0\x5a");
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd, nbd-client"]
async fn plaintext_clients_learn_nothing_if_tls_is_required() {
    let at = Encrypted::start("required", &[]).await;
    for line in [&["nbdinfo", "--list"][..], &["nbdinfo"], &["qemu-img", "info", "-f", "raw"]] {
        let refused = finish(command(line.iter().copied()).arg(at.plain("disk"))).await;
        assert!(!refused.status.success(), "{refused:?}");
        let said = refused.stdout + &refused.stderr;
        assert!(!said.contains("secret") && !said.contains("67108864"), "{said}");
    }
    let list = ["nbd-client", "-l", "127.0.0.1", &at.gateway.port().to_string()].map(str::to_owned);
    let refused = finish(&mut command(list)).await;
    assert!(!(refused.stdout + &refused.stderr).contains("secret"));
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn plaintext_clients_are_served_if_tls_is_allowed() {
    let at = Encrypted::start("allowed", &[]).await;
    let certificates = at.client(None);
    assert_eq!(at.nbdinfo("disk", certificates.path()).await.stdout.trim(), "67108864");
    assert_eq!(run(&mut command(["nbdinfo", "--size", &at.plain("disk")])).await.trim(), "67108864");
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn clients_reject_a_gateway_that_they_cannot_trust() {
    let at = Encrypted::start("required", &[]).await;
    let stranger = Authority::new().directory(None, None);
    let refused = at.nbdinfo("disk", stranger.path()).await;
    assert!(!refused.status.success() && refused.stderr.contains("certificate"), "{refused:?}");
    let refused = finish(&mut at.qemu(&["qemu-img", "info"], "disk", stranger.path())).await;
    assert!(!refused.status.success() && refused.stderr.contains("certificate"), "{refused:?}");
    let expired = Encrypted::with_certificate("required", Authority::expired_server, &[]).await;
    let refused = expired.nbdinfo("disk", expired.client(None).path()).await;
    assert!(!refused.status.success() && refused.stderr.contains("certificate"), "{refused:?}");
}

#[tokio::test]
#[ignore = "needs QEMU, libnbd"]
async fn clients_must_present_a_certificate_if_required() {
    let at = Encrypted::start("required", &[CLIENTS]).await;
    let (good, expired) = (at.authority.client("vm-1"), at.authority.expired("vm-2"));
    let strangers = Authority::new();
    let stranger = strangers.client("vm-1");
    for (own, admitted) in
        [(Some(&good), true), (None, false), (Some(&stranger), false), (Some(&expired), false)]
    {
        let certificates = at.client(own);
        let info = at.nbdinfo("disk", certificates.path()).await;
        assert_eq!(info.status.success(), admitted, "{info:?}");
        let image = finish(&mut at.qemu(&["qemu-img", "info"], "disk", certificates.path())).await;
        assert_eq!(image.status.success(), admitted, "{image:?}");
    }
}

#[tokio::test]
#[ignore = "needs libnbd"]
async fn only_listed_subjects_can_use_an_export() {
    let at = Encrypted::start("allowed", &[CLIENTS, ("CAIRN_TLS__SUBJECTS", "secret=CN=vm-1")]).await;
    let (one, other) =
        (at.client(Some(&at.authority.client("vm-1"))), at.client(Some(&at.authority.client("vm-2"))));
    assert_eq!(at.nbdinfo("secret", one.path()).await.stdout.trim(), "1048576");
    assert!(!at.nbdinfo("secret", other.path()).await.status.success());
    assert_eq!(at.nbdinfo("disk", other.path()).await.stdout.trim(), "67108864");
    for (certificates, names) in [(&one, vec!["disk", "secret"]), (&other, vec!["disk"])] {
        let list = ["nbdinfo", "--list", "--json", &at.uri("", certificates.path())].map(str::to_owned);
        let list: serde_json::Value = serde_json::from_str(&run(&mut command(list)).await).unwrap();
        let found: Vec<_> =
            list["exports"].as_array().unwrap().iter().map(|export| export["export-name"].clone()).collect();
        assert_eq!(found, names);
    }
    let plain = finish(&mut command(["nbdinfo", &at.plain("secret")])).await;
    let nothing = finish(&mut command(["nbdinfo", &at.plain("nothing")])).await;
    assert!(!plain.status.success());
    assert_eq!(plain.stderr.replace("secret", ""), nothing.stderr.replace("nothing", ""));
    let mut process = at.gateway.process;
    process.wait_for("the refusal", |line| line.contains("CN=vm-2").then_some(())).await;
}
