//! One export served by itself: `cairn nbd serve`, and the serving half of `cairn nbd mirror`.
//!
//! Knows no volume. Invariant: it says that it listens only once it does, and ends in order.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::args::{Host, Serve};
use super::file::{FileExport, named};
use crate::cli::error::{Error, NbdError};
use crate::cli::listeners::{Door, Inherited, Listeners, Oldstyle, Plan};
use crate::cli::output;
use crate::cli::process::Signals;
use crate::cli::text::printable;
use crate::cli::welcome::uri;
use crate::metrics::Metrics;
use crate::server::{
    Drained, Export, ExportDescription, Exports, Greeting, ListEntry, ListenAddress, OpenError, Options,
    Server, Tls, TlsOptions,
};

/// `cairn nbd serve`.
pub(super) async fn serve_file(args: Serve, inherited: Inherited) -> Result<(), Error> {
    let file = named(&args.file, FileExport::open(&args.file, &args.host.exportname, args.read_only))?;
    let hosted = Hosted::start(&args.host, Arc::new(file), inherited).await?;
    hosted.until_told(std::future::pending()).await;
    Ok(())
}

/// The only export of a server: by its name, and by the empty one.
struct OnlyExport {
    name: String,
    export: Arc<dyn Export>,
}

impl OnlyExport {
    fn find(&self, name: &str) -> Result<&Arc<dyn Export>, OpenError> {
        if name.is_empty() || name == self.name {
            Ok(&self.export)
        } else {
            Err(OpenError::Unknown(name.to_owned()))
        }
    }
}

#[async_trait]
impl Exports for OnlyExport {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        Ok(vec![ListEntry { name: self.name.clone(), description: String::new() }])
    }

    async fn describe(&self, name: &str) -> Result<ExportDescription, OpenError> {
        Ok(self.find(name)?.description())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        Ok(Arc::clone(self.find(name)?))
    }
}

/// An export that is served.
pub(super) struct Hosted {
    server: Server,
    signals: Signals,
    stream: Option<Box<dyn crate::server::Stream>>,
}

impl Hosted {
    /// Listens, and says where.
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
        // Whoever opened it knows where it is, and may have put something else at the end of standard output.
        let is_ours = inherited.is_empty();
        let listeners = Listeners::open(&plan, inherited, None).await?;
        Oldstyle::check(&listeners.oldstyle(), tls.as_ref())?;
        let Listeners { nbd, stream, .. } = listeners;
        let exports = OnlyExport { name: host.exportname.clone(), export };
        let mut server = Server::new(Arc::new(exports), Options::default(), Metrics::new().server());
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

    /// Serves until a signal, or until the client that was there from the start has left; `background` goes
    /// on beside it and is dropped then.
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
            signal = signals.next() => tracing::info!("{signal}: finishing what is in flight"),
            () = client => tracing::info!("the client has left"),
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

/// Prints a line that was asked for, and waits for whoever reads it. That nobody does is no reason to end.
pub(super) fn say(line: &str) {
    if let Err(error) = output::answer(&format!("{}\n", printable(line))) {
        tracing::debug!("nothing printed: {error}");
    }
}

/// Prints a value as JSON, which has escapes of its own.
pub(super) fn say_json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(value).expect("numbers, texts and lists are JSON");
    if let Err(error) = output::answer(&format!("{text}\n")) {
        tracing::debug!("nothing printed: {error}");
    }
}

/// Prints a line beside what the program does, which nobody needs to read.
pub(super) fn mention(line: &str) {
    output::announce(&format!("{}\n", printable(line)));
}
