//! How many second requests may be sent.
//!
//! Owns what requests have earned, and must not know when a request is slow. Invariant: the second requests
//! are never more than their share of all first ones, but for the few that are lent at first.

/// The price of one second request: each first one earns `percent`.
const PRICE: u32 = 100;
/// What can be earned at most: a burst of 64.
const MOST: u32 = 64 * PRICE;
/// The balance at first, so that a slow answer does not hurt a gateway that has just started: ten second
/// requests. It is a loan, which the first requests pay back before they earn anything.
const LOAN: u32 = 10 * PRICE;
/// With this balance beyond the price of one, or more, requests count as slow early; below it, ever later.
const AMPLE: u32 = PRICE;

/// The balance.
#[derive(Debug)]
pub(super) struct Budget {
    percent: u32,
    balance: u32,
    /// What is to be paid back.
    owed: u32,
}

impl Budget {
    /// Creates a budget of `percent` second requests for 100 first ones.
    pub(super) fn new(percent: u32) -> Self {
        Self { percent: percent.min(PRICE), balance: LOAN, owed: LOAN }
    }

    /// Earns the share of one first request.
    pub(super) fn earn(&mut self) {
        let paid_back = self.percent.min(self.owed);
        self.owed -= paid_back;
        self.balance = (self.balance + self.percent - paid_back).min(MOST);
    }

    /// Takes the price of a second request. Returns `false` if the balance is too low.
    pub(super) fn spend(&mut self) -> bool {
        let left = self.balance.checked_sub(PRICE);
        self.balance = left.unwrap_or(self.balance);
        left.is_some()
    }

    /// Returns how many of 1,000 requests count as slow: the share of the budget when nothing is left, and
    /// twice as many while the balance is ample. Some of those are about to be answered, so that the slowest
    /// ones are still hedged if they are slightly more than usual.
    pub(super) fn slow_permille(&self) -> usize {
        let ample = self.balance.saturating_sub(PRICE).min(AMPLE);
        let permille = 10 * self.percent * (AMPLE + ample) / AMPLE;
        usize::try_from(permille).expect("it is small")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_request_costs_what_its_share_of_first_ones_earned() {
        let mut budget = Budget::new(5);
        assert_eq!(std::iter::from_fn(|| budget.spend().then_some(())).count(), 10, "lent");
        let sent = (0..10_000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(10 + sent.count(), 500, "the ten are paid back");
        (0..1_000_000).for_each(|_| budget.earn());
        assert_eq!(std::iter::from_fn(|| budget.spend().then_some(())).count(), 64, "a burst has a limit");
    }

    #[test]
    fn requests_count_as_slow_later_when_little_is_left() {
        let mut budget = Budget::new(5);
        assert_eq!(budget.slow_permille(), 100);
        while budget.spend() {}
        assert_eq!(budget.slow_permille(), 50);
        (0..200).for_each(|_| budget.earn());
        assert_eq!(budget.slow_permille(), 50, "paid back");
        (0..30).for_each(|_| budget.earn());
        assert_eq!(budget.slow_permille(), 75);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(budget.slow_permille(), 100);
    }
}
