//! The command line: what can be said, and which layer does it.
//!
//! The only layer that knows all others: it maps settings to each layer's options, implements the server's `Export`
//! for volumes, and owns the process (log, signals, exit status). Invariant: nothing listens and nothing is written
//! before every setting was read and found right.

mod admin;
mod args;
mod catalogue;
mod error;
mod exports;
mod gateway;
mod handover;
mod health;
mod http;
mod listeners;
mod nbd;
mod open_volumes;
mod process;
mod reload;
mod runtime_directory;
mod serve;
mod settings;
mod size;
mod status;
mod supervisor;
mod volume;
mod welcome;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
use args::Command;
use error::Error;
use listeners::Inherited;

/// Runs the program on the command line of this process; `give_memory_back` is called when much of it was freed.
#[must_use]
pub fn main(give_memory_back: fn()) -> ExitCode {
    // Clap prints help and mistakes itself, and exits with 0 or 2.
    let cli = Cli::parse();
    match run(cli, give_memory_back) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn: {error}");
            error.exit_code()
        }
    }
}

fn run(cli: Cli, give_memory_back: fn()) -> Result<(), Error> {
    match cli.command {
        Command::Serve(args) => {
            let inherited = Inherited::take(args.stdio)?;
            let config = args.config()?;
            let options = settings::Options::of(&config)?;
            let set_level = process::start_log(&config)?;
            process::abort_on_panic();
            process::raise_descriptor_limit();
            let settings = reload::Settings::new(args, config, set_level, give_memory_back);
            process::block_on(serve::serve(options, settings, inherited))
        }
        Command::Health(args) => process::block_on(health::ask(&args.url)),
        Command::Nbd(args) => {
            let inherited = args.action.inherited()?;
            let config = crate::config::load(None, std::env::vars_os(), Vec::new())?;
            process::start_quiet_log(&config)?;
            process::raise_descriptor_limit();
            process::block_on(nbd::run(args.action, inherited))
        }
        Command::Volume(args) => {
            let config = args.config()?;
            let options = settings::Options::of(&config)?;
            process::start_quiet_log(&config)?;
            let place = match args.gateway() {
                None => volume::Place::Store,
                Some(socket) => {
                    let socket = match socket {
                        Some(socket) => socket.clone(),
                        None => admin::expected_at(&options.admin_socket).map_err(Error::AdminSocket)?,
                    };
                    volume::Place::Gateway(gateway::Gateway::at(&socket))
                }
            };
            process::block_on(volume::run(args.action, &config, options, place))
        }
    }
}
