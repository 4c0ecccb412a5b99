//! A trap in the proxy. It springs at the request that the seed chose, so that a crash hits a chosen
//! operation instead of a point in time. In addition, a share of all requests is disturbed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use crate::support::cairn::Gateway;
use crate::support::proxy::{Action, Gate, Proxy, Request};

/// The operations at which a gateway is hit: a method, and a part of the key.
pub(super) const PLACES: [(&str, &str); 7] = [
    ("PUT", "/journal/"),
    ("PUT", "/chunk/"),
    ("PUT", "/map/"),
    ("PUT", "/root/"),
    ("PUT", "/head"),
    ("GET", "/chunk/"),
    ("POST", "delete"),
];

/// How long a gateway under load may take for an operation that normally happens every second or so.
const PATIENCE: Duration = Duration::from_secs(120);

/// A trap that springs once.
pub(super) struct Trap {
    sprung: watch::Receiver<bool>,
}

impl Trap {
    /// Sets the trap at the `nth` request of an operation.
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
                    // The crash happens before the effect of the request, after it, or in between.
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

    /// Waits until the trap springs.
    pub(super) async fn springs(&mut self, what: &str, gateway: &Gateway) {
        let sprung = tokio::time::timeout(PATIENCE, self.sprung.wait_for(|sprung| *sprung)).await;
        let Ok(sprung) = sprung else {
            panic!("{what} does not come; it says:\n{}", gateway.process.output())
        };
        sprung.expect("the proxy has the rule");
    }
}

/// Disturbs about one request in twenty-five.
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
