//! Text from a server is shown on a terminal without any effect on it.

use std::sync::Arc;

use async_trait::async_trait;
use cairn::metrics::Metrics;
use cairn::server::{
    Export, ExportDescription, Exports, Greeting, ListEntry, ListenAddress, Listener, OpenError, Options,
    Server,
};

use super::ends_with;

/// A window title, a line end, a one-byte escape sequence, and a change of the direction of writing.
const RUDE: &str = "\x1b]0;owned\x07\nforged: \u{9b}2J\u{202e}";
const SHOWN: &str = "\\u{1b}]0;owned\\u{7}\\nforged: \\u{9b}2J\\u{202e}";

/// The exports of a malicious server.
struct Rude;

#[async_trait]
impl Exports for Rude {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        Ok(vec![ListEntry { name: RUDE.to_owned(), description: RUDE.to_owned() }])
    }

    async fn describe(&self, _name: &str) -> Result<ExportDescription, OpenError> {
        Err(OpenError::Refused(RUDE.to_owned()))
    }

    async fn open(&self, _name: &str) -> Result<Arc<dyn Export>, OpenError> {
        Err(OpenError::Refused(RUDE.to_owned()))
    }
}

#[tokio::test]
async fn text_of_a_server_is_one_line_without_escape_sequences() {
    let server = Server::new(Arc::new(Rude), Options::default(), Metrics::new().server());
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let ListenAddress::Tcp(address) = server.listen(listener, Greeting::Newstyle) else { panic!("not TCP") };
    let (host, port) = address.rsplit_once(':').expect("a port");
    let listed = ends_with(0, &["list", host, port]).await;
    assert_eq!(listed.stdout, format!("{SHOWN}\n"));
    let refused = ends_with(1, &["info", &format!("nbd://{address}/disk")]).await;
    assert!(refused.stderr.contains(SHOWN), "{refused:?}");
    assert_eq!(refused.stderr.trim_end_matches('\n').find(|c: char| c.is_control()), None, "{refused:?}");
}
