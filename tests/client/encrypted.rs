//! The client over TLS: whom it trusts, who it says it is, and what comes before TLS.

use std::path::Path;

use cairn::client::{self, Client, Error, Options, Uri};
use cairn::protocol::negotiate_client::{ClientTls, HandshakeError};
use tokio_rustls::TlsAcceptor;

use super::others::{Server, exercise};
use crate::support::certificates::{Authority, Pair};
use crate::support::wire::*;

/// What a server and a client of one authority need.
fn pki(authority: &Authority) -> tempfile::TempDir {
    authority.directory(Some(&authority.server()), Some(&authority.client("client")))
}

fn tls_uri(server: &Server, certificates: &Path) -> Uri {
    let (socket, certificates) = (server.socket(), certificates.display().to_string());
    format!("nbds+unix:///?socket={}&tls-certificates={certificates}", socket.display()).parse().unwrap()
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn nbdkit_over_tls_with_client_certificates() {
    let authority = Authority::new();
    let directory = pki(&authority);
    let certificates = format!("--tls-certificates={}", directory.path().display());
    let server = Server::nbdkit(&["--tls=require", &certificates, "--tls-verify-peer", "memory", "1M"]).await;
    let client = Client::connect(&tls_uri(&server, directory.path()), &Options::default()).await.unwrap();
    exercise(&client).await;
    client.disconnect().await;
    let plain = Client::connect(&server.uri(""), &Options::default()).await;
    assert!(matches!(plain, Err(Error::Handshake(HandshakeError::Refused { .. }))), "{plain:?}");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_server_of_another_authority_is_not_trusted() {
    let (theirs, ours) = (pki(&Authority::new()), pki(&Authority::new()));
    let certificates = format!("--tls-certificates={}", theirs.path().display());
    let server = Server::nbdkit(&["--tls=on", &certificates, "memory", "1M"]).await;
    let refused = Client::connect(&tls_uri(&server, ours.path()), &Options::default()).await;
    assert!(matches!(refused, Err(Error::Tls(_))), "{refused:?}");
    let mut trusting = tls_uri(&server, ours.path());
    trusting.tls.as_mut().unwrap().verify_peer = false;
    exercise(&Client::connect(&trusting, &Options::default()).await.unwrap()).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn qemu_over_tls() {
    let authority = Authority::new();
    let directory = pki(&authority);
    let object = format!(
        "--object=tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir={}",
        directory.path().display()
    );
    let server = Server::qemu(&[&object, "--tls-creds=tls0"]).await;
    let client = Client::connect(&tls_uri(&server, directory.path()), &Options::default()).await.unwrap();
    exercise(&client).await;
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn opportunistic_tls_uses_it_where_it_is() {
    let authority = Authority::new();
    let directory = pki(&authority);
    let certificates = format!("--tls-certificates={}", directory.path().display());
    let server = Server::nbdkit(&["--tls=require", &certificates, "memory", "1M"]).await;
    let mut options = Options { tls: ClientTls::Opportunistic, ..Options::default() };
    options.tls_options.authorities = Some(authority.certificate());
    exercise(&Client::connect(&server.uri(""), &options).await.unwrap()).await;
}

/// nbdkit with this certificate, and with the authority of its clients.
async fn nbdkit(authority: &Authority, own: &Pair) -> (Server, tempfile::TempDir) {
    let directory = authority.directory(Some(own), None);
    let certificates = format!("--tls-certificates={}", directory.path().display());
    let server = Server::nbdkit(&["--tls=require", &certificates, "--tls-verify-peer", "memory", "1M"]).await;
    (server, directory)
}

async fn connect(server: &Server, certificates: &Path) -> Result<Client, Error> {
    Client::connect(&tls_uri(server, certificates), &Options::default()).await
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_certificate_whose_time_is_over_is_not_trusted() {
    let authority = Authority::new();
    let ours = authority.directory(None, Some(&authority.client("client")));
    let (good, _files) = nbdkit(&authority, &authority.server()).await;
    connect(&good, ours.path()).await.unwrap();
    let (expired, _files) = nbdkit(&authority, &authority.expired_server()).await;
    let refused = connect(&expired, ours.path()).await.unwrap_err();
    assert!(matches!(&refused, Error::Tls(error) if error.to_string().contains("expired")), "{refused}");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_certificate_of_another_host_is_not_trusted() {
    let authority = Authority::new();
    let ours = authority.directory(None, Some(&authority.client("client")));
    let (server, _files) = nbdkit(&authority, &authority.server()).await;
    let mut uri = tls_uri(&server, ours.path());
    uri.tls.as_mut().unwrap().hostname = Some("example.com".to_owned());
    let refused = Client::connect(&uri, &Options::default()).await.unwrap_err();
    assert!(matches!(&refused, Error::Tls(error) if error.to_string().contains("name")), "{refused}");
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_server_that_asks_who_the_client_is_gets_the_certificate_or_refuses() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (server, _files) = nbdkit(&authority, &authority.server()).await;
    for (own, admitted) in [
        (Some(authority.client("client")), true),
        (None, false),
        (Some(other.client("client")), false),
        (Some(authority.expired("expired")), false),
    ] {
        let ours = authority.directory(None, own.as_ref());
        // With TLS 1.3 the client's part is over before the server has seen its certificate.
        let connected = connect(&server, ours.path()).await;
        assert_eq!(connected.is_ok(), admitted, "{connected:?}");
    }
}

#[tokio::test]
#[ignore = "needs nbdkit"]
async fn a_list_may_need_tls_too() {
    let authority = Authority::new();
    let ours = authority.directory(None, Some(&authority.client("client")));
    let (server, _files) = nbdkit(&authority, &authority.server()).await;
    let uri = tls_uri(&server, ours.path());
    assert_eq!(client::list(&uri, &Options::default()).await.unwrap().len(), 1);
    assert_eq!(client::info(&uri, &Options::default()).await.unwrap().0.disk.size_bytes, 1 << 20);
    let refused = client::list(&server.uri(""), &Options::default()).await;
    assert!(matches!(refused, Err(Error::Handshake(HandshakeError::Refused { .. }))), "{refused:?}");
}

/// "S: 64 bits 0x3e889045565a9, 32 bits option, 32 bits reply type, 32 bits length, data".
fn reply(code: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let magic = b"\x00\x03\xe8\x89\x04\x55\x65\xa9";
    [magic, &code.to_be_bytes()[..], &reply.to_be_bytes(), &length, data].concat()
}

//= Termination of the session during option haggling: This MUST be followed by the client shutting down TLS
//# (if it is running), and the client dropping the connection.
/// "[ABORT] MUST be followed by the client shutting down TLS (if it is running), and the client dropping the connection."
#[tokio::test]
async fn abort_is_followed_by_the_end_of_tls() {
    let authority = Authority::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let uri: Uri = format!("nbds://localhost:{port}/disk").parse().unwrap();
    let mut options = Options { structured_replies: false, extended_headers: false, ..Options::default() };
    options.tls_options.authorities = Some(authority.certificate());
    // LIST that is answered, INFO that is refused.
    for goal in [LIST, INFO] {
        let serve = async {
            let mut server = Wire::over(listener.accept().await.unwrap().0);
            server.send(b"NBDMAGICIHAVEOPT\x00\x03").await;
            server.expect(b"\x00\x00\x00\x03").await;
            server.expect(option(STARTTLS, b"")).await;
            server.send(reply(STARTTLS, REP_ACK, b"")).await;
            let acceptor = TlsAcceptor::from(authority.server_config());
            let stream = acceptor.accept(server.into_stream()).await.unwrap();
            let mut server = Wire::over(stream);
            if goal == LIST {
                server.expect(option(LIST, b"")).await;
                server.send(reply(LIST, REP_ACK, b"")).await;
            } else {
                server.expect(option(INFO, &info_request("disk", &[1, 2, 3]))).await;
                server.send(reply(INFO, REP_ERR_UNKNOWN, b"")).await;
            }
            server.expect(option(ABORT, b"")).await;
            server.send(reply(ABORT, REP_ACK, b"")).await;
            let mut stream = server.into_stream();
            // Without close_notify rustls takes the end for one that somebody else has made.
            let mut rest = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await.expect("TLS is shut down");
            assert!(rest.is_empty(), "{rest:?}");
        };
        if goal == LIST {
            let (listed, ()) = tokio::join!(client::list(&uri, &options), serve);
            assert_eq!(listed.unwrap().len(), 0);
        } else {
            let (refused, ()) = tokio::join!(client::info(&uri, &options), serve);
            assert!(matches!(refused, Err(Error::Handshake(HandshakeError::Refused { .. }))), "{refused:?}");
        }
    }
}

//= Client-side requirements: If the client receives `NBD_REP_ACK` in response, it MUST immediately upgrade
//# the session to TLS.
/// Whoever stands in between can put plaintext behind the server's last word before TLS: an export that is not there.
#[tokio::test]
async fn plaintext_that_was_injected_behind_the_acknowledgement_of_starttls_is_forgotten() {
    let authority = Authority::new();
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut options = Options { tls: ClientTls::Required, ..Options::default() };
    options.tls_options.authorities = Some(authority.certificate());
    options.structured_replies = false;
    options.extended_headers = false;
    let serve = async {
        let mut server = Wire::over(theirs);
        server.send(b"NBDMAGICIHAVEOPT\x00\x03").await;
        server.expect(b"\x00\x00\x00\x03").await;
        server.expect(option(STARTTLS, b"")).await;
        let injected = reply(GO, REP_INFO, b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01");
        let acknowledged = reply(GO, REP_ACK, b"");
        server.send([reply(STARTTLS, REP_ACK, b""), injected, acknowledged].concat()).await;
        let acceptor = TlsAcceptor::from(authority.server_config());
        let mut server = Wire::over(acceptor.accept(server.into_stream()).await.unwrap());
        server.expect(option(GO, &info_request("disk", &[1, 2, 3]))).await;
        server.send(reply(GO, REP_INFO, b"\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01")).await;
        server.send(reply(GO, REP_ACK, b"")).await;
        server
    };
    let (client, _server) = tokio::join!(Client::connect_over(ours, "disk", &options), serve);
    assert_eq!(client.unwrap().size_bytes(), 1 << 20);
}
