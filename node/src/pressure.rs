//! STATE MACHINE: how much memory the node uses -> how much work it may take on.
//!
//! Windows and queues bound what one connection can make a node hold; this bounds all of them
//! together. Work is refused before memory runs out, and only if that does not help, some is cut off.
//! It measures nothing and refuses nothing by itself: samples go in, an [`Order`] comes out.
//!
//! The ceiling halves when memory is short and grows back step by step (as TCP's window does),
//! because memory that was given back to the allocator is not always given back to the system: what
//! is measured may stay high when there is room for work again.

use std::time::Duration;

use starling_gossip::clock::Instant;

/// Above this share of the most, in percent, new work is refused.
const SHORT_PERCENT: u64 = 80;

/// Below this one for [`EASY_PERIOD`], everything is as usual again.
const EASY_PERCENT: u64 = 70;

/// Memory that fell may only have been cut off; what stood at the door would fill it at once, and faster
/// than it is looked at. So the door opens by degrees.
const EASY_PERIOD: Duration = Duration::from_secs(2);

/// Above this one, half of the work is cut off.
const CRITICAL_PERCENT: u64 = 90;

/// However short memory is, so much work at a time is let in: a node that takes nothing would
/// never learn that the trouble is over.
const CEILING_MIN: usize = 16;

/// Memory is judged by where it will be after so many more samples, if it goes on growing as it did since the
/// last one: work that was let in goes on filling its windows, at 100 MB/s and more, and a busy node looks late.
const SAMPLES_AHEAD: u32 = 3;

/// What was cut off needs a moment to be gone before more is.
const CUT_PERIOD: Duration = Duration::from_millis(500);

/// How often the ceiling rises while memory does not, by a quarter; it doubles while there is room again.
const RISE_PERIOD: Duration = Duration::from_millis(500);

/// How often memory is looked at when it may soon be short.
pub const SAMPLE_PERIOD: Duration = Duration::from_millis(50);

/// How often it is looked at least, for those who are shown what is used.
const SAMPLE_PERIOD_MAX: Duration = Duration::from_secs(1);

/// As fast as memory may grow: by traffic that nobody reads, and the windows keep it far below that. It is looked at
/// again before it could be short.
const GROWTH_BYTES_PER_MILLI_MAX: u64 = 1_000_000;

/// Of the room below [`SHORT_PERCENT`], the part that may be taken in before memory is looked at again: what is
/// taken in lies in buffers that are larger, two or three times on its way. Beyond that mark QUIC's windows go on
/// filling, an eighth of all memory for each peer.
const ROOM_SHARE: u64 = 4;

/// Of all memory, the part that may be taken in at a look even if there is no room, or nothing would ever move.
const TIGHT_SHARE: u64 = 64;

/// The same above [`CRITICAL_PERCENT`], while half of the work is on its way out.
const CRITICAL_SHARE: u64 = 512;

/// What to do about memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Work that may be under way; `None` is as much as the limits say.
    pub ceiling: Option<usize>,
    /// Cut half of it off now.
    pub cut: bool,
}

/// The state of one node.
#[derive(Debug)]
pub struct Pressure {
    bytes_max: u64,
    /// The last sample.
    last: Option<u64>,
    /// When the next is wanted after it, unless memory is short.
    period: Duration,
    short: Option<Short>,
}

#[derive(Debug)]
struct Short {
    ceiling: usize,
    /// The most memory seen since the ceiling last changed.
    bytes: u64,
    next_rise: Instant,
    next_cut: Instant,
    /// Since when there has been room again.
    easy_since: Option<Instant>,
}

impl Pressure {
    /// For a node that may use `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, last: None, period: SAMPLE_PERIOD, short: None }
    }

    /// Whether memory is short.
    pub fn is_short(&self) -> bool {
        self.short.is_some()
    }

    /// When the next sample is wanted after the last.
    pub fn sample_period(&self) -> Duration {
        if self.is_short() { SAMPLE_PERIOD } else { self.period }
    }

    /// `bytes` are used while `under_way` pieces of work are.
    pub fn handle_sample(&mut self, bytes: u64, under_way: usize, now: Instant) -> Order {
        let grown = bytes.saturating_sub(self.last.replace(bytes).unwrap_or(bytes));
        // What grew within a longer period grew so much slower. A look that is late counts in full.
        let ahead = SAMPLE_PERIOD * SAMPLES_AHEAD;
        let growing = grown.saturating_mul(millis(ahead)) / millis(self.sample_period());
        let expected = bytes.saturating_add(growing);
        let above = |percent: u64| expected >= self.bytes_max / 100 * percent;
        self.period = period(self.bytes_max / 100 * SHORT_PERCENT, expected);
        let halved = (under_way / 2).max(CEILING_MIN);
        match &mut self.short {
            None if above(SHORT_PERCENT) => {
                let next_rise = now + RISE_PERIOD;
                self.short =
                    Some(Short { ceiling: halved, bytes, next_rise, next_cut: now, easy_since: None });
            }
            None => {}
            Some(short) if !above(EASY_PERCENT) => {
                let since = *short.easy_since.get_or_insert(now);
                if now >= since + EASY_PERIOD {
                    self.short = None;
                } else if now >= short.next_rise {
                    short.next_rise = now + RISE_PERIOD;
                    short.ceiling = short.ceiling.saturating_mul(2);
                    // What memory grows by from here is new.
                    short.bytes = bytes;
                }
            }
            Some(short) if above(CRITICAL_PERCENT) && now >= short.next_cut && bytes > short.bytes => {
                *short = Short {
                    ceiling: short.ceiling.min(halved),
                    bytes,
                    next_rise: now + RISE_PERIOD,
                    next_cut: now + CUT_PERIOD,
                    easy_since: None,
                };
                return Order { ceiling: Some(short.ceiling), cut: true };
            }
            Some(short) if bytes > short.bytes => {
                (short.bytes, short.easy_since) = (bytes, None);
                short.next_rise = now + RISE_PERIOD;
            }
            Some(short) => {
                short.easy_since = None;
                if now >= short.next_rise {
                    short.next_rise = now + RISE_PERIOD;
                    short.ceiling = short.ceiling.saturating_add(short.ceiling / 4);
                }
            }
        }
        Order { ceiling: self.short.as_ref().map(|short| short.ceiling), cut: false }
    }
}

/// Bytes that may be taken in before the next look by who may use `bytes_max` and uses `bytes`.
pub fn allowance(bytes_max: u64, bytes: u64) -> u64 {
    if bytes >= bytes_max / 100 * CRITICAL_PERCENT {
        return bytes_max / CRITICAL_SHARE;
    }
    room_share(bytes_max, bytes).max(bytes_max / TIGHT_SHARE)
}

/// Whether those who have used that up may have more as soon as somebody looks, and not only in its time.
pub fn is_roomy(bytes_max: u64, bytes: u64) -> bool {
    room_share(bytes_max, bytes) > bytes_max / TIGHT_SHARE
}

fn room_share(bytes_max: u64, bytes: u64) -> u64 {
    (bytes_max / 100 * SHORT_PERCENT).saturating_sub(bytes) / ROOM_SHARE
}

/// Until memory could reach `short`, from where it will be.
fn period(short: u64, expected: u64) -> Duration {
    let safe = Duration::from_millis(short.saturating_sub(expected) / GROWTH_BYTES_PER_MILLI_MAX);
    safe.clamp(SAMPLE_PERIOD, SAMPLE_PERIOD_MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1_000_000;

    /// Feeds samples 50 ms apart; returns the orders.
    fn feed(pressure: &mut Pressure, samples: &[(u64, usize)], start: Instant) -> Vec<Order> {
        let times = (0..).map(|index| start + SAMPLE_PERIOD * index);
        samples
            .iter()
            .zip(times)
            .map(|((bytes, work), now)| pressure.handle_sample(*bytes, *work, now))
            .collect()
    }

    fn ceilings(orders: &[Order]) -> Vec<Option<usize>> {
        orders.iter().map(|order| order.ceiling).collect()
    }

    #[test]
    fn new_work_is_refused_above_the_mark_until_well_below_it() {
        let mut pressure = Pressure::new(MAX);
        let samples = [(790_000, 100), (800_000, 100), (790_000, 90), (700_000, 60), (699_999, 50)];
        let start = Instant::now();
        let orders = feed(&mut pressure, &samples, start);
        assert_eq!(ceilings(&orders), [None, Some(50), Some(50), Some(50), Some(50)]);
        assert!(orders.iter().all(|order| !order.cut));
        // The door opens by degrees, and is open after a while.
        let easy = start + SAMPLE_PERIOD * 4;
        let mut later =
            |millis| pressure.handle_sample(600_000, 50, easy + Duration::from_millis(millis)).ceiling;
        assert_eq!([500, 1_000, 1_999, 2_000].map(&mut later), [Some(100), Some(200), Some(400), None]);
    }

    #[test]
    fn what_was_cut_off_does_not_come_back_all_at_once() {
        let mut pressure = Pressure::new(MAX);
        let start = Instant::now();
        let flaps = [(850_000, 400), (910_000, 400), (500_000, 200), (850_000, 210), (500_000, 120)];
        let told = ceilings(&feed(&mut pressure, &flaps, start));
        assert_eq!(told, [Some(200); 5]);
        let later = start + SAMPLE_PERIOD * 4 + EASY_PERIOD;
        assert!(
            pressure.handle_sample(750_000, 100, later - SAMPLE_PERIOD).ceiling.is_some(),
            "not easy any more"
        );
        assert!(pressure.handle_sample(500_000, 100, later).ceiling.is_some(), "easy for a moment only");
    }

    #[test]
    fn fast_growth_is_met_before_it_arrives() {
        let grows = [(400_000, 100), (450_000, 200), (550_000, 300), (570_000, 300)];
        let orders = feed(&mut Pressure::new(MAX), &grows, Instant::now());
        assert_eq!(ceilings(&orders), [None, None, Some(150), Some(150)], "850,000 is where 550,000 leads");
        let slow = [(400_000, 100), (420_000, 200), (440_000, 300), (460_000, 300)];
        assert_eq!(ceilings(&feed(&mut Pressure::new(MAX), &slow, Instant::now())), [None; 4]);
    }

    #[test]
    fn memory_is_looked_at_before_it_can_be_short_and_seldom_while_there_is_much() {
        let (now, millis) = (Instant::now(), Duration::from_millis);
        let mut pressure = Pressure::new(2_000_000_000);
        assert_eq!(pressure.sample_period(), SAMPLE_PERIOD);
        pressure.handle_sample(10_000_000, 1, now);
        assert_eq!(pressure.sample_period(), SAMPLE_PERIOD_MAX);
        pressure.handle_sample(1_160_000_000, 1, now);
        assert_eq!(pressure.sample_period(), millis(267), "it has grown, and may go on");
        // It stays where it is: 440 MB are left until it is short.
        pressure.handle_sample(1_160_000_000, 1, now);
        assert_eq!(pressure.sample_period(), millis(440));
        // In 440 ms 100 MB more: 34 MB more are expected within the next three short periods.
        pressure.handle_sample(1_260_000_000, 1, now);
        assert_eq!(pressure.sample_period(), millis(305));
        pressure.handle_sample(1_700_000_000, 1, now);
        pressure.handle_sample(1_410_000_000, 1, now);
        assert!(pressure.is_short());
        assert_eq!(pressure.sample_period(), SAMPLE_PERIOD);
    }

    #[test]
    fn what_may_be_taken_in_ebbs_with_the_room_and_never_ends() {
        let told = [0, 500_000, 720_000, 760_000, 900_000, 2_000_000].map(|bytes| allowance(MAX, bytes));
        assert_eq!(told, [200_000, 75_000, 20_000, 15_625, 1_953, 1_953]);
        assert_eq!([720_000, 760_000].map(|bytes| is_roomy(MAX, bytes)), [true, false]);
    }

    #[test]
    fn half_is_cut_off_while_memory_still_grows_and_not_at_every_look() {
        let mut pressure = Pressure::new(MAX);
        let grows = [(850_000, 200), (900_000, 200), (910_000, 150), (920_000, 100), (930_000, 100)];
        let cuts: Vec<bool> = feed(&mut pressure, &grows, Instant::now()).iter().map(|one| one.cut).collect();
        assert_eq!(cuts, [false, true, false, false, false]);
        let later = Instant::now() + CUT_PERIOD * 2;
        let order = pressure.handle_sample(940_000, 80, later);
        assert_eq!(order, Order { ceiling: Some(40), cut: true });
        // It no longer grows: what was cut off has been given back to the allocator.
        let order = pressure.handle_sample(940_000, 40, later + CUT_PERIOD);
        assert!(!order.cut);
    }

    #[test]
    fn the_ceiling_rises_while_memory_does_not_and_is_never_zero() {
        let mut pressure = Pressure::new(MAX);
        let start = Instant::now();
        assert_eq!(pressure.handle_sample(850_000, 3, start).ceiling, Some(CEILING_MIN));
        let mut ceiling = CEILING_MIN;
        for step in 1..10 {
            let order = pressure.handle_sample(850_000, 3, start + RISE_PERIOD * step);
            let risen = order.ceiling.expect("still short");
            assert!(risen > ceiling, "{risen} after {ceiling}");
            ceiling = risen;
        }
        assert!(pressure.is_short());
    }
}
