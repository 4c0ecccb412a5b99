//! The command line: which commands exist, and which layer executes each of them.
//!
//! Owns the process (log, signals, exit status), and maps the settings to each layer's options. It is the
//! only layer that knows all others, and no other layer may know it. Invariant: all settings are read and
//! checked before anything listens and before anything is written.

mod admin;
mod api_client;
mod args;
mod backup_args;
mod bench;
mod check;
mod check_view;
mod checksum;
mod clone;
mod configured;
mod diff;
mod endpoint;
mod environment;
mod error;
mod export;
mod gc;
mod gc_view;
mod handover;
mod health;
mod http;
mod image_file;
mod import;
mod incremental;
mod limits;
mod listeners;
mod log;
mod nbd;
mod opened;
mod output;
mod place;
mod printed;
mod process;
mod progress;
mod qemu;
mod reload;
mod runtime_directory;
mod serve;
mod settings;
mod size;
mod snapshot;
mod snapshot_args;
mod snapshot_name;
mod stored_disk;
mod supervisor;
mod text;
mod usage_view;
mod volume;
mod volume_view;
mod welcome;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ContextValue;

pub use args::Cli;
use args::{Action, Command};
use error::Error;
use listeners::Inherited;

use crate::config::without_user;
use crate::metrics::Metrics;

/// The properties of the allocator that the program was built with.
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    /// Whether the allocator accepted its settings.
    pub is_tuned: bool,
    /// Returns free memory to the system. Called after much memory was freed.
    pub give_back: fn(),
}

/// Runs the program with the command line of this process.
#[must_use]
pub fn main(allocator: Allocator) -> ExitCode {
    let cli = parse();
    let code = match run(cli, allocator) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string();
            match error {
                // Only this text is entirely our own. The others may quote a server or a store.
                Error::Config(_) => output::complain(text.lines()),
                _ => output::complain([&*text]),
            }
            error.exit_code()
        }
    };
    output::finish();
    code
}

/// Parses the command line of this process. Clap prints help and mistakes itself, and exits with 0 or 2.
fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|mut error| {
        let quoted = error.context().filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(without_user(text)))),
            _ => None,
        });
        for (kind, shown) in quoted.collect::<Vec<_>>() {
            error.insert(kind, shown);
        }
        error.exit()
    })
}

fn run(cli: Cli, allocator: Allocator) -> Result<(), Error> {
    let metrics = Metrics::new();
    match cli.command {
        Command::Serve(args) => run_gateway(args, allocator, metrics),
        Command::Health(args) => process::block_on(health::ask(&args.url)),
        Command::Nbd(args) => {
            let inherited = args.action.inherited()?;
            let config = crate::config::load(None, std::env::vars_os(), Vec::new())?;
            log::start_quiet(&config, metrics.log())?;
            process::raise_descriptor_limit();
            process::block_on(nbd::run(args.action, inherited))
        }
        Command::Bench(args) => {
            let options = quiet_options(&args.action.config()?, &metrics)?;
            process::raise_descriptor_limit();
            process::block_on(bench::run(args.action, options, &metrics))
        }
        Command::Import(args) => {
            let options = quiet_options(&args.config()?, &metrics)?;
            process::raise_descriptor_limit();
            match args.onto.clone() {
                Some(onto) => process::block_on(incremental::import(args, onto, options)),
                None => process::block_on(import::run(args, options)),
            }
        }
        Command::Export(args) => {
            let options = quiet_options(&args.config()?, &metrics)?;
            process::raise_descriptor_limit();
            match args.since.clone() {
                Some(since) => process::block_on(incremental::export(args, since, options)),
                None => process::block_on(export::run(args, options)),
            }
        }
        Command::Backup(args) => {
            let options = quiet_options(&args.config()?, &metrics)?;
            process::raise_descriptor_limit();
            process::block_on(incremental::backup(args, options))
        }
        Command::Check(args) => check::checked(&args, &metrics).map_err(Error::unchecked),
        Command::Volume(args) => {
            let config = args.config()?;
            let options = quiet_options(&config, &metrics)?;
            if let Action::Restore(restore) = args.action {
                return process::block_on(snapshot::restore(restore.of, options));
            }
            let place = place(args.gateway(), &options)?;
            process::block_on(volume::run(args.action, &config, options, place))
        }
        Command::Clone(args) => {
            let options = quiet_options(&args.config()?, &metrics)?;
            let place = place(args.gateway(), &options)?;
            process::block_on(clone::run(args, options, place))
        }
        Command::Gc(args) => {
            let options = quiet_options(&args.config()?, &metrics)?;
            let place = place(args.gateway(), &options)?;
            process::block_on(gc::run(args, options, place))
        }
        Command::Snapshot(args) => {
            let options = quiet_options(&args.config()?, &metrics)?;
            let place = place(args.gateway(), &options)?;
            process::block_on(snapshot::run(args.action, options, place))
        }
    }
}

fn run_gateway(args: args::Serve, allocator: Allocator, metrics: Metrics) -> Result<(), Error> {
    let inherited = Inherited::take(args.stdio)?;
    let config = args.config()?;
    let options = settings::Options::of(&config)?;
    let set_level = log::start(&config, metrics.log())?;
    process::abort_on_panic();
    process::raise_descriptor_limit();
    if !allocator.is_tuned {
        tracing::warn!("the allocator cannot be tuned, so Cairn may use more memory");
    }
    let settings = reload::Settings::new(args, config, set_level, allocator.give_back);
    process::block_on(serve::serve(options, settings, inherited, metrics))
}

/// Maps the settings to the layers' options, for a command that logs only what goes wrong.
fn quiet_options(config: &crate::config::Config, metrics: &Metrics) -> Result<settings::Options, Error> {
    let options = settings::Options::of(config)?;
    log::start_quiet(config, metrics.log())?;
    Ok(options)
}

/// Returns where a command is executed: in the store, or by the gateway that the flag names.
fn place(gateway: Option<&Option<PathBuf>>, options: &settings::Options) -> Result<volume::Place, Error> {
    let Some(socket) = gateway else { return Ok(volume::Place::Store) };
    let socket = match socket {
        Some(socket) => socket.clone(),
        None => admin::expected_at(&options.admin_socket).map_err(Error::AdminSocket)?,
    };
    Ok(volume::Place::Gateway(api_client::Gateway::at(&socket)))
}
