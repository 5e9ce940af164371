//! Whether calls go to a peer, judged by how earlier ones ended.
//!
//! ```text
//!            unavailable, or nothing answered in time
//!      Open ------------------------------------------> Shut until a time
//!       ^  ^                                             |   ^
//!       |  '---------- any answer, even a late one ------|   | the trial failed: twice as long
//!       |                                                v   |
//!       '------------- answered ------------------ Probation-'
//! ```
//!
//! Shut lasts 100 ms at first and twice as long each time, up to a maximum, with jitter. In
//! probation one call is on trial; others wait a moment for its end, and are refused if it does not
//! come. If the trial times out, its tenants are backed off for longer than the peer, so that the
//! next one is somebody else's.
//!
//! A new connection, where there was none, says that the peer is back: what is shut by failures of
//! older ones is on probation at once, and goes on doubling if that fails.
//!
//! A time-out shuts the peer only if it answered no call at all since that call began; if it
//! answered others, the time-out is held against the tenants of the call (their logs may be read at
//! the moment), which are backed off alone, as is one of which the peer says that it is not ready;
//! the first success ends that. Calls that we gave up ourselves, or had no connection
//! for, count for nothing.
//!
//! Pure: it has no clock and no dice of its own.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// The first back-off.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// How long others wait for the call on trial. A peer that is well answers sooner; one that hangs is
/// to cost them no work and no memory.
const TRIAL_WAIT: Duration = Duration::from_millis(250);

/// Tenants backed off at the same time. More than that are too many to be told apart, and their
/// calls go through and time out.
const TENANTS_MAX: usize = 1024;

/// What the breaker of a peer lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls go through.
    Open,
    /// None does until then.
    Shut { until: Instant, backoff: Backoff },
    /// One does, and decides. `backoff` is the one it came from.
    Probation { backoff: Backoff, begun: Instant },
}

/// A length of time that doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backoff(Duration);

impl Backoff {
    fn after(previous: Option<Backoff>, max: Duration) -> Backoff {
        let next = previous.map_or(BACKOFF_MIN, |Backoff(previous)| previous.saturating_mul(2));
        Backoff(next.min(max))
    }

    pub fn duration(self) -> Duration {
        self.0
    }

    /// From half of it to all of it, as `jitter` goes from 0 to 1, so that peers that failed
    /// together are not tried together.
    fn jittered(self, jitter: f64) -> Duration {
        self.0.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// A call that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    begun: Instant,
    on_trial: bool,
}

/// Why a call was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    PeerShut,
    /// Another call decides, soon if the peer is well.
    PeerOnTrial {
        until: Instant,
    },
    TenantShut,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With any status but `Unavailable`.
    Answered,
    /// With a word that the tenant is not ready.
    TenantNotReady,
    /// With `Unavailable`, or with the end of the connection.
    Unavailable,
    TimedOut,
    /// We gave it up, or had no connection for it.
    Cancelled,
}

/// What a time-out was held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blamed {
    Nobody,
    Peer,
    Tenants,
}

/// One peer's breaker.
#[derive(Debug)]
pub struct Breaker {
    backoff_max: Duration,
    state: State,
    /// When it last became open, or ceased to be.
    since: Option<Instant>,
    last_answer: Option<Instant>,
    /// The newest connection of which something is known.
    connection: u64,
    /// Tenants whose calls hang at this peer or are refused as too early.
    tenants: HashMap<Box<str>, TenantShut>,
}

#[derive(Clone, Copy, Debug)]
struct TenantShut {
    since: Instant,
    until: Instant,
    backoff: Backoff,
}

impl Breaker {
    pub fn new(backoff_max: Duration) -> Breaker {
        Breaker {
            backoff_max: backoff_max.max(BACKOFF_MIN),
            state: State::Open,
            since: None,
            last_answer: None,
            connection: 0,
            tenants: HashMap::new(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it has been open, or not open; None if it has always been.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Tenants that are backed off alone.
    pub fn tenants_shut(&self, now: Instant) -> usize {
        self.tenants.values().filter(|tenant| tenant.until > now).count()
    }

    /// Hears of the newest connection that came up after there was none.
    /// Tells whether it is news.
    pub fn see_return(&mut self, connection: u64, now: Instant) -> bool {
        if connection <= self.connection {
            return false;
        }
        self.connection = connection;
        if let State::Shut { until, .. } = &mut self.state {
            *until = now.min(*until);
        }
        for tenant in self.tenants.values_mut() {
            tenant.until = now.min(tenant.until);
        }
        true
    }

    /// Hears which connection a call was made over: how it ends is known of that one.
    pub fn see_used(&mut self, connection: u64) {
        self.connection = self.connection.max(connection);
    }

    /// Asks to call the peer for `tenants`. Who is let through must say how it ended.
    pub fn admit<'t>(
        &mut self,
        tenants: impl IntoIterator<Item = &'t str>,
        now: Instant,
    ) -> Result<Admitted, Refused> {
        if tenants.into_iter().any(|tenant| self.is_tenant_shut(tenant, now)) {
            return Err(Refused::TenantShut);
        }
        match self.state {
            State::Open => Ok(Admitted { begun: now, on_trial: false }),
            State::Shut { until, backoff } if until <= now => {
                self.state = State::Probation { backoff, begun: now };
                Ok(Admitted { begun: now, on_trial: true })
            }
            State::Shut { .. } => Err(Refused::PeerShut),
            State::Probation { begun, .. } if now < begun + TRIAL_WAIT => {
                Err(Refused::PeerOnTrial { until: begun + TRIAL_WAIT })
            }
            State::Probation { .. } => Err(Refused::PeerShut),
        }
    }

    /// Whether a call for `tenant` would be refused without any wait.
    pub fn is_shut_to(&self, tenant: &str, now: Instant) -> bool {
        let is_shut = match self.state {
            State::Open => false,
            State::Shut { until, .. } => now < until,
            State::Probation { begun, .. } => now >= begun + TRIAL_WAIT,
        };
        is_shut || self.is_tenant_shut(tenant, now)
    }

    fn is_tenant_shut(&self, tenant: &str, now: Instant) -> bool {
        // Hashing a name is not for the usual case.
        !self.tenants.is_empty() && self.tenants.get(tenant).is_some_and(|shut| shut.until > now)
    }

    /// Takes note of a call's end. `jitter` is from 0 to 1.
    pub fn end<'t>(
        &mut self,
        call: Admitted,
        ended: Ended,
        tenants: impl IntoIterator<Item = &'t str>,
        now: Instant,
        jitter: f64,
    ) -> Blamed {
        match ended {
            Ended::Answered => {
                self.open(now);
                if !self.tenants.is_empty() {
                    for tenant in tenants {
                        self.tenants.remove(tenant);
                    }
                }
                Blamed::Nobody
            }
            Ended::TenantNotReady => {
                self.open(now);
                self.shut_tenants(call, tenants, now, jitter);
                Blamed::Tenants
            }
            Ended::Unavailable => {
                self.shut(call, now, jitter);
                Blamed::Peer
            }
            Ended::TimedOut if self.last_answer.is_some_and(|answer| answer >= call.begun) => {
                self.shut_tenants(call, tenants, now, jitter);
                if call.on_trial {
                    self.leave_for(State::Open, now);
                }
                Blamed::Tenants
            }
            Ended::TimedOut => {
                self.shut(call, now, jitter);
                if call.on_trial {
                    // It may be these tenants alone that hang: let others have the next trial.
                    self.shut_tenants_after(self.backoff(), call, tenants, now, jitter);
                }
                Blamed::Peer
            }
            Ended::Cancelled => {
                if let (true, State::Probation { backoff, .. }) = (call.on_trial, self.state) {
                    self.state = State::Shut { until: now, backoff };
                }
                Blamed::Nobody
            }
        }
    }

    fn open(&mut self, now: Instant) {
        self.last_answer = Some(now);
        self.leave_for(State::Open, now);
    }

    fn leave_for(&mut self, state: State, now: Instant) {
        if (self.state == State::Open) != (state == State::Open) {
            self.since = Some(now);
        }
        self.state = state;
    }

    fn shut(&mut self, call: Admitted, now: Instant, jitter: f64) {
        let previous = match self.state {
            State::Open => None,
            State::Probation { backoff, .. } if call.on_trial => Some(backoff),
            // Calls from before end one after another; one of them has been counted.
            State::Shut { .. } | State::Probation { .. } => return,
        };
        let backoff = Backoff::after(previous, self.backoff_max);
        self.leave_for(State::Shut { until: now + backoff.jittered(jitter), backoff }, now);
    }

    /// The back-off that the peer is in.
    fn backoff(&self) -> Option<Backoff> {
        match self.state {
            State::Open => None,
            State::Shut { backoff, .. } | State::Probation { backoff, .. } => Some(backoff),
        }
    }

    fn shut_tenants<'t>(
        &mut self,
        call: Admitted,
        tenants: impl IntoIterator<Item = &'t str>,
        now: Instant,
        jitter: f64,
    ) {
        self.shut_tenants_after(None, call, tenants, now, jitter);
    }

    /// Backs tenants off for longer than the last time, and longer than `least`.
    fn shut_tenants_after<'t>(
        &mut self,
        least: Option<Backoff>,
        call: Admitted,
        tenants: impl IntoIterator<Item = &'t str>,
        now: Instant,
        jitter: f64,
    ) {
        for tenant in tenants {
            let previous = match self.tenants.get(tenant) {
                // Calls from before end one after another; one of them has been counted.
                Some(shut) if call.begun < shut.since => continue,
                Some(shut) => Some(shut.backoff),
                None => {
                    if self.tenants.len() >= TENANTS_MAX {
                        self.tenants.retain(|_, shut| shut.until > now);
                    }
                    if self.tenants.len() >= TENANTS_MAX {
                        return;
                    }
                    None
                }
            };
            let backoff = Backoff::after(previous.max(least), self.backoff_max);
            let until = now + backoff.jittered(jitter);
            self.tenants.insert(tenant.into(), TenantShut { since: now, until, backoff });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(5);
    const NO_TENANT: [&str; 0] = [];

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn backoffs_double_up_to_the_maximum() {
        let mut breaker = Breaker::new(MAX);
        let mut now = Instant::now();
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let call = breaker.admit(["a"], now).unwrap();
            assert_eq!(breaker.end(call, Ended::Unavailable, ["a"], now, 1.0), Blamed::Peer);
            let until = now + ms(expected);
            let State::Shut { until: found, .. } = breaker.state() else { panic!("open") };
            assert_eq!(found, until);
            assert_eq!(breaker.admit(["a"], until - ms(1)), Err(Refused::PeerShut));
            now = until;
        }
        let call = breaker.admit(["a"], now).unwrap();
        breaker.end(call, Ended::Answered, ["a"], now, 1.0);
        let call = breaker.admit(["a"], now).unwrap();
        breaker.end(call, Ended::Unavailable, ["a"], now, 0.0);
        let State::Shut { until, .. } = breaker.state() else { panic!("open") };
        assert_eq!(until, now + ms(50), "from the start again, and half of it at least");
    }

    #[test]
    fn in_probation_one_call_decides() {
        let mut breaker = Breaker::new(MAX);
        let begin = Instant::now();
        let older = breaker.admit(NO_TENANT, begin).unwrap();
        let call = breaker.admit(NO_TENANT, begin).unwrap();
        breaker.end(call, Ended::Unavailable, NO_TENANT, begin, 1.0);
        let now = begin + ms(100);
        let trial = breaker.admit(NO_TENANT, now).unwrap();
        let on_trial = Refused::PeerOnTrial { until: now + TRIAL_WAIT };
        assert_eq!(breaker.admit(NO_TENANT, now), Err(on_trial));
        assert!(!breaker.is_shut_to("a", now));
        // One that does not answer soon is taken for shut.
        assert_eq!(breaker.admit(NO_TENANT, now + TRIAL_WAIT), Err(Refused::PeerShut));
        assert!(breaker.is_shut_to("a", now + TRIAL_WAIT));
        // A call from before ends badly: it decides nothing.
        breaker.end(older, Ended::Unavailable, NO_TENANT, now, 1.0);
        assert!(matches!(breaker.state(), State::Probation { .. }));
        // The trial is given up by us: the next call is on trial at once.
        breaker.end(trial, Ended::Cancelled, NO_TENANT, now, 1.0);
        let trial = breaker.admit(NO_TENANT, now).unwrap();
        breaker.end(trial, Ended::TimedOut, NO_TENANT, now + ms(1), 1.0);
        assert_eq!(breaker.admit(NO_TENANT, now), Err(Refused::PeerShut));
        let State::Shut { until, .. } = breaker.state() else { panic!("open") };
        assert_eq!(until, now + ms(201));
    }

    #[test]
    fn a_tenant_that_hangs_does_not_have_every_trial() {
        let mut breaker = Breaker::new(MAX);
        let begin = Instant::now();
        let call = breaker.admit(["a"], begin).unwrap();
        breaker.end(call, Ended::Unavailable, ["a"], begin, 1.0);
        let trial = breaker.admit(["opening"], begin + ms(100)).unwrap();
        let now = begin + ms(5100);
        breaker.end(trial, Ended::TimedOut, ["opening"], now, 1.0);
        let State::Shut { until, .. } = breaker.state() else { panic!("open") };
        assert_eq!(breaker.admit(["opening"], now + ms(399)), Err(Refused::TenantShut));
        assert!(until < now + ms(399));
        let trial = breaker.admit(["a"], until).unwrap();
        breaker.end(trial, Ended::Answered, ["a"], until, 1.0);
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn a_late_answer_opens() {
        let mut breaker = Breaker::new(MAX);
        let now = Instant::now();
        let late = breaker.admit(["a"], now).unwrap();
        let call = breaker.admit(["a"], now).unwrap();
        breaker.end(call, Ended::Unavailable, ["a"], now, 1.0);
        breaker.end(late, Ended::Answered, ["a"], now + ms(10), 1.0);
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn a_peer_that_answers_others_is_not_stuck() {
        let mut breaker = Breaker::new(MAX);
        let begin = Instant::now();
        let hangs = breaker.admit(["opening"], begin).unwrap();
        let answered = breaker.admit(["a"], begin).unwrap();
        breaker.end(answered, Ended::Answered, ["a"], begin + ms(2), 1.0);
        let now = begin + ms(5000);
        assert_eq!(breaker.end(hangs, Ended::TimedOut, ["opening"], now, 1.0), Blamed::Tenants);
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.admit(["a", "opening"], now + ms(99)), Err(Refused::TenantShut));
        assert!(breaker.admit(["a"], now).is_ok());
        assert_eq!(breaker.tenants_shut(now), 1);
        // It hangs again while others are answered: twice as long.
        let hangs = breaker.admit(["opening"], now + ms(100)).unwrap();
        let answered = breaker.admit(["a"], now + ms(100)).unwrap();
        breaker.end(answered, Ended::Answered, ["a"], now + ms(101), 1.0);
        breaker.end(hangs, Ended::TimedOut, ["opening"], now + ms(200), 1.0);
        assert_eq!(breaker.admit(["opening"], now + ms(399)), Err(Refused::TenantShut));
        // An answer ends it.
        let call = breaker.admit(["opening"], now + ms(400)).unwrap();
        breaker.end(call, Ended::Answered, ["opening"], now + ms(401), 1.0);
        assert_eq!(breaker.tenants_shut(now), 0);
    }

    #[test]
    fn a_peer_that_answers_nothing_in_time_is_shut() {
        let mut breaker = Breaker::new(MAX);
        let begin = Instant::now();
        let before = breaker.admit(["a"], begin).unwrap();
        breaker.end(before, Ended::Answered, ["a"], begin + ms(1), 1.0);
        let calls = [(); 3].map(|()| breaker.admit(["a"], begin + ms(2)).unwrap());
        for call in calls {
            let blamed = breaker.end(call, Ended::TimedOut, ["a"], begin + ms(5002), 1.0);
            assert_eq!(blamed, Blamed::Peer);
        }
        let State::Shut { until, .. } = breaker.state() else { panic!("open") };
        assert_eq!(until, begin + ms(5102), "three time-outs at once count once");
    }

    #[test]
    fn a_tenant_that_is_not_ready_is_backed_off_alone_until_its_first_success() {
        let mut breaker = Breaker::new(MAX);
        let mut now = Instant::now();
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            // Calls that are under way at the same time count once.
            let calls = [(); 3].map(|()| breaker.admit(["opening"], now).unwrap());
            for call in calls {
                let ended = Ended::TenantNotReady;
                now += ms(1);
                assert_eq!(breaker.end(call, ended, ["opening"], now, 1.0), Blamed::Tenants);
            }
            assert_eq!(breaker.state(), State::Open);
            assert!(breaker.admit(["a"], now).is_ok());
            let until = now - ms(2) + ms(expected);
            assert_eq!(breaker.admit(["opening"], until - ms(1)), Err(Refused::TenantShut));
            now = until;
        }
        let call = breaker.admit(["opening"], now).unwrap();
        breaker.end(call, Ended::Answered, ["opening"], now, 1.0);
        let call = breaker.admit(["opening"], now).unwrap();
        breaker.end(call, Ended::TenantNotReady, ["opening"], now, 1.0);
        assert_eq!(breaker.admit(["opening"], now + ms(99)), Err(Refused::TenantShut));
        assert!(breaker.admit(["opening"], now + ms(100)).is_ok(), "from the start again");
    }

    #[test]
    fn one_that_is_not_ready_opens_the_peer() {
        let mut breaker = Breaker::new(MAX);
        let now = Instant::now();
        let call = breaker.admit(["a"], now).unwrap();
        breaker.end(call, Ended::Unavailable, ["a"], now, 1.0);
        let trial = breaker.admit(["opening"], now + ms(100)).unwrap();
        breaker.end(trial, Ended::TenantNotReady, ["opening"], now + ms(101), 1.0);
        assert_eq!(breaker.state(), State::Open);
    }

    /// Shut for 3.2 s by calls over connection 1, and tenant "hangs" for longer.
    fn shut_for_long() -> (Breaker, Instant) {
        let mut breaker = Breaker::new(MAX);
        let mut now = Instant::now();
        for _ in 0..5 {
            let call = breaker.admit(["a"], now).unwrap();
            breaker.see_used(1);
            breaker.end(call, Ended::Unavailable, ["a"], now, 1.0);
            let State::Shut { until, .. } = breaker.state() else { panic!("open") };
            now = until;
        }
        let hangs = breaker.admit(["hangs"], now).unwrap();
        breaker.end(hangs, Ended::TimedOut, ["hangs"], now, 1.0);
        (breaker, now)
    }

    #[test]
    fn a_new_connection_is_tried_at_once_and_only_once() {
        let (mut breaker, now) = shut_for_long();
        breaker.see_return(1, now);
        assert_eq!(breaker.admit(["a"], now), Err(Refused::PeerShut), "it is known");
        breaker.see_return(2, now);
        let trial = breaker.admit(["a"], now).unwrap();
        assert!(matches!(breaker.admit(["a"], now), Err(Refused::PeerOnTrial { .. })));
        breaker.see_used(2);
        breaker.end(trial, Ended::Unavailable, ["a"], now, 1.0);
        breaker.see_return(2, now);
        let State::Shut { until, .. } = breaker.state() else { panic!("open") };
        assert_eq!(until, now + MAX, "twice as long as before, up to the maximum");
        assert_eq!(breaker.admit(["a"], now + ms(1)), Err(Refused::PeerShut));

        let (mut breaker, now) = shut_for_long();
        breaker.see_return(2, now);
        let trial = breaker.admit(["hangs"], now).unwrap();
        breaker.end(trial, Ended::Answered, ["hangs"], now, 1.0);
        assert_eq!((breaker.state(), breaker.tenants_shut(now)), (State::Open, 0));
    }

    #[test]
    fn a_call_over_an_old_connection_says_nothing_about_a_new_one() {
        let mut breaker = Breaker::new(MAX);
        let now = Instant::now();
        let call = breaker.admit(["a"], now).unwrap();
        breaker.see_used(1);
        breaker.end(call, Ended::Unavailable, ["a"], now, 1.0);
        breaker.see_return(2, now + ms(1));
        assert!(breaker.admit(["a"], now + ms(1)).is_ok());
    }

    #[test]
    fn it_knows_since_when() {
        let mut breaker = Breaker::new(MAX);
        let now = Instant::now();
        assert_eq!(breaker.since(), None);
        for at in [0, 100] {
            let call = breaker.admit(["a"], now + ms(at)).unwrap();
            breaker.end(call, Ended::Unavailable, ["a"], now + ms(at), 1.0);
            assert_eq!(breaker.since(), Some(now), "out since the first failure");
        }
        for at in [300, 400] {
            let call = breaker.admit(["a"], now + ms(at)).unwrap();
            breaker.end(call, Ended::Answered, ["a"], now + ms(at), 1.0);
            assert_eq!(breaker.since(), Some(now + ms(300)));
        }
    }

    #[test]
    fn tenants_that_hang_are_remembered_up_to_a_bound() {
        let mut breaker = Breaker::new(MAX);
        let now = Instant::now();
        let names: Vec<String> = (0..TENANTS_MAX + 10).map(|i| i.to_string()).collect();
        let call = breaker.admit(NO_TENANT, now).unwrap();
        breaker.shut_tenants(call, names.iter().map(String::as_str), now, 1.0);
        assert_eq!(breaker.tenants.len(), TENANTS_MAX);
        breaker.shut_tenants(call, ["another"], now + MAX, 1.0);
        assert_eq!(breaker.tenants.len(), 1, "those whose time is over make room");
    }
}
