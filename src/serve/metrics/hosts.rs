//! Which hosts have series of their own, a hundred at most, and what those show.
//!
//! URLs come from whoever may publish, so the hosts in them are a stranger's choice. A series is earned: where there are
//! more hosts than places, those with the most answers of late have them, whoever came first. Names that never answer
//! weigh nothing, refused URLs are not looked at, and places change hands slowly, so that nobody can make series
//! without end. All others are `other`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::time::{Duration, Instant};

use crate::verdict::WORDS;

/// Hosts with series of their own.
const MAX_PLACES: usize = 100;
/// Hosts whose answers are counted. Whichever has more than one answer in a thousand is among them (Misra and Gries,
/// "Finding repeated elements", 1982).
const MAX_COUNTED: usize = 1_000;
/// What was counted weighs half after this time.
const HALF_LIFE: Duration = Duration::from_secs(10 * 60);
/// How often places change hands, how many at once, and what the newcomer must weigh against whom it follows.
const CHANGE_INTERVAL: Duration = Duration::from_secs(60);
const CHANGES: usize = 4;
const HEAVIER: u64 = 2;

/// The name under which all are that have no series of their own. No URL's host has only one label.
pub(super) const OTHER: &str = "other";

/// What is counted of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// In the order of [`WORDS`].
    pub(super) verdicts: [u64; WORDS.len()],
    pub(super) bytes: u64,
}

impl Counts {
    fn add(&mut self, verdict: usize, bytes: u64) {
        self.verdicts[verdict] += 1;
        self.bytes += bytes;
    }
}

/// The hosts of one server.
#[derive(Debug)]
pub(super) struct Hosts(Mutex<Table>);

#[derive(Debug)]
struct Table {
    /// Answers of late, and the place of those that have one.
    counted: HashMap<Box<str>, Counted, RandomState>,
    places: Vec<(Box<str>, Counts)>,
    other: Counts,
    /// Of all hosts together, those that left their places included.
    all: Counts,
    halved_at: Instant,
    changed_at: Instant,
}

#[derive(Debug, Default)]
struct Counted {
    weight: u64,
    place: Option<usize>,
}

impl Hosts {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Table {
            counted: HashMap::default(),
            places: Vec::new(),
            other: Counts::default(),
            all: Counts::default(),
            halved_at: now,
            changed_at: now,
        }))
    }

    /// A URL of this host has a verdict, by its place among [`WORDS`].
    pub(super) fn add(&self, host: &str, has_answered: bool, verdict: usize, bytes: u64) {
        self.table().add(host, has_answered, verdict, bytes, Instant::now());
    }

    /// A URL without a host that counts.
    pub(super) fn add_other(&self, verdict: usize, bytes: u64) {
        let mut table = self.table();
        table.all.add(verdict, bytes);
        table.other.add(verdict, bytes);
    }

    /// All that have series, and the others together as the last.
    pub(super) fn shown(&self) -> Vec<(Box<str>, Counts)> {
        let table = self.table();
        let mut shown = table.places.clone();
        shown.push((OTHER.into(), table.other.clone()));
        shown
    }

    /// Of all together.
    pub(super) fn all(&self) -> Counts {
        self.table().all.clone()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn add(&mut self, host: &str, has_answered: bool, verdict: usize, bytes: u64, now: Instant) {
        if now.duration_since(self.halved_at) >= HALF_LIFE {
            self.halved_at = now;
            self.weigh(|weight| weight / 2);
        }
        if now.duration_since(self.changed_at) >= CHANGE_INTERVAL {
            self.changed_at = now;
            self.change_places();
        }
        self.all.add(verdict, bytes);
        let weight = u64::from(has_answered);
        let place = match self.counted.get_mut(host) {
            Some(counted) => {
                counted.weight += weight;
                counted.place
            }
            None => self.add_unknown(host, weight),
        };
        match place {
            Some(place) => self.places[place].1.add(verdict, bytes),
            None => self.other.add(verdict, bytes),
        }
    }

    /// A host that is not in the table: it gets a free place, is counted where there is room, and else makes all lighter.
    fn add_unknown(&mut self, host: &str, weight: u64) -> Option<usize> {
        let place = (self.places.len() < MAX_PLACES).then_some(self.places.len());
        if place.is_some() {
            self.places.push((host.into(), Counts::default()));
        } else if weight == 0 {
            return None;
        } else if self.counted.len() >= MAX_COUNTED {
            self.weigh(|weight| weight.saturating_sub(1));
            return None;
        }
        self.counted.insert(host.into(), Counted { weight, place });
        place
    }

    /// Changes every weight; who weighs nothing leaves, unless it has a place.
    fn weigh(&mut self, change: impl Fn(u64) -> u64) {
        self.counted.retain(|_, counted| {
            counted.weight = change(counted.weight);
            counted.weight > 0 || counted.place.is_some()
        });
    }

    /// Gives the places of the lightest to the heaviest without one. The counts of whoever leaves end with it.
    fn change_places(&mut self) {
        if self.places.len() < MAX_PLACES {
            return;
        }
        for _ in 0..CHANGES {
            let without = self.counted.iter().filter(|(_, counted)| counted.place.is_none());
            let heaviest = without.max_by_key(|(_, counted)| counted.weight);
            let with = self.counted.iter().filter(|(_, counted)| counted.place.is_some());
            let lightest = with.min_by_key(|(_, counted)| counted.weight);
            let (Some((newcomer, heavy)), Some((leaver, light))) = (heaviest, lightest) else { return };
            if heavy.weight <= HEAVIER * light.weight {
                return;
            }
            let (newcomer, leaver, place) = (newcomer.clone(), leaver.clone(), light.place);
            if let Some(place) = place {
                self.places[place] = (newcomer.clone(), Counts::default());
            }
            let set = |counted: Option<&mut Counted>, place| {
                if let Some(counted) = counted {
                    counted.place = place;
                }
            };
            set(self.counted.get_mut(&newcomer), place);
            set(self.counted.get_mut(&leaver), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILLED: usize = 1;

    fn names(hosts: &Hosts) -> Vec<String> {
        hosts.shown().iter().map(|(name, _)| name.to_string()).collect()
    }

    fn total(hosts: &Hosts) -> u64 {
        hosts.shown().iter().map(|(_, counts)| counts.verdicts[FILLED]).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn each_of_a_hundred_hosts_has_its_own_counts_and_the_rest_is_other() {
        let hosts = Hosts::new();
        for _ in 0..3 {
            for number in 0..150 {
                hosts.add(&format!("h{number}.example.com"), true, FILLED, 10);
            }
        }
        hosts.add_other(FILLED, 0);
        let shown = hosts.shown();
        assert_eq!(shown.len(), 101);
        assert_eq!((&*shown[7].0, shown[7].1.verdicts[FILLED], shown[7].1.bytes), ("h7.example.com", 3, 30));
        assert_eq!((&*shown[100].0, shown[100].1.verdicts[FILLED]), (OTHER, 151));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_hosts_neither_takes_the_places_nor_keeps_them_nor_makes_series_without_end() {
        let hosts = Hosts::new();
        let mut seen = std::collections::BTreeSet::new();
        // The flood is there first, and is nine tenths of all; the hosts that count come later.
        for second in 0..1_800 {
            for number in 0..90 {
                hosts.add(&format!("x{second}-{number}.attacker.example"), true, FILLED, 1);
            }
            for number in 0..10 {
                hosts.add(&format!("cdn{number}.example.com"), true, FILLED, 1);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            seen.extend(names(&hosts));
        }
        assert_eq!(hosts.all().verdicts[FILLED], 180_000, "the sum loses nothing");
        let own =
            (0..10).filter(|number| names(&hosts).contains(&format!("cdn{number}.example.com"))).count();
        assert_eq!(own, 10);
        assert!(seen.len() <= 101 + 30 * CHANGES, "{} names", seen.len());
        let table = hosts.table();
        assert!(table.counted.len() <= MAX_COUNTED && table.places.len() <= MAX_PLACES);
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_do_not_answer_give_way_and_never_take_a_place_from_one_that_does() {
        let hosts = Hosts::new();
        for number in 0..1_000 {
            hosts.add(&format!("nobody{number}.example"), false, FILLED, 0);
        }
        hosts.add("cdn.example.com", true, FILLED, 1);
        tokio::time::advance(CHANGE_INTERVAL).await;
        hosts.add("cdn.example.com", true, FILLED, 1);
        assert!(names(&hosts).contains(&"cdn.example.com".to_owned()));
        for _ in 0..100 {
            hosts.add("nobody999.example", false, FILLED, 0);
            tokio::time::advance(CHANGE_INTERVAL).await;
        }
        assert!(!names(&hosts).contains(&"nobody999.example".to_owned()));
        assert!(names(&hosts).contains(&"cdn.example.com".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn equals_do_not_change_places_and_nothing_counted_is_lost_while_none_does() {
        let hosts = Hosts::new();
        for _ in 0..100 {
            for number in 0..110 {
                hosts.add(&format!("h{number}.example.com"), true, FILLED, 1);
            }
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        assert_eq!(
            names(&hosts)[..100],
            (0..100).map(|number| format!("h{number}.example.com")).collect::<Vec<_>>()
        );
        assert_eq!(total(&hosts), 11_000);
    }
}
