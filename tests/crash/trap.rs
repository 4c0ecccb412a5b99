//! A trap at the proxy: it springs at the request that the seed picked, so that a crash falls where it is asked for and
//! not where a clock puts it; besides, a share of all requests is disturbed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use crate::support::cairn::Gateway;
use crate::support::proxy::{Action, Gate, Proxy, Request};

/// What a gateway does when it is struck: a method, and what the key contains.
pub(super) const PLACES: [(&str, &str); 7] = [
    ("PUT", "/journal/"),
    ("PUT", "/chunk/"),
    ("PUT", "/map/"),
    ("PUT", "/root/"),
    ("PUT", "/head"),
    ("GET", "/chunk/"),
    ("POST", "delete"),
];

/// How long a gateway under load may go without doing what all of them do every second or so.
const PATIENCE: Duration = Duration::from_secs(120);

/// Springs once.
pub(super) struct Trap {
    sprung: watch::Receiver<bool>,
}

impl Trap {
    /// Sets the trap at the `nth` request of a place.
    pub(super) fn set(
        proxy: &Proxy,
        (method, part): (&'static str, &'static str),
        nth: u32,
        seed: u64,
    ) -> Self {
        let (spring, sprung) = watch::channel(false);
        let state = Arc::new(Mutex::new((nth, SmallRng::seed_from_u64(seed))));
        proxy.rule(move |request| {
            let mut state = state.lock();
            let (left, random) = &mut *state;
            if request.method == method && request.key.contains(part) {
                if *left == 0 {
                    *left = u32::MAX;
                    spring.send_replace(true);
                    // Whoever is struck here is struck before the effect, after it, or in between.
                    return match random.random_range(0..3) {
                        0 => Action::HoldRequest(Gate::new()),
                        1 => Action::HoldAnswer(Gate::new()),
                        _ => Action::LoseAnswer,
                    };
                }
                *left -= 1;
            }
            disturb(random, request)
        });
        Self { sprung }
    }

    /// Waits until it springs.
    pub(super) async fn springs(&mut self, what: &str, gateway: &Gateway) {
        let sprung = tokio::time::timeout(PATIENCE, self.sprung.wait_for(|sprung| *sprung)).await;
        let Ok(sprung) = sprung else {
            panic!("{what} does not come; it says:\n{}", gateway.process.output())
        };
        sprung.expect("the proxy has the rule");
    }
}

/// One request in twenty goes wrong in some way.
fn disturb(random: &mut SmallRng, request: &Request) -> Action {
    match (random.random_range(0..100), request.method.as_str()) {
        (0, _) => Action::Refuse(503),
        (1, _) => Action::Refuse(500),
        (2 | 3, "PUT" | "POST") => Action::LoseAnswer,
        (2, _) => Action::ShortenAnswer,
        (3, "GET") => Action::FlipBit,
        _ => Action::Pass,
    }
}
