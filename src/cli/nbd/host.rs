//! Serves a single export: `cairn nbd serve`, and the serving half of `cairn nbd mirror`.
//!
//! Owns the server and its signals, and must not know volumes. Invariant: it reports that it listens only
//! once it does, and drains before it exits.

use std::future::Future;
use std::sync::Arc;

use super::args::{Host, Serve};
use super::file::{FileExport, named};
use crate::cli::error::{Error, NbdError};
use crate::cli::listeners::{Door, Inherited, Listeners, Oldstyle, Plan};
use crate::cli::output;
use crate::cli::process::Signals;
use crate::cli::text::printable;
use crate::cli::welcome::uri;
use crate::server::{
    Drained, Export, Greeting, ListenAddress, NoMetrics, Options, Server, SingleExport, Tls, TlsOptions,
};

/// Executes `cairn nbd serve`.
pub(super) async fn serve_file(args: Serve, inherited: Inherited) -> Result<(), Error> {
    let file = named(&args.file, FileExport::open(&args.file, &args.host.exportname, args.read_only))?;
    let hosted = Hosted::start(&args.host, Arc::new(file), inherited).await?;
    hosted.until_told(std::future::pending()).await;
    Ok(())
}

/// An export that is being served.
pub(super) struct Hosted {
    server: Server,
    signals: Signals,
    stream: Option<Box<dyn crate::server::Stream>>,
}

impl Hosted {
    /// Starts to listen, and prints the address.
    pub(super) async fn start(
        host: &Host,
        export: Arc<dyn Export>,
        inherited: Inherited,
    ) -> Result<Self, Error> {
        let signals = Signals::new()?;
        let tls = host.encryption.certfile.as_ref().map(|pem| {
            Tls::load(&TlsOptions {
                required: true,
                certificate: pem.clone(),
                key: pem.clone(),
                client_authorities: None,
                subjects: std::collections::BTreeMap::new(),
            })
        });
        let tls = tls.transpose().map_err(NbdError::Tls)?;
        let listen_given = host.socket.is_some() || host.address.is_some() || host.port.is_some();
        let plan = Plan { listen: vec![host.listen_address()], listen_given, ..Plan::default() };
        // Whoever passed the sockets knows their addresses, and may use standard output for something else.
        let is_ours = inherited.is_empty();
        let listeners = Listeners::open(&plan, inherited, None).await?;
        Oldstyle::check(&listeners.oldstyle(), tls.as_ref())?;
        let Listeners { nbd, stream, .. } = listeners;
        let exports = SingleExport::new(host.exportname.clone(), export);
        let mut server = Server::new(Arc::new(exports), Options::default(), NoMetrics);
        let encrypted = tls.is_some();
        if let Some(tls) = tls {
            server = server.with_tls(tls);
        }
        for Door { listener, greeting, .. } in nbd {
            let address = server.listen(listener, greeting);
            if is_ours {
                mention(&format!("listening on {}", uri(&address, &host.exportname, encrypted)));
            }
        }
        Ok(Self { server, signals, stream })
    }

    /// Serves until a signal arrives, or until the initial connection ends. `background` runs at the same
    /// time and is dropped at the end.
    pub(super) async fn until_told(self, background: impl Future<Output = ()>) -> Drained {
        let Self { server, mut signals, stream } = self;
        let client = async {
            match stream {
                Some(stream) => server.serve_stream(stream, Greeting::Newstyle).await,
                None => std::future::pending().await,
            }
        };
        let background = async {
            background.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            signal = signals.next() => tracing::info!("{signal}: finishing the commands in flight"),
            () = client => tracing::info!("the client has disconnected"),
            () = background => {}
        }
        server.drain().await
    }
}

impl Host {
    fn listen_address(&self) -> ListenAddress {
        if let Some(path) = &self.socket {
            return ListenAddress::Unix(path.clone());
        }
        let port = self.port.unwrap_or(crate::client::uri::DEFAULT_PORT);
        match self.address.as_deref().unwrap_or("127.0.0.1") {
            ip if ip.contains(':') => ListenAddress::Tcp(format!("[{ip}]:{port}")),
            host => ListenAddress::Tcp(format!("{host}:{port}")),
        }
    }
}

/// Prints a line of output and waits until it is written. A failure is not an error.
pub(super) fn say(line: &str) {
    if let Err(error) = output::answer(&format!("{}\n", printable(line))) {
        tracing::debug!("nothing printed: {error}");
    }
}

/// Prints a value as JSON, which has its own escapes.
pub(super) fn say_json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(value).expect("numbers, texts and lists are JSON");
    if let Err(error) = output::answer(&format!("{text}\n")) {
        tracing::debug!("nothing printed: {error}");
    }
}

/// Prints an optional line, without waiting for anybody to read it.
pub(super) fn mention(line: &str) {
    output::announce(&format!("{}\n", printable(line)));
}
