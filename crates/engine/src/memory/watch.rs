//! Whether the bank has become too large for the machine, from what the system counts: major faults of this process, time that
//! tasks stood still for want of memory, and memory left.
//!
//! The hit rate is no sign: a bank that the system swaps out hits as often as one in memory, and is many times slower.
//!
//! A bank that was made smaller grows again once memory has been fine for a while, in steps smaller than those down; each growth that
//! turns out to have been too much doubles the wait before the next, so that a bank does not swing between two sizes.

use std::time::Duration;

/// What the system had counted at one moment. A count that it does not keep is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Since some fixed moment.
    pub at: Duration,
    /// Pages that this process had to wait for a drive for, since it began.
    pub major_faults: Option<u64>,
    /// Time for which some task stood still for want of memory, since the system started.
    pub stalled: Option<Duration>,
    /// Memory that may still be taken, in bytes.
    pub available_bytes: Option<u64>,
}

/// What the bank has, and what it cannot go below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of the bank now.
    pub bank_bytes: u64,
    /// Bytes of the smallest bank that works.
    pub floor_bytes: u64,
    /// Bytes of the bank as it was planned: it never grows beyond that.
    pub planned_bytes: u64,
    /// Whether every slot is in use. Else more of them would gain nothing, and those that are empty may not have their memory yet.
    pub full: bool,
    /// What the bank was planned to leave to the system.
    pub reserve_bytes: u64,
}

/// What to do about the bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Fine,
    /// Make it this small; never below the floor.
    Shrink {
        /// Bytes that it should have.
        to_bytes: u64,
        /// What was seen.
        why: Sign,
    },
    /// Memory has been fine for long enough: make it this large; never beyond what was planned.
    Grow {
        /// Bytes that it should have.
        to_bytes: u64,
    },
    /// It should be smaller and is at its floor.
    AtFloor {
        /// What was seen.
        why: Sign,
    },
}

/// What gave it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Pages of this process come back from a drive.
    MajorFaults,
    /// Tasks stand still for want of memory.
    Stalls,
    /// Hardly any memory is left.
    Memory,
}

/// A process that reads its experts past the page cache has next to none of these; a few are program text coming back.
const MAJOR_FAULTS_PER_S: f64 = 50.0;
/// Share of the time for which tasks may stand still for want of memory.
const STALLED_SHARE: f64 = 0.10;
/// A step down where nothing says how much is too much: an eighth of the bank.
const STEP: u64 = 8;
/// A step up: a sixteenth of what was planned, half of a step down at most.
const STEP_UP: u64 = 16;
/// How long memory has to be fine before the first step up; doubled by each shrink that undoes a growth.
const CALM: Duration = Duration::from_secs(30);
/// However often that happened: one vain attempt an hour.
const CALM_MAX: Duration = Duration::from_secs(3600);
/// From one step up to the next, while all stays fine: time for the new slots to be filled.
const PAUSE: Duration = Duration::from_secs(10);
/// Samples closer together than this say nothing about rates.
const INTERVAL_MIN: Duration = Duration::from_millis(200);

/// What two samples, one after the other, say about the bank.
///
/// Memory that ran short is answered by what is missing; faults and stalls, which say that but not by how much, by an eighth.
/// Stalls alone can be another process's: they count only while less than the reserve is left.
pub fn decide(before: &Sample, now: &Sample, needs: &Needs) -> Decision {
    let interval = now.at.saturating_sub(before.at);
    if interval < INTERVAL_MIN {
        return Decision::Fine;
    }
    let available = now.available_bytes.unwrap_or(u64::MAX);
    let missing = needs.reserve_bytes.saturating_sub(available);
    let per_s = |count: u64| count as f64 / interval.as_secs_f64();
    let faults = before.major_faults.zip(now.major_faults).map(|(then, now)| per_s(now.saturating_sub(then)));
    let stalled = before
        .stalled
        .zip(now.stalled)
        .map(|(then, now)| now.saturating_sub(then).as_secs_f64() / interval.as_secs_f64());
    let step = needs.bank_bytes / STEP;
    let (why, by) = if faults.is_some_and(|rate| rate > MAJOR_FAULTS_PER_S) {
        (Sign::MajorFaults, missing.max(step))
    } else if available < needs.reserve_bytes / 2 {
        (Sign::Memory, missing)
    } else if missing > 0 && stalled.is_some_and(|share| share > STALLED_SHARE) {
        (Sign::Stalls, missing.max(step))
    } else {
        return Decision::Fine;
    };
    let to_bytes = needs.bank_bytes.saturating_sub(by).max(needs.floor_bytes);
    if to_bytes < needs.bank_bytes { Decision::Shrink { to_bytes, why } } else { Decision::AtFloor { why } }
}

/// What a row of samples adds up to.
#[derive(Debug)]
struct Judge {
    last: Sample,
    /// Looks in a row that asked for less: one alone may be a moment's noise.
    strikes: u32,
    /// How long memory has to be fine before the bank grows.
    calm: Duration,
    /// Before this moment it does not grow.
    grow_from: Duration,
    /// Whether it has grown since it last shrank.
    grown: bool,
}

/// Looks in a row that must agree.
const STRIKES: u32 = 2;

impl Judge {
    fn new(first: Sample) -> Judge {
        Judge { last: first, strikes: 0, calm: CALM, grow_from: Duration::ZERO, grown: false }
    }

    fn take(&mut self, now: Sample, needs: &Needs) -> Decision {
        let decision = decide(&self.last, &now, needs);
        self.last = now;
        if decision == Decision::Fine {
            self.strikes = 0;
            return self.grow(needs).map_or(Decision::Fine, |to_bytes| Decision::Grow { to_bytes });
        }
        self.strikes += 1;
        let agreed = self.strikes >= STRIKES;
        if agreed {
            self.strikes = 0;
            if std::mem::take(&mut self.grown) {
                self.calm = (self.calm * 2).min(CALM_MAX);
            }
        }
        self.grow_from = self.grow_from.max(now.at + self.calm);
        if agreed { decision } else { Decision::Fine }
    }

    /// The size of the next step up, if it is time for one and what is planned for the system would still be left.
    fn grow(&mut self, needs: &Needs) -> Option<u64> {
        let lacking = needs.planned_bytes.saturating_sub(needs.bank_bytes);
        if lacking == 0 || !needs.full || self.last.at < self.grow_from {
            return None;
        }
        let step = lacking.min(needs.planned_bytes / STEP_UP);
        if self.last.available_bytes?.saturating_sub(needs.reserve_bytes) < step {
            return None;
        }
        self.grown = true;
        self.grow_from = self.last.at + PAUSE;
        Some(needs.bank_bytes + step)
    }
}

/// Looks now and then, and remembers what it saw. Between two looks it costs a clock; a look allocates nothing.
#[derive(Debug)]
pub struct Watch {
    sources: sources::Sources,
    begun: std::time::Instant,
    every: Duration,
    judge: Judge,
}

impl Watch {
    /// Begins to watch, with a look every second at most.
    pub fn new() -> Watch {
        Watch::every(Duration::from_secs(1))
    }

    fn every(every: Duration) -> Watch {
        let begun = std::time::Instant::now();
        let mut sources = sources::Sources::open();
        let judge = Judge::new(sources.sample(Duration::ZERO));
        Watch { sources, begun, every, judge }
    }

    /// To be called between tokens. A bank is to shrink only after two looks that agree, and to grow only after a time in which
    /// none asked for less.
    pub fn look(&mut self, needs: &Needs) -> Decision {
        let at = self.begun.elapsed();
        if at.saturating_sub(self.judge.last.at) < self.every {
            return Decision::Fine;
        }
        let now = self.sources.sample(at);
        self.judge.take(now, needs)
    }

    /// The last look.
    pub fn last(&self) -> &Sample {
        &self.judge.last
    }
}

impl Default for Watch {
    fn default() -> Self {
        Watch::new()
    }
}

#[cfg(target_os = "linux")]
mod sources {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::super::group::{Group, stat_value};
    use super::{Sample, parse};

    /// Files that stay open, so that a look is a handful of reads into the stack.
    #[derive(Debug)]
    pub(super) struct Sources {
        stat: Option<File>,
        pressure: Option<File>,
        meminfo: Option<File>,
        group: Option<GroupFiles>,
    }

    #[derive(Debug)]
    struct GroupFiles {
        version: u8,
        limit_bytes: u64,
        usage: File,
        stat: File,
    }

    const TEXT_MAX: usize = 8 << 10;

    fn text<'a>(file: Option<&File>, buffer: &'a mut [u8; TEXT_MAX]) -> Option<&'a str> {
        let mut filled = 0;
        while filled < TEXT_MAX {
            match file?.read_at(&mut buffer[filled..], filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(_) => return None,
            }
        }
        std::str::from_utf8(&buffer[..filled]).ok()
    }

    impl Sources {
        pub(super) fn open() -> Sources {
            let open = |path: &str| File::open(path).ok();
            let memory = super::super::Memory::now();
            let files = |group: Group| {
                let (usage, in_group) = match group.version {
                    2 => ("memory.current", Some("memory.pressure")),
                    _ => ("memory.usage_in_bytes", None),
                };
                let open = |name: &str| File::open(group.path.join(name)).ok();
                let files = GroupFiles {
                    version: group.version,
                    limit_bytes: group.limit_bytes,
                    usage: open(usage)?,
                    stat: open("memory.stat")?,
                };
                Some((files, in_group.and_then(open)))
            };
            let (group, pressure) = memory.group.and_then(files).unzip();
            Sources {
                stat: open("/proc/self/stat"),
                pressure: pressure.flatten().or_else(|| open("/proc/pressure/memory")),
                meminfo: open("/proc/meminfo"),
                group,
            }
        }

        pub(super) fn sample(&mut self, at: Duration) -> Sample {
            let mut buffer = [0; TEXT_MAX];
            let major_faults = text(self.stat.as_ref(), &mut buffer).and_then(parse::major_faults);
            let stalled = text(self.pressure.as_ref(), &mut buffer).and_then(parse::stalled);
            let system = text(self.meminfo.as_ref(), &mut buffer).and_then(parse::available_bytes);
            let room = self.group.as_ref().and_then(|group| group.room_bytes(&mut buffer));
            let available_bytes = system.into_iter().chain(room).min();
            Sample { at, major_faults, stalled, available_bytes }
        }
    }

    impl GroupFiles {
        fn room_bytes(&self, buffer: &mut [u8; TEXT_MAX]) -> Option<u64> {
            let used: u64 = text(Some(&self.usage), buffer)?.trim().parse().ok()?;
            let stat = text(Some(&self.stat), buffer)?;
            let keys = match self.version {
                2 => ["inactive_file", "active_file"],
                _ => ["total_inactive_file", "total_active_file"],
            };
            let file_pages: u64 = keys.iter().map(|key| stat_value(stat, key)).sum();
            Some(self.limit_bytes.saturating_sub(used.saturating_sub(file_pages)))
        }
    }
}

/// Elsewhere nothing is counted that could be asked cheaply, so the bank stays as it was planned.
#[cfg(not(target_os = "linux"))]
mod sources {
    use std::time::Duration;

    use super::Sample;

    #[derive(Debug)]
    pub(super) struct Sources;

    impl Sources {
        pub(super) fn open() -> Sources {
            Sources
        }

        pub(super) fn sample(&mut self, at: Duration) -> Sample {
            Sample { at, ..Sample::default() }
        }
    }
}

/// The texts of /proc.
#[cfg(any(target_os = "linux", test))]
mod parse {
    use std::time::Duration;

    /// Field 12 of /proc/self/stat; the second field, a name in brackets, may hold anything.
    pub(super) fn major_faults(stat: &str) -> Option<u64> {
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(9)?.parse().ok()
    }

    /// The microseconds of the line `some` of /proc/pressure/memory.
    pub(super) fn stalled(pressure: &str) -> Option<Duration> {
        let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
        let total = some.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?;
        total.parse().ok().map(Duration::from_micros)
    }

    /// `MemAvailable` of /proc/meminfo.
    pub(super) fn available_bytes(meminfo: &str) -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const NEEDS: Needs = Needs {
        bank_bytes: 16 * GIB,
        floor_bytes: 6 * GIB,
        planned_bytes: 16 * GIB,
        full: true,
        reserve_bytes: 2 * GIB,
    };

    fn sample(s: u64, faults: u64, stalled_ms: u64, available: u64) -> Sample {
        Sample {
            at: Duration::from_secs(s),
            major_faults: Some(faults),
            stalled: Some(Duration::from_millis(stalled_ms)),
            available_bytes: Some(available),
        }
    }

    #[test]
    fn a_quiet_machine_is_fine() {
        let before = sample(10, 1000, 500, 3 * GIB);
        assert_eq!(decide(&before, &sample(11, 1010, 520, 3 * GIB), &NEEDS), Decision::Fine);
        // Less than the reserve is left, but nobody suffers.
        assert_eq!(decide(&before, &sample(11, 1000, 500, 3 * GIB / 2), &NEEDS), Decision::Fine);
        // Somebody suffers, but not for want of what the bank has.
        assert_eq!(decide(&before, &sample(11, 1000, 900, 3 * GIB), &NEEDS), Decision::Fine);
    }

    #[test]
    fn major_faults_cost_an_eighth_or_what_is_missing() {
        let before = sample(10, 1000, 500, 2 * GIB);
        let why = Sign::MajorFaults;
        let now = sample(12, 1101, 500, 2 * GIB);
        assert_eq!(decide(&before, &now, &NEEDS), Decision::Shrink { to_bytes: 14 * GIB, why });
        assert_eq!(decide(&before, &sample(12, 1100, 500, 2 * GIB), &NEEDS), Decision::Fine, "50 per second");
        let larger = Needs { reserve_bytes: 5 * GIB, ..NEEDS };
        let now = sample(12, 2000, 500, GIB);
        assert_eq!(decide(&before, &now, &larger), Decision::Shrink { to_bytes: 12 * GIB, why });
    }

    #[test]
    fn missing_memory_is_given_back() {
        let before = sample(10, 0, 0, 2 * GIB);
        let now = sample(11, 0, 0, GIB / 2);
        let shrink = Decision::Shrink { to_bytes: 16 * GIB - 3 * GIB / 2, why: Sign::Memory };
        assert_eq!(decide(&before, &now, &NEEDS), shrink);
    }

    #[test]
    fn stalls_count_while_memory_is_short() {
        let before = sample(10, 0, 0, 2 * GIB);
        let now = sample(11, 0, 150, 3 * GIB / 2);
        assert_eq!(decide(&before, &now, &NEEDS), Decision::Shrink { to_bytes: 14 * GIB, why: Sign::Stalls });
        assert_eq!(
            decide(&before, &sample(11, 0, 90, 3 * GIB / 2), &NEEDS),
            Decision::Fine,
            "9 % of the time"
        );
    }

    #[test]
    fn nothing_goes_below_the_floor() {
        let before = sample(10, 0, 0, 2 * GIB);
        let now = sample(11, 1000, 0, 0);
        let low = Needs { bank_bytes: 7 * GIB, ..NEEDS };
        let why = Sign::MajorFaults;
        assert_eq!(decide(&before, &now, &low), Decision::Shrink { to_bytes: 6 * GIB, why });
        let lowest = Needs { bank_bytes: 6 * GIB, ..NEEDS };
        assert_eq!(decide(&before, &now, &lowest), Decision::AtFloor { why });
    }

    #[test]
    fn what_is_not_counted_decides_nothing() {
        let at = |s| Sample { at: Duration::from_secs(s), ..Sample::default() };
        assert_eq!(decide(&at(1), &at(2), &NEEDS), Decision::Fine);
        // Counters that went backwards, and samples at the same moment.
        let (later, earlier) = (sample(10, 5, 5, GIB), sample(10, 500, 500, GIB));
        assert_eq!(decide(&later, &earlier, &NEEDS), Decision::Fine);
        assert_eq!(decide(&sample(1, 900, 900, 2 * GIB), &sample(9, 0, 0, 2 * GIB), &NEEDS), Decision::Fine);
    }

    /// A machine of 20 GiB with a bank, looked at once a second. `others` says what other programs take at each second.
    struct Machine<'a> {
        judge: Judge,
        needs: Needs,
        second: u64,
        others: &'a dyn Fn(u64) -> u64,
    }

    impl<'a> Machine<'a> {
        fn new(others: &'a dyn Fn(u64) -> u64) -> Self {
            let judge = Judge::new(sample(0, 0, 0, 4 * GIB));
            Machine { judge, needs: NEEDS, second: 0, others }
        }

        /// What is decided in the next `seconds`, and when, obeyed at once.
        fn run(&mut self, seconds: u64) -> Vec<(u64, Decision)> {
            let mut decisions = Vec::new();
            for _ in 0..seconds {
                self.second += 1;
                let free = (20 * GIB).saturating_sub(self.needs.bank_bytes + (self.others)(self.second));
                let decision = self.judge.take(sample(self.second, 0, 0, free), &self.needs);
                match decision {
                    Decision::Fine => continue,
                    Decision::Shrink { to_bytes, .. } | Decision::Grow { to_bytes } => {
                        self.needs.bank_bytes = to_bytes;
                    }
                    Decision::AtFloor { .. } => {}
                }
                decisions.push((self.second, decision));
            }
            decisions
        }
    }

    fn grows(decisions: &[(u64, Decision)]) -> usize {
        decisions.iter().filter(|(_, decision)| matches!(decision, Decision::Grow { .. })).count()
    }

    #[test]
    fn a_bank_that_was_never_shrunk_does_not_grow() {
        assert_eq!(Machine::new(&|_| 0).run(1000), []);
    }

    #[test]
    fn it_grows_back_in_steps_once_others_are_gone() {
        // Another program takes 6 GiB for a minute.
        let mut machine = Machine::new(&|second| if (10..70).contains(&second) { 6 * GIB } else { 0 });
        let early = machine.run(69);
        assert_eq!(grows(&early), 0, "{early:?}");
        assert!(early.iter().all(|(second, _)| (10..15).contains(second)) && !early.is_empty(), "{early:?}");
        let small = machine.needs.bank_bytes;
        assert!(small <= 13 * GIB, "{small}");
        let late = machine.run(200);
        assert_eq!(machine.needs.bank_bytes, NEEDS.planned_bytes, "{late:?}");
        assert_eq!(grows(&late), late.len(), "{late:?}");
        // Step by step, with the pause between them.
        assert!(late.len() as u64 >= (NEEDS.planned_bytes - small) / (NEEDS.planned_bytes / STEP_UP));
        assert!(late.windows(2).all(|pair| pair[1].0 - pair[0].0 >= PAUSE.as_secs()), "{late:?}");
        assert_eq!(machine.run(1000), []);
    }

    #[test]
    fn it_does_not_grow_before_memory_was_fine_for_a_while_nor_into_the_reserve() {
        // Gone at once: calm begins when nothing is missing any more.
        let mut machine = Machine::new(&|second| if (10..13).contains(&second) { 4 * GIB } else { 0 });
        let decisions = machine.run(100);
        let first = decisions.iter().find(|(_, decision)| matches!(decision, Decision::Grow { .. }));
        let (at, _) = first.expect("it grows in the end");
        assert!(*at >= 11 + CALM.as_secs(), "{decisions:?}");
        // Others stay: as much as they leave beyond the reserve, and not a step more.
        let mut machine = Machine::new(&|second| match second {
            0..10 => 0,
            10..20 => 8 * GIB,
            _ => 5 * GIB,
        });
        assert!(grows(&machine.run(3000)) > 0);
        let free = 20 * GIB - 5 * GIB - machine.needs.bank_bytes;
        let step = NEEDS.planned_bytes / STEP_UP;
        assert!((NEEDS.reserve_bytes..NEEDS.reserve_bytes + step).contains(&free), "{free}");
    }

    #[test]
    fn empty_slots_and_unknown_memory_are_no_reason_to_grow() {
        let shrunk = Needs { bank_bytes: 8 * GIB, ..NEEDS };
        let late = |s| sample(s, 0, 0, 12 * GIB);
        let grown = Decision::Grow { to_bytes: 9 * GIB };
        assert_eq!(Judge::new(late(0)).take(late(100), &shrunk), grown);
        assert_eq!(Judge::new(late(0)).take(late(100), &Needs { full: false, ..shrunk }), Decision::Fine);
        let unknown = Sample { available_bytes: None, ..late(100) };
        assert_eq!(Judge::new(late(0)).take(unknown, &shrunk), Decision::Fine);
        // The last step is what is left.
        let nearly = Needs { bank_bytes: NEEDS.planned_bytes - 5, ..NEEDS };
        let whole = Decision::Grow { to_bytes: NEEDS.planned_bytes };
        assert_eq!(Judge::new(late(0)).take(late(100), &nearly), whole);
    }

    /// Whatever the bank gives back another program takes, and gives it back when the bank has grown: the worst neighbour there is.
    #[test]
    fn a_bank_that_grew_in_vain_waits_longer_each_time() {
        let day = 86_400;
        let mut judge = Judge::new(sample(0, 0, 0, 4 * GIB));
        let (mut needs, mut shrinks) = (NEEDS, Vec::new());
        for second in 1..=day {
            // Nothing is left as soon as the bank is larger than 14 GiB, and plenty below.
            let free = if needs.bank_bytes > 14 * GIB { GIB / 2 } else { 6 * GIB };
            match judge.take(sample(second, 0, 0, free), &needs) {
                Decision::Shrink { to_bytes, .. } => {
                    needs.bank_bytes = to_bytes;
                    shrinks.push(second);
                }
                Decision::Grow { to_bytes } => needs.bank_bytes = to_bytes,
                _ => {}
            }
        }
        let waits: Vec<u64> = shrinks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1] + PAUSE.as_secs()), "{waits:?}");
        assert!(waits.iter().filter(|&&wait| wait < CALM_MAX.as_secs()).count() < 10, "{waits:?}");
        assert!(shrinks.len() > 20 && shrinks.len() < 35, "about one an hour: {waits:?}");
    }

    #[test]
    fn texts_of_the_system_are_understood() {
        let stat = "4242 (a) b (c) R 1 2 3 4 5 6 700 8 99 10 11 12\n";
        assert_eq!(parse::major_faults(stat), Some(99));
        assert_eq!(parse::major_faults("nonsense"), None);
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=4882697\nfull avg10=0.00 total=1\n";
        assert_eq!(parse::stalled(pressure), Some(Duration::from_micros(4_882_697)));
        assert_eq!(parse::stalled("full total=3\n"), None);
        let meminfo = "MemTotal:  100 kB\nMemAvailable:     2048 kB\n";
        assert_eq!(parse::available_bytes(meminfo), Some(2 << 20));
    }

    /// A need that no machine can meet: the first look past the interval is held back, the second is not.
    #[cfg(target_os = "linux")]
    #[test]
    fn two_looks_must_agree() {
        let mut watch = Watch::every(Duration::from_millis(200));
        let needs =
            Needs { bank_bytes: 2, floor_bytes: 1, planned_bytes: 2, full: true, reserve_bytes: u64::MAX };
        assert_eq!(watch.look(&needs), Decision::Fine, "too early to look");
        let mut look = || {
            std::thread::sleep(Duration::from_millis(220));
            watch.look(&needs)
        };
        assert_eq!(look(), Decision::Fine);
        assert_eq!(look(), Decision::Shrink { to_bytes: 1, why: Sign::Memory });
        assert_eq!(look(), Decision::Fine);
        assert!(watch.last().available_bytes.is_some_and(|bytes| bytes > 0));
        assert!(watch.last().major_faults.is_some());
    }
}
