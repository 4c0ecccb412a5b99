//! A simulation of gateways, a volume and an object store, that is a function of its seed.
//!
//! The code of the volume and of the store's decorators runs as it is released. What is simulated is its
//! surroundings: gateways with runtimes, clocks and memories of their own ([`gateway`]) that crash, stand still and
//! fight for the volume ([`driver`]); requests that are late, lost, refused, repeated or damaged on their way
//! ([`weather`], [`world`], [`link`]); and clients that stamp what they write ([`client`], [`cells`]).
//!
//! What is checked:
//!
//! * every read gives the last answered change of each cell or one that was under way ([`history`]);
//! * at each opening, and at moments in between as if the gateway crashed there, what an opener recovers is the state
//!   after a prefix of the changes, whole changes only, with all that a FLUSH covered ([`prefix`], [`bucket`]);
//! * whatever head, root and journal name is there and whole; at the end, nothing else is;
//! * errors are only those that the weather explains; in fair weather everything is answered.
//!
//! `CAIRN_SIM_SEEDS=from..to` says which seeds run; `CAIRN_SIM_TRACE=1` prints every event.

mod bucket;
mod cells;
mod client;
mod driver;
mod finale;
mod gateway;
mod history;
mod link;
mod plan;
mod prefix;
mod trace;
mod weather;
mod world;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Once;

use driver::{Outcome, run};
use weather::Coverage;

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Panics on this thread so far: a task that panics ends alone, and nobody else would know.
fn panics() -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    PANICS.with(Cell::get)
}

fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("CAIRN_SIM_SEEDS") else { return default };
    let ends = text.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    match (ends, text.parse()) {
        (Some((Ok(from), Ok(to))), _) => from..to,
        (_, Ok(one)) => one..one + 1,
        _ => panic!("CAIRN_SIM_SEEDS={text:?} is not like 0..2000"),
    }
}

#[test]
fn every_promise_holds_in_every_seed() {
    let print = std::env::var_os("CAIRN_SIM_TRACE").is_some();
    let (mut coverage, mut commands, mut crashes, mut openings) = (Coverage::default(), 0, 0, 0);
    let seeds = seeds(0..20);
    let mut broken = Vec::new();
    for seed in seeds.clone() {
        let Outcome { violation, hash, lines, .. } = {
            let outcome = run(seed, print);
            coverage.add(&outcome.coverage);
            commands += outcome.commands;
            crashes += outcome.crashes;
            openings += outcome.openings;
            outcome
        };
        if print {
            println!("seed {seed}: {lines} events, hash {hash:016x}");
        }
        if let Some(why) = violation {
            println!("seed {seed}: {why}");
            broken.push(seed);
        }
    }
    println!("{commands} commands, {crashes} crashes, {openings} openings\n{}", coverage.table());
    assert!(
        broken.is_empty(),
        "promises were broken in seeds {broken:?}: replay with CAIRN_SIM_SEEDS=<seed> CAIRN_SIM_TRACE=1"
    );
}
