//! The schedule of snapshots: which are due now, and which of them are too many.
//!
//! Owns the names of the snapshots that the schedule makes, and must not know how a snapshot is taken.
//! Periods begin on full hours and days of UTC. Invariants: the schedule only deletes snapshots that have
//! exactly such a name, and only of a period that it contains. It never deletes one that was not yet due, so
//! a clock that was set back costs nothing.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use crate::volume::format::snapshot::Snapshot;

/// Maximum number of snapshots that a schedule keeps. A volume has room for more, which are taken by hand.
const MOST_KEPT: usize = 1000;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// The longest month.
const MONTH: u64 = 31 * DAY;
/// The last second of the year 9999, the latest time that RFC 3339 can express.
const LAST_SECOND: u64 = 253_402_300_799;

/// How often a snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Period {
    Hourly,
    Daily,
    Weekly,
    Monthly,
}

impl Period {
    const ALL: [Self; 4] = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    const fn seconds(self) -> u64 {
        match self {
            Self::Hourly => HOUR,
            Self::Daily => DAY,
            Self::Weekly => WEEK,
            Self::Monthly => MONTH,
        }
    }

    /// Returns the beginning of the period that contains a time. Weeks begin on Mondays.
    fn begin(self, at: u64) -> u64 {
        match self {
            Self::Hourly => at - at % HOUR,
            Self::Daily => at - at % DAY,
            Self::Weekly => {
                // The first day of 1970 was a Thursday.
                let (day, thursday) = (at / DAY, 3);
                (day - ((day + thursday) % 7).min(day)) * DAY
            }
            Self::Monthly => {
                let month = format!("{}-01T00:00:00Z", &rfc3339(at)[..7]);
                parsed(&month).expect("every month has a first day")
            }
        }
    }

    /// Returns the name of the snapshot of the period that begins at a time.
    fn name(self, begin: u64) -> String {
        let text = rfc3339(begin);
        let kind = self.as_str();
        match self {
            // A name may not contain a colon.
            Self::Hourly => format!("{kind}-{}-00Z", &text[..13]),
            Self::Daily | Self::Weekly => format!("{kind}-{}", &text[..10]),
            Self::Monthly => format!("{kind}-{}", &text[..7]),
        }
    }

    /// Returns the beginning of the period of which this is the snapshot. `None` for all other names.
    fn begin_of(self, name: &str) -> Option<u64> {
        let rest = name.strip_prefix(self.as_str())?.strip_prefix('-')?;
        let text = match self {
            Self::Hourly => format!("{}:00:00Z", rest.strip_suffix("-00Z")?),
            Self::Daily | Self::Weekly => format!("{rest}T00:00:00Z"),
            Self::Monthly => format!("{rest}-01T00:00:00Z"),
        };
        let begin = parsed(&text)?;
        (self.begin(begin) == begin && self.name(begin) == name).then_some(begin)
    }
}

fn rfc3339(seconds: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND));
    humantime::format_rfc3339_seconds(at).to_string()
}

fn parsed(text: &str) -> Option<u64> {
    let at = humantime::parse_rfc3339(text).ok()?;
    Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// What a schedule demands of a volume now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Take a snapshot of this name.
    Take(String),
    /// Delete the snapshot of this name.
    Delete(String),
}

/// How often snapshots are taken, and how many of each period are kept. Empty if none are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule(BTreeMap<Period, usize>);

impl Schedule {
    /// Returns the shortest period. `None` if no snapshots are taken.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.0.keys().map(|period| Duration::from_secs(period.seconds())).min()
    }

    /// Returns what is due, first what to take. What to delete assumes that all of that was taken. Periods
    /// that were missed are not made up for.
    pub(super) fn due(&self, now_seconds: u64, existing: &[Snapshot]) -> Vec<Action> {
        let (mut takes, mut deletes) = (Vec::new(), Vec::new());
        for (period, kept) in &self.0 {
            let begin = period.begin(now_seconds);
            let made = existing.iter().filter_map(|snapshot| period.begin_of(&snapshot.name));
            let mut begins: Vec<u64> = made.filter(|made| *made <= begin).collect();
            if !begins.contains(&begin) {
                takes.push(Action::Take(period.name(begin)));
                begins.push(begin);
            }
            begins.sort_unstable_by(|a, b| b.cmp(a));
            deletes.extend(begins.into_iter().skip(*kept).map(|begin| Action::Delete(period.name(begin))));
        }
        takes.extend(deletes);
        takes
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut schedule = BTreeMap::new();
        for part in text.split_whitespace() {
            let wrong =
                || format!("{part:?}: write hourly:N, daily:N, weekly:N or monthly:N, separated by spaces");
            let (name, kept) = part.split_once(':').ok_or_else(wrong)?;
            let period = Period::ALL.into_iter().find(|period| period.as_str() == name).ok_or_else(wrong)?;
            let kept: usize = kept.parse().map_err(|_| wrong())?;
            if kept == 0 {
                return Err(format!("{part:?}: at least 1 is kept; leave {name} out to take none"));
            }
            if schedule.insert(period, kept).is_some() {
                return Err(format!("{name} is listed twice"));
            }
        }
        let sum = schedule.values().fold(0_usize, |sum, kept| sum.saturating_add(*kept));
        if sum > MOST_KEPT {
            return Err(format!("{sum} snapshots of each volume would be kept, and {MOST_KEPT} may be"));
        }
        Ok(Self(schedule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        parsed(text).unwrap()
    }

    fn schedule(text: &str) -> Schedule {
        text.parse().unwrap()
    }

    fn snapshots(names: &[&str]) -> Vec<Snapshot> {
        let of = |name: &&str| Snapshot { name: (*name).to_owned(), taken_at_seconds: 1 };
        names.iter().map(of).collect()
    }

    /// What is due, with `+` for a snapshot to take and `-` for one to delete.
    fn due(text: &str, now: &str, existing: &[&str]) -> Vec<String> {
        let due = schedule(text).due(at(now), &snapshots(existing));
        let shown = due.into_iter().map(|action| match action {
            Action::Take(name) => format!("+{name}"),
            Action::Delete(name) => format!("-{name}"),
        });
        shown.collect()
    }

    #[test]
    fn periods_begin_on_boundaries_of_utc() {
        let all = "hourly:1 daily:1 weekly:1 monthly:1";
        for (now, names) in [
            // 2026-11-28 is a Saturday, 2026-11-23 the Monday before.
            (
                "2026-11-28T14:59:59Z",
                ["hourly-2026-11-28T14-00Z", "daily-2026-11-28", "weekly-2026-11-23", "monthly-2026-11"],
            ),
            (
                "2026-11-29T23:59:59Z",
                ["hourly-2026-11-29T23-00Z", "daily-2026-11-29", "weekly-2026-11-23", "monthly-2026-11"],
            ),
            (
                "2026-11-30T00:00:00Z",
                ["hourly-2026-11-30T00-00Z", "daily-2026-11-30", "weekly-2026-11-30", "monthly-2026-11"],
            ),
            (
                "2026-12-01T00:00:00Z",
                ["hourly-2026-12-01T00-00Z", "daily-2026-12-01", "weekly-2026-11-30", "monthly-2026-12"],
            ),
            (
                "2027-01-01T00:00:01Z",
                ["hourly-2027-01-01T00-00Z", "daily-2027-01-01", "weekly-2026-12-28", "monthly-2027-01"],
            ),
            (
                "2028-02-29T12:00:00Z",
                ["hourly-2028-02-29T12-00Z", "daily-2028-02-29", "weekly-2028-02-28", "monthly-2028-02"],
            ),
        ] {
            assert_eq!(due(all, now, &[]), names.map(|name| format!("+{name}")), "{now}");
            assert_eq!(due(all, now, &names), Vec::<String>::new(), "{now}: each is taken once");
        }
    }

    #[test]
    fn every_name_leads_back_to_its_period_and_no_other_name_does() {
        let first = at("2024-01-01T00:00:00Z");
        for now in (first..first + 40 * MONTH).step_by(18_017) {
            for period in Period::ALL {
                let begin = period.begin(now);
                assert!(begin <= now && now < begin + period.seconds(), "{period:?} {now}");
                assert_eq!(period.begin_of(&period.name(begin)), Some(begin), "{period:?} {now}");
            }
        }
        for name in [
            "hourly-2026-11-28T14-30Z",
            "hourly-2026-11-28T14-00",
            "hourly-2026-11-28T24-00Z",
            "hourly-2026-11-28",
            "daily-2026-11-31",
            "daily-2026-11-28-",
            "daily-2026-11-2",
            "daily-26-11-28",
            "daily-x",
            "daily-",
            "my-daily-2026-11-28",
            "Daily-2026-11-28",
            // A Tuesday.
            "weekly-2026-11-24",
            "monthly-2026-13",
            "monthly-2026-11-01",
            "monday",
        ] {
            assert!(Period::ALL.iter().all(|period| period.begin_of(name).is_none()), "{name}");
        }
    }

    #[test]
    fn the_newest_of_each_period_are_kept_and_nothing_else_is_touched() {
        let existing = [
            "hourly-2026-11-28T11-00Z",
            "by-hand",
            "hourly-2026-11-28T13-00Z",
            "daily-2026-11-26",
            "daily-2026-11-27",
            "hourly-2026-11-28T12-00Z",
            "weekly-2026-11-02",
        ];
        let due = |text: &str| due(text, "2026-11-28T14:10:00Z", &existing);
        assert_eq!(due("hourly:3"), ["+hourly-2026-11-28T14-00Z", "-hourly-2026-11-28T11-00Z"]);
        assert_eq!(due("hourly:4"), ["+hourly-2026-11-28T14-00Z"]);
        let all = due("hourly:1 daily:2");
        let (takes, deletes) = all.split_at(2);
        assert_eq!(takes, ["+hourly-2026-11-28T14-00Z", "+daily-2026-11-28"]);
        let hours = ["-hourly-2026-11-28T13-00Z", "-hourly-2026-11-28T12-00Z", "-hourly-2026-11-28T11-00Z"];
        assert_eq!(deletes, [&hours[..], &["-daily-2026-11-26"][..]].concat());
        assert_eq!(due(""), Vec::<String>::new(), "without a schedule nothing is deleted");
    }

    #[test]
    fn missed_periods_are_not_made_up_for_and_cost_no_old_snapshot() {
        let existing = ["hourly-2026-11-28T01-00Z", "hourly-2026-11-28T02-00Z"];
        assert_eq!(due("hourly:3", "2026-11-28T14:10:00Z", &existing), ["+hourly-2026-11-28T14-00Z"]);
        let taken = due("hourly:2", "2026-11-28T14:10:00Z", &existing);
        assert_eq!(taken, ["+hourly-2026-11-28T14-00Z", "-hourly-2026-11-28T01-00Z"]);
    }

    #[test]
    fn a_clock_that_was_set_back_deletes_nothing_new_and_counts_nothing_that_is_to_come() {
        let existing = ["hourly-2026-11-28T12-00Z", "hourly-2026-11-28T13-00Z", "hourly-2099-01-01T00-00Z"];
        assert_eq!(due("hourly:2", "2026-11-28T13:59:00Z", &existing), Vec::<String>::new());
        assert_eq!(due("hourly:1", "2026-11-28T12:59:00Z", &existing), Vec::<String>::new());
        let next = due("hourly:2", "2026-11-28T14:00:00Z", &existing);
        assert_eq!(next, ["+hourly-2026-11-28T14-00Z", "-hourly-2026-11-28T12-00Z"]);
    }

    #[test]
    fn the_clock_may_stand_anywhere() {
        for now in [0, 1, 3 * DAY, 4 * DAY, LAST_SECOND, u64::MAX] {
            let all = schedule("hourly:1 daily:1 weekly:1 monthly:1").due(now, &[]);
            assert_eq!(all.len(), 4, "{now}");
        }
    }

    #[test]
    fn a_schedule_is_written_as_a_list() {
        use Period::{Daily, Hourly, Monthly, Weekly};
        for (text, periods) in [
            ("", &[][..]),
            ("  ", &[]),
            ("hourly:24 daily:7 weekly:4", &[(Hourly, 24), (Daily, 7), (Weekly, 4)]),
            ("monthly:1  hourly:2", &[(Hourly, 2), (Monthly, 1)]),
        ] {
            assert_eq!(schedule(text).0, periods.iter().copied().collect(), "{text}");
        }
        assert_eq!(schedule("daily:7 hourly:24").interval(), Some(Duration::from_secs(3600)));
        assert_eq!(schedule("").interval(), None);
        for (text, why) in [
            ("hourly", "hourly:N"),
            ("yearly:1", "hourly:N"),
            ("daily:x", "hourly:N"),
            ("daily:-1", "hourly:N"),
            ("daily:7,weekly:4", "spaces"),
            ("daily:0", "leave daily out"),
            ("daily:1 daily:2", "twice"),
            ("daily:600 hourly:401", "1001"),
            ("daily:18446744073709551615 hourly:1", "may be"),
        ] {
            let error = text.parse::<Schedule>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
