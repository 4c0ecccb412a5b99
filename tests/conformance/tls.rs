//! "TLS support": NOTLS is in [`super::options`]; here are SELECTIVETLS and FORCEDTLS, certificates and subjects.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use cairn::server::{
    Export, ExportDescription, Exports, Greeting, ListEntry, OpenError, Options, Tls, TlsError, TlsOptions,
};
use parking_lot::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

use crate::support::certificates::{Authority, Pair};
use crate::support::marked_export::MarkedExport;
use crate::support::memory_export::{MemoryExport, MemoryExports};
use crate::support::wire::*;

fn two_disks() -> Harness {
    let exports = MemoryExports::new(vec![
        Arc::new(MemoryExport::new("disk", 1 << 20)),
        Arc::new(MemoryExport::new("secret", 1 << 20)),
    ]);
    Harness::new(exports, Options::default())
}

/// A server of disks with these names.
fn harness_of(options: &TlsOptions, names: &[&str]) -> Harness {
    let disk = |name: &&str| Arc::new(MemoryExport::new(name, 1 << 20)) as Arc<dyn Export>;
    let disks = names.iter().map(disk).collect();
    Harness::new(MemoryExports::new(disks), Options::default()).with_tls(Tls::load(options).unwrap())
}

fn harness(options: &TlsOptions) -> Harness {
    two_disks().with_tls(Tls::load(options).unwrap())
}

/// Goes on with TLS.
async fn handshake(wire: Wire, config: Arc<ClientConfig>) -> io::Result<Wire> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(config).connect(name, wire.into_stream()).await?;
    Ok(Wire::over(stream))
}

/// STARTTLS, and TLS.
async fn start_tls(mut wire: Wire, config: Arc<ClientConfig>) -> Wire {
    assert_eq!(wire.haggle(STARTTLS, b"", REP_ACK).await, b"");
    handshake(wire, config).await.expect("the TLS handshake succeeds")
}

fn names(replies: &[OptionReply]) -> Vec<&[u8]> {
    replies
        .iter()
        .map(|reply| {
            let length = u32::from_be_bytes(*reply.data.first_chunk().unwrap());
            &reply.data[4..4 + usize::try_from(length).unwrap()]
        })
        .collect()
}

//= FORCEDTLS mode: the server MUST be prepared for a TLS handshake, and all further data MUST be sent and
//# received over TLS
#[tokio::test]
async fn after_starttls_everything_goes_over_tls() {
    for required in [false, true] {
        let authority = Authority::new();
        let harness = harness(&authority.tls(required));
        let mut wire = start_tls(harness.options().await, authority.client_config(None)).await;
        wire.go("disk").await;
        wire.send([&request(0, WRITE, 1, 0, 4)[..], b"data"].concat()).await;
        wire.expect(simple_reply(0, 1)).await;
        wire.send(request(0, READ, 2, 0, 100_000)).await;
        wire.expect([&simple_reply(0, 2)[..], b"data", &[0; 99_996]].concat()).await;
        wire.send(request(0, DISC, 3, 0, 0)).await;
        wire.expect_closed().await;
    }
}

#[tokio::test]
async fn where_tls_is_allowed_a_client_may_do_without() {
    let authority = Authority::new();
    let mut wire = harness(&authority.tls(false)).simple().await;
    wire.is_alive().await;
}

//= FORCEDTLS mode: it MUST reply with `NBD_REP_ERR_TLS_REQD` if TLS has not been initiated
#[tokio::test]
async fn where_tls_is_required_every_other_option_must_get_err_tls_reqd() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(true));
    let mut wire = harness.options().await;
    let contexts = meta_context("disk", &[]);
    for (code, data) in [
        (LIST, &b""[..]),
        (LIST, b"data"),
        (INFO, &info_request("disk", &[])),
        (INFO, b"malformed"),
        (GO, &info_request("nothing", &[])),
        (STRUCTURED_REPLY, b""),
        (LIST_META_CONTEXT, &contexts),
        (SET_META_CONTEXT, &contexts),
        (EXTENDED_HEADERS, b""),
        (99, &[0; 100_000]),
    ] {
        wire.haggle(code, data, REP_ERR_TLS_REQD).await;
    }
    wire.haggle(STARTTLS, b"data", REP_ERR_INVALID).await;
    wire.haggle(ABORT, b"", REP_ACK).await;
    wire.expect_closed().await;
}

//= FORCEDTLS mode: then as this request cannot error, it MUST terminate the session
#[tokio::test]
async fn where_tls_is_required_export_name_must_terminate_the_session() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(true));
    let mut wire = harness.options().await;
    wire.send(option(EXPORT_NAME, b"disk")).await;
    wire.expect_closed().await;
    let mut old = harness.connect();
    old.greet(0).await;
    old.send(option(EXPORT_NAME, b"disk")).await;
    old.expect_closed().await;
    harness.connect_with(Greeting::Oldstyle { export: "disk".to_owned() }).expect_closed().await;
}

//= SELECTIVETLS mode: MUST reply with `NBD_REP_ERR_INVALID`
#[tokio::test]
async fn starttls_over_tls_must_get_err_invalid() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(true));
    let mut wire = start_tls(harness.options().await, authority.client_config(None)).await;
    wire.haggle(STARTTLS, b"", REP_ERR_INVALID).await;
    wire.go("disk").await;
    wire.is_alive().await;
}

//= Option types: When this command succeeds, the server MUST NOT preserve any negotiation state
#[tokio::test]
async fn the_server_must_not_preserve_what_was_negotiated_before_tls() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(false));
    let mut wire = harness.options().await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    wire.replies_to(SET_META_CONTEXT, &meta_context("disk", &["base:allocation"])).await;
    let mut wire = start_tls(wire, authority.client_config(None)).await;
    wire.go("disk").await;
    wire.is_alive().await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;
}

//= FORCEDTLS mode: the server MUST be prepared for a TLS handshake, and all further data MUST be sent and
//# received over TLS
#[tokio::test]
async fn plaintext_that_was_injected_behind_starttls_is_forgotten() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(false));
    let mut wire = harness.connect();
    wire.expect(b"NBDMAGICIHAVEOPT\x00\x03").await;
    let injected = option(GO, &info_request("secret", &[]));
    wire.send([b"\x00\x00\x00\x03", &option(STARTTLS, b"")[..], &injected].concat()).await;
    wire.expect_reply(STARTTLS, REP_ACK).await;
    let mut wire = handshake(wire, authority.client_config(None)).await.unwrap();
    // The first answer over TLS is to the first option over TLS.
    assert_eq!(names(&wire.replies_to(LIST, b"").await), [&b"disk"[..], b"secret"]);
}

//= FORCEDTLS mode: If the handshake is unsuccessful (for instance the client's certificate does not match)
//# the server MUST terminate the session
#[tokio::test]
async fn a_tls_handshake_that_fails_must_end_the_session() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(false));
    let mut wire = harness.options().await;
    wire.haggle(STARTTLS, b"", REP_ACK).await;
    wire.send(option(GO, &info_request("disk", &[]))).await;
    // An alert of TLS may come first; no reply to an option does.
    let alert = wire.read(1).await;
    assert_eq!(alert, [21]);
    while !wire.is_dropped().await {}
}

#[tokio::test]
async fn a_server_with_another_certificate_is_not_trusted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut wire = harness(&ours.tls(false)).options().await;
    wire.haggle(STARTTLS, b"", REP_ACK).await;
    assert!(handshake(wire, theirs.client_config(None)).await.is_err());
}

/// Whether a client with this certificate gets as far as an option over TLS.
async fn is_admitted(harness: &Harness, authority: &Authority, own: Option<&Pair>) -> bool {
    let mut wire = harness.options().await;
    wire.haggle(STARTTLS, b"", REP_ACK).await;
    // With TLS 1.3 the client's part is over before the server has seen its certificate.
    let Ok(wire) = handshake(wire, authority.client_config(own)).await else { return false };
    let mut stream = wire.into_stream();
    if tokio::io::AsyncWriteExt::write_all(&mut stream, &option(LIST, b"")).await.is_err() {
        return false;
    }
    !Wire::over(stream).is_dropped().await
}

#[tokio::test]
async fn where_clients_need_certificates_only_those_of_the_authority_are_admitted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let client_authorities = Some(authority.certificate());
    let harness = harness(&TlsOptions { client_authorities, ..authority.tls(true) });
    assert!(is_admitted(&harness, &authority, Some(&authority.client("vm-1"))).await);
    assert!(!is_admitted(&harness, &authority, None).await);
    assert!(!is_admitted(&harness, &authority, Some(&other.client("vm-1"))).await);
    assert!(!is_admitted(&harness, &authority, Some(&authority.expired("vm-2"))).await);
}

fn for_subject(authority: &Authority, subject: &str) -> TlsOptions {
    let subjects = BTreeMap::from([("secret".to_owned(), BTreeSet::from([subject.to_owned()]))]);
    let client_authorities = Some(authority.certificate());
    TlsOptions { client_authorities, subjects, ..authority.tls(false) }
}

#[tokio::test]
async fn an_export_with_subjects_is_tls_only_and_hidden_among_those_that_do_not_exist() {
    let authority = Authority::new();
    let harness = harness(&for_subject(&authority, "CN=vm-1"));
    let mut wire = harness.options().await;
    assert_eq!(names(&wire.replies_to(LIST, b"").await), [b"disk"]);
    let secret = wire.haggle(INFO, &info_request("secret", &[]), REP_ERR_TLS_REQD).await;
    let nothing = wire.haggle(INFO, &info_request("nothing", &[]), REP_ERR_TLS_REQD).await;
    assert_eq!(secret, nothing);
    let secret = wire.haggle(GO, &info_request("secret", &[]), REP_ERR_TLS_REQD).await;
    let nothing = wire.haggle(GO, &info_request("nothing", &[]), REP_ERR_TLS_REQD).await;
    assert_eq!(secret, nothing);
    wire.send(option(EXPORT_NAME, b"secret")).await;
    wire.expect_closed().await;
}

//= SELECTIVETLS mode: The server MUST NOT send `NBD_REP_ERR_TLS_REQD` in response to any option other than
//# `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`
/// "The server MUST NOT send NBD_REP_ERR_TLS_REQD in response to any option other than NBD_OPT_INFO, NBD_OPT_GO and
/// NBD_OPT_EXPORT_NAME, and only in those cases in respect of a TLS-only or non-existent export."
#[tokio::test]
async fn where_tls_is_allowed_only_info_and_go_may_get_err_tls_reqd() {
    let authority = Authority::new();
    let harness = harness(&for_subject(&authority, "CN=vm-1"));
    let mut wire = harness.options().await;
    wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
    for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let query = |export| meta_context(export, &["base:allocation"]);
        let secret = wire.haggle(option, &query("secret"), REP_ERR_UNKNOWN).await;
        let nothing = wire.haggle(option, &query("nothing"), REP_ERR_UNKNOWN).await;
        assert_eq!(secret, nothing, "an export that needs TLS cannot be told from none");
        assert_eq!(wire.replies_to(option, &query("disk")).await.len(), 1);
    }
    wire.haggle(INFO, &info_request("secret", &[]), REP_ERR_TLS_REQD).await;
    // What failed has selected nothing, and the session goes on.
    wire.haggle(SET_META_CONTEXT, &meta_context("secret", &["base:allocation"]), REP_ERR_UNKNOWN).await;
    wire.go("disk").await;
    wire.fails(request(0, BLOCK_STATUS, 1, 0, 512), EINVAL).await;
}

#[tokio::test]
async fn an_export_with_subjects_is_for_them_alone() {
    let authority = Authority::new();
    let harness = harness(&for_subject(&authority, "CN=vm-1"));
    let client = |name: &str| authority.client_config(Some(&authority.client(name)));
    let mut admitted = start_tls(harness.options().await, client("vm-1")).await;
    assert_eq!(names(&admitted.replies_to(LIST, b"").await), [&b"disk"[..], b"secret"]);
    admitted.haggle(INFO, &info_request("nothing", &[]), REP_ERR_UNKNOWN).await;
    admitted.go("secret").await;
    admitted.is_alive().await;
    let mut other = start_tls(harness.options().await, client("vm-10")).await;
    assert_eq!(names(&other.replies_to(LIST, b"").await), [b"disk"]);
    other.haggle(GO, &info_request("secret", &[]), REP_ERR_UNKNOWN).await;
    other.go("disk").await;
    other.is_alive().await;
}

/// A snapshot of a volume is as secret as the volume, and an entry of its own only restricts it further.
#[tokio::test]
async fn the_subjects_of_an_export_hold_for_its_parts() {
    let authority = Authority::new();
    let mut options = for_subject(&authority, "CN=vm-1");
    let backup = BTreeSet::from(["CN=backup".to_owned(), "CN=vm-1".to_owned()]);
    options.subjects.insert("secret@monday".to_owned(), backup.clone());
    options.subjects.insert("disk@monday".to_owned(), backup);
    let exports = ["disk", "disk@monday", "secret", "secret@monday", "secret@monday@x", "secret-2"];
    let harness = harness_of(&options, &exports);
    let client = |name: &str| authority.client_config(Some(&authority.client(name)));
    for (name, seen) in [
        ("vm-1", &exports[..]),
        ("backup", &["disk", "disk@monday", "secret-2"]),
        ("vm-2", &["disk", "secret-2"]),
    ] {
        let mut wire = start_tls(harness.options().await, client(name)).await;
        let listed = wire.replies_to(LIST, b"").await;
        assert_eq!(names(&listed), seen.iter().map(|name| name.as_bytes()).collect::<Vec<_>>(), "{name}");
        for export in exports {
            if !seen.contains(&export) {
                wire.haggle(INFO, &info_request(export, &[]), REP_ERR_UNKNOWN).await;
                wire.haggle(GO, &info_request(export, &[]), REP_ERR_UNKNOWN).await;
            }
        }
        wire.go(seen[seen.len() - 1]).await;
        wire.is_alive().await;
    }
    let mut plain = harness.options().await;
    assert_eq!(names(&plain.replies_to(LIST, b"").await), [&b"disk"[..], b"secret-2"]);
    plain.haggle(GO, &info_request("secret@monday", &[]), REP_ERR_TLS_REQD).await;
}

/// A context that reveals something about an export is offered to those who may use that export.
#[tokio::test]
async fn the_subjects_of_an_export_hold_for_contexts_about_it() {
    let authority = Authority::new();
    let disk = MarkedExport::new(MemoryExport::new("disk", 1 << 20), ["x-test:below-512"]);
    let disk = disk.about("x-test:below-1024", "secret").about("x-test:below-2048", "other");
    let exports = MemoryExports::new(vec![Arc::new(disk)]);
    let tls = Tls::load(&for_subject(&authority, "CN=vm-1")).unwrap();
    let harness = Harness::new(exports, Options::default()).with_tls(tls);
    let client = |name: &str| authority.client_config(Some(&authority.client(name)));
    let (open, secret) = (["x-test:below-512", "x-test:below-2048"], "x-test:below-1024");
    for (subject, is_admitted) in [(None, false), (Some("vm-2"), false), (Some("vm-1"), true)] {
        let mut wire = harness.options().await;
        if let Some(name) = subject {
            wire = start_tls(wire, client(name)).await;
        }
        wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
        for code in [LIST_META_CONTEXT, SET_META_CONTEXT] {
            let all = [open[0], secret, open[1]];
            let told = wire.replies_to(code, &meta_context("disk", &all)).await;
            let told: Vec<&str> =
                told.iter().map(|reply| std::str::from_utf8(&reply.data[4..]).unwrap()).collect();
            let expected = if is_admitted { all.to_vec() } else { open.to_vec() };
            assert_eq!(told, expected, "{subject:?}");
        }
    }
}

/// Exports that put down which of their methods was called for which name.
struct Recorded {
    exports: MemoryExports,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Recorded {
    fn record(&self, method: &str, name: &str) {
        self.calls.lock().push(format!("{method} {name}"));
    }
}

#[async_trait]
impl Exports for Recorded {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        self.record("list", "");
        self.exports.list().await
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        self.record("describe", name);
        self.exports.describe(name).await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        self.record("open", name);
        self.exports.open(name).await
    }

    async fn conceal(&self, name: &str) -> OpenError {
        self.record("conceal", name);
        OpenError::Unknown(name.to_owned())
    }
}

/// For every client that may not use an export, with TLS and without: the answer is that for an export that does not
/// exist, and it comes from [`Exports::conceal`], which does the work of looking for one.
#[tokio::test]
async fn an_export_that_is_hidden_answers_as_one_that_does_not_exist() {
    let authority = Authority::new();
    for subject in [None, Some("vm-2")] {
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let exports = MemoryExports::new(vec![
            // The first is the default, too.
            Arc::new(MemoryExport::new("secret", 1 << 20)),
            Arc::new(MemoryExport::new("disk", 1 << 20)),
        ]);
        let recorded = Recorded { exports, calls: Arc::clone(&calls) };
        let tls = Tls::load(&for_subject(&authority, "CN=vm-1")).unwrap();
        let harness = Harness::new(recorded, Options::default()).with_tls(tls);
        let connect = async || {
            let wire = harness.options().await;
            match subject {
                None => wire,
                Some(name) => start_tls(wire, authority.client_config(Some(&authority.client(name)))).await,
            }
        };
        let mut wire = connect().await;
        assert_eq!(names(&wire.replies_to(LIST, b"").await), [b"disk"]);
        wire.haggle(STRUCTURED_REPLY, b"", REP_ACK).await;
        calls.lock().clear();
        for (code, method) in [(INFO, "describe"), (GO, "open"), (SET_META_CONTEXT, "describe")] {
            let asked = async |wire: &mut Wire, name: &str| {
                let contexts = meta_context(name, &["base:allocation"]);
                let data = if code == SET_META_CONTEXT { contexts } else { info_request(name, &[]) };
                wire.send(option(code, &data)).await;
                let reply = wire.option_reply().await;
                (reply.reply, String::from_utf8(reply.data).unwrap().replace(name, "NAME"))
            };
            let hidden = asked(&mut wire, "secret").await;
            let absent = asked(&mut wire, "absent").await;
            assert_eq!(hidden, absent);
            assert!([REP_ERR_UNKNOWN, REP_ERR_TLS_REQD].contains(&hidden.0), "{hidden:?}");
            let called = std::mem::take(&mut *calls.lock());
            assert_eq!(called, ["conceal secret".to_owned(), format!("{method} absent")]);
        }
        // The empty name stands for an export that is hidden.
        let code = if subject.is_some() { REP_ERR_UNKNOWN } else { REP_ERR_TLS_REQD };
        let told = wire.haggle(INFO, &info_request("", &[]), code).await;
        assert!(!String::from_utf8(told).unwrap().contains("secret"));
        for name in ["secret", "absent"] {
            let mut wire = connect().await;
            wire.send(option(EXPORT_NAME, name.as_bytes())).await;
            assert!(wire.is_dropped().await, "{name}");
        }
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_listens() {
    let authority = Authority::new();
    let good = authority.tls(false);
    let missing = TlsOptions { key: "/nonexistent".into(), ..good.clone() };
    assert!(matches!(Tls::load(&missing), Err(TlsError::File { .. })));
    let no_certificate = TlsOptions { certificate: good.key.clone(), ..good.clone() };
    assert!(matches!(Tls::load(&no_certificate), Err(TlsError::NoCertificate { .. })));
    let other = Authority::new();
    let stranger = TlsOptions { key: other.server().key, ..good };
    assert!(matches!(Tls::load(&stranger), Err(TlsError::Certificate(_))));
    let subjects = TlsOptions { client_authorities: None, ..for_subject(&authority, "CN=vm-1") };
    assert!(matches!(Tls::load(&subjects), Err(TlsError::SubjectsWithoutAuthorities { .. })));
}

#[tokio::test]
async fn certificates_that_are_replaced_hold_for_connections_that_come_after() {
    let (old, new) = (Authority::new(), Authority::new());
    let harness = harness(&old.tls(true));
    let mut before = start_tls(harness.options().await, old.client_config(None)).await;
    harness.server.set_tls(Some(Tls::load(&new.tls(true)).unwrap()));
    before.go("disk").await;
    start_tls(harness.options().await, new.client_config(None)).await.go("disk").await;
    let mut distrusting = harness.options().await;
    distrusting.haggle(STARTTLS, b"", REP_ACK).await;
    assert!(handshake(distrusting, old.client_config(None)).await.is_err());
}

//= TLS versions: NBD implementations supporting TLS MUST support TLS version 1.2
/// "NBD implementations supporting TLS MUST support TLS version 1.2, SHOULD support any later versions."
#[tokio::test]
async fn tls_1_2_must_be_supported_and_1_3_is() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(true));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = authority.client_config_of(&[version], None);
        let mut wire = start_tls(harness.options().await, config).await;
        wire.go("disk").await;
        wire.is_alive().await;
    }
}

//= Server-side requirements: The server MUST operate in NOTLS mode unless the server set flag
//# `NBD_FLAG_FIXED_NEWSTYLE` and the client replied with `NBD_FLAG_C_FIXED_NEWSTYLE` in the fixed newstyle
//# negotiation.
/// "The server MUST operate in NOTLS mode unless [...] the client replied with NBD_FLAG_C_FIXED_NEWSTYLE"; STARTTLS is not
/// known to such a client's newstyle.
#[tokio::test]
async fn a_client_without_fixed_newstyle_cannot_start_tls() {
    let authority = Authority::new();
    for required in [false, true] {
        let mut wire = harness(&authority.tls(required)).connect();
        wire.greet(0).await;
        wire.send(option(STARTTLS, b"")).await;
        wire.expect_closed().await;
    }
}

/// A TLS handshake counts as the client's part of the negotiation, however it is drawn out.
#[tokio::test(start_paused = true)]
async fn a_tls_handshake_that_does_not_go_on_is_closed_at_the_handshake_timeout() {
    let authority = Authority::new();
    let harness = harness(&authority.tls(true));
    let mut wire = harness.options().await;
    assert_eq!(wire.haggle(STARTTLS, b"", REP_ACK).await, b"");
    // A record of a ClientHello, of which little comes.
    wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    let begun = tokio::time::Instant::now();
    assert!(wire.is_dropped().await);
    assert!(begun.elapsed() <= Options::default().handshake_timeout);
    harness.tasks.join().await;
}
