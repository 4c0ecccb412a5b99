//! `cairn import --onto`: applies a stream to a volume that no gateway holds.
//!
//! Owns what is asked for and what is printed, and must not know how a stream is applied. Invariant: nothing
//! is opened in the store before the beginning of the stream was read.

use std::pin::pin;

use super::Shown;
use super::apply::{Applied, Job, Kind, Onto, unless_ended};
use super::stream::Stream;
use crate::cli::args;
use crate::cli::error::Error;
use crate::cli::opened::prepare;
use crate::cli::printed::print;
use crate::cli::process::Signals;
use crate::cli::settings::Options;
use crate::volume::format::stream::Totals;
use crate::volume::incremental::receive::Leftovers;

/// Executes the command.
pub(in crate::cli) async fn import(args: args::Import, onto: String, options: Options) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let mut job = Job {
        stream: Stream::open(&args.source)?,
        onto: Onto { name: onto, flags: String::new() },
        kind: Kind::Import,
        snapshot: args.snapshot,
        leftovers: if args.transfer.resume { Leftovers::Discard } else { Leftovers::Refuse },
        result_digest: None,
        shown: Shown::of(args.transfer.quiet),
    };
    let header = unless_ended(pin!(job.stream.header()), &mut signals).await?;
    let (env, of_volume) = unless_ended(pin!(prepare(options)), &mut signals).await?;
    let applied = Box::pin(job.run(&env, &of_volume, &header, &mut signals)).await?;
    let (onto, name) = (&job.onto.name, &header.result.snapshot.name);
    match applied {
        Applied::Before => print(&format!("{onto} has the content of the snapshot {name} already\n")),
        Applied::Now => {
            let Totals { extents, data_bytes, zero_bytes } = job.stream.totals();
            print(&format!(
                "imported {extents} extents onto {onto}, {data_bytes} bytes of data and {zero_bytes} bytes \
                 of zeros\n{onto} has the content of the snapshot {name}\n"
            ))
        }
    }
}
