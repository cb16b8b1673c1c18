//! Busy polling: a thread that carries tunnels does not go to sleep when what it waits for is about to come.
//!
//! Sleeping costs little and being woken does not: 10 to 40 µs when the processor is idle, more so in a virtual machine, and a round
//! trip through a tunnel has six of them where plain TCP has two. So where one thing after the other has come soon for a while, the
//! thread asks the kernel for the next again and again, and offers the processor to others each time. It keeps off for a while when
//! it had to wait longer than it should on average, and when the processor has other things to do.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// So many in a row must have come soon before it is tried: what comes at random seldom does.
const CERTAIN: u32 = 8;
/// What comes soon may take so many times the wait that is worth it: polling, here and at the other end, makes it shorter.
const HOPE: u32 = 2;
/// So many waits are looked at together.
const SAMPLE: u32 = 32;
/// How long [`ask`] asks.
const MOMENT: Duration = Duration::from_micros(100);
/// When it takes so long until the thread polls again, the processor has other things to do: other threads, or what this one carries.
const WANTED: Duration = Duration::from_micros(500);
/// How long nothing is polled for after it did not pay; twice that the next time, and so on.
const FIRST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_millis(500);

/// What has come of late, and so what to expect.
#[derive(Clone, Copy, Debug)]
struct Forecast {
    /// The longest wait that is worth it, on average.
    longest: Duration,
    last: Option<Instant>,
    /// How many have come soon, one after the other.
    soon: u32,
    polling: bool,
    /// Waits since polling was last held to be worth it, in all, and how many.
    waited: Duration,
    waits: u32,
    rest: Duration,
    resting_until: Option<Instant>,
}

impl Forecast {
    const fn new(longest: Duration) -> Self {
        Self {
            longest,
            last: None,
            soon: 0,
            polling: false,
            waited: Duration::ZERO,
            waits: 0,
            rest: FIRST_REST,
            resting_until: None,
        }
    }

    /// Something has come. Returns whether to begin to poll for the next.
    fn heard(&mut self, now: Instant) -> bool {
        let gap = self.last.replace(now).map(|last| now.saturating_duration_since(last));
        let Some(gap) = gap.filter(|gap| *gap < self.longest * HOPE) else {
            self.soon = 0;
            return false;
        };
        self.soon = self.soon.saturating_add(1);
        if self.polling {
            self.count(gap, now);
            return false;
        }
        self.polling = self.soon >= CERTAIN && !self.is_resting(now);
        self.polling
    }

    /// Whether to go on polling.
    fn goes_on(&mut self, now: Instant) -> bool {
        let waiting = self.last.map(|last| now.saturating_duration_since(last));
        if self.polling && waiting.is_none_or(|waiting| waiting >= self.longest * HOPE) {
            self.polling = false;
            self.count(self.longest * HOPE, now);
        }
        self.polling
    }

    fn is_resting(&self, now: Instant) -> bool {
        self.resting_until.is_some_and(|end| now < end)
    }

    /// One more wait. When they are too long it is over.
    fn count(&mut self, wait: Duration, now: Instant) {
        self.waited += wait;
        self.waits += 1;
        if self.waits < SAMPLE {
            return;
        }
        if self.waited > self.longest * SAMPLE {
            return self.give_up(now);
        }
        (self.waited, self.waits, self.rest) = (Duration::ZERO, 0, FIRST_REST);
    }

    fn give_up(&mut self, now: Instant) {
        (self.waited, self.waits, self.soon, self.polling) = (Duration::ZERO, 0, 0, false);
        self.resting_until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(LONGEST_REST);
    }
}

/// By all threads.
static POLLS: AtomicU64 = AtomicU64::new(0);

/// How often the threads of this process have asked for the next thing, and not slept. Once takes about a microsecond.
pub fn polls() -> u64 {
    POLLS.load(Ordering::Relaxed)
}

thread_local! {
    static FORECAST: Cell<Forecast> = const { Cell::new(Forecast::new(Duration::ZERO)) };
    /// Of [`run`], while it sleeps.
    static ASLEEP: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

fn forecast<T>(ask: impl FnOnce(&mut Forecast) -> T) -> T {
    let mut forecast = FORECAST.get();
    let answer = ask(&mut forecast);
    FORECAST.set(forecast);
    answer
}

/// To be called when something has come for a tunnel: bytes, a request, an answer.
pub(super) fn heard() {
    if !FORECAST.get().longest.is_zero()
        && forecast(|forecast| forecast.heard(Instant::now()))
        && let Some(run) = ASLEEP.take()
    {
        run.wake();
    }
}

/// Keeps the calling thread's runtime from sleeping where the next thing comes within `longest`, on average, until `stop`; zero for
/// never. The runtime must be a single thread's.
pub(super) async fn run(longest: Duration, stop: &CancellationToken) {
    forecast(|forecast| forecast.longest = longest);
    let mut stopped = pin!(stop.cancelled());
    loop {
        tokio::select! {
            () = &mut stopped => return,
            () = woken() => {}
        }
        let mut now = Instant::now();
        while !stop.is_cancelled() && forecast(|forecast| forecast.goes_on(now)) {
            POLLS.fetch_add(1, Ordering::Relaxed);
            now = offer(now);
            // The runtime asks the kernel before it comes back here.
            tokio::task::yield_now().await;
        }
    }
}

/// Asks `done` again and again for a moment, while the thread goes on with other things. Returns whether it was; `None`: the
/// processor has better things to do.
pub(super) async fn ask(mut done: impl FnMut() -> bool) -> Option<bool> {
    let begun = Instant::now();
    let mut now = begun;
    while now.saturating_duration_since(begun) < MOMENT {
        if forecast(|forecast| forecast.longest.is_zero() || forecast.is_resting(now)) {
            return None;
        }
        now = offer(now);
        tokio::task::yield_now().await;
        if done() {
            return Some(true);
        }
    }
    Some(false)
}

/// Lets others have the processor, `since` something went before. Returns the time.
fn offer(since: Instant) -> Instant {
    thread::yield_now();
    let now = Instant::now();
    if now.saturating_duration_since(since) > WANTED {
        forecast(|forecast| forecast.give_up(now));
    }
    now
}

/// Until [`heard`] says so.
async fn woken() {
    let mut asleep = false;
    poll_fn(|cx| {
        if asleep && ASLEEP.with_borrow(Option::is_none) {
            return Poll::Ready(());
        }
        asleep = true;
        ASLEEP.set(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(200);
    const SOON: Duration = Duration::from_micros(50);

    /// What it says of things that come with this gap.
    fn after(forecast: &mut Forecast, now: &mut Instant, gap: Duration, count: u32) -> Vec<bool> {
        let heard = |_| {
            *now += gap;
            forecast.heard(*now)
        };
        (0..count).map(heard).collect()
    }

    #[test]
    fn it_polls_when_enough_have_come_soon_in_a_row() {
        let (mut forecast, mut now) = (Forecast::new(LONGEST), Instant::now());
        let polls = after(&mut forecast, &mut now, SOON, CERTAIN);
        assert!(!polls.contains(&true), "the first one has no gap");
        after(&mut forecast, &mut now, LONGEST * HOPE, 1);
        let polls = after(&mut forecast, &mut now, SOON, CERTAIN);
        assert_eq!(polls.iter().position(|poll| *poll), Some(CERTAIN as usize - 1));
    }

    #[test]
    fn it_stops_waiting_for_what_does_not_come() {
        let (mut forecast, mut now) = (Forecast::new(LONGEST), Instant::now());
        assert!(!forecast.goes_on(now), "nothing has ever come");
        after(&mut forecast, &mut now, SOON, CERTAIN + 1);
        assert!(forecast.goes_on(now + LONGEST * HOPE - SOON));
        assert!(!forecast.goes_on(now + LONGEST * HOPE));
        assert!(!forecast.goes_on(now), "it is over");
    }

    #[test]
    fn it_keeps_off_when_the_waits_are_not_worth_it_and_longer_each_time() {
        let (mut forecast, mut now) = (Forecast::new(LONGEST), Instant::now());
        let slow = LONGEST + SOON;
        let mut rests = Vec::new();
        for _ in 0..3 {
            while !forecast.heard(now) {
                now += slow;
            }
            let begun = now;
            while forecast.goes_on(now) {
                now += slow;
                forecast.heard(now);
            }
            assert_eq!(now - begun, slow * SAMPLE);
            rests.push(forecast.resting_until.unwrap() - now);
        }
        assert_eq!(rests, [FIRST_REST, FIRST_REST * 2, FIRST_REST * 4]);
        while !forecast.heard(now) {
            now += SOON;
        }
        after(&mut forecast, &mut now, SOON, SAMPLE);
        assert!(forecast.goes_on(now));
        assert_eq!(forecast.rest, FIRST_REST, "it has paid");
    }

    #[test]
    fn it_keeps_off_while_others_need_the_processor() {
        let (mut forecast, mut now) = (Forecast::new(LONGEST), Instant::now());
        after(&mut forecast, &mut now, SOON, CERTAIN + 1);
        forecast.give_up(now);
        let within = u32::try_from(FIRST_REST.as_micros() / SOON.as_micros()).unwrap();
        let polls = after(&mut forecast, &mut now, SOON, within);
        assert_eq!(polls.iter().position(|poll| *poll), Some(within as usize - 1));
    }

    #[tokio::test]
    async fn a_thread_polls_while_things_come_and_sleeps_after_them() {
        let stop = CancellationToken::new();
        let longest = Duration::from_millis(20);
        let events = async {
            for _ in 0..=CERTAIN {
                assert!(ASLEEP.with_borrow(Option::is_some), "it is too early to poll");
                heard();
                tokio::task::yield_now().await;
            }
            assert!(ASLEEP.with_borrow(Option::is_none), "it polls");
            while ASLEEP.with_borrow(Option::is_none) {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        tokio::join!(run(longest, &stop), async {
            tokio::task::yield_now().await;
            events.await;
        });
        FORECAST.set(Forecast::new(Duration::ZERO));
    }
}
