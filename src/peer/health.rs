//! Whether a peer that is called answers, and what the log has been told about that.
//!
//! A peer may hang for long before its first call times out, and its connection stays up all the
//! while. So silence is measured from the first call that waits, and is known for what it is long
//! before the breaker may blame anybody.
//!
//! Pure: it has no clock of its own.

use std::time::Duration;

use tokio::time::Instant;

/// A peer with calls under way that answers none of them for so long does not answer.
pub const UNANSWERED_MAX: Duration = Duration::from_secs(2);

/// A peer that refuses everything for so long is told. One tenant's trouble passes sooner.
const FAILING_TOLD_AFTER: Duration = Duration::from_secs(10);

/// How the wait for one answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// With an answer, whatever it says.
    Answered,
    TimedOut,
    /// We gave the call up, or its connection ended.
    GivenUp,
}

/// What answers have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The write is stored, or refused for good.
    Done,
    /// An error that is no tenant's, and of which the breaker takes no notice.
    Failed,
}

/// How one peer answers.
#[derive(Debug, Default)]
pub struct Health {
    calls: u32,
    /// The first call that waits, or the last answer if calls wait that were there before. Stays
    /// when calls time out: what they waited for is still owed.
    unanswered_since: Option<Instant>,
    is_owed: bool,
    /// The first of the errors that were all there was, and the last time it was told.
    failing: Option<Failing>,
    /// Since when the peer has been out, if the log has it so.
    told_out: Option<Instant>,
    answering_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    is_told: bool,
}

impl Health {
    /// A call begins to wait.
    pub fn begin(&mut self, now: Instant) {
        self.calls += 1;
        self.unanswered_since.get_or_insert(now);
    }

    /// A call waits no more.
    pub fn end(&mut self, waited: Waited, now: Instant) {
        self.calls = self.calls.saturating_sub(1);
        match waited {
            Waited::Answered => {
                if self.is_unanswered(now) {
                    self.answering_since = Some(now);
                }
                self.is_owed = false;
                self.unanswered_since = (self.calls > 0).then_some(now);
            }
            Waited::TimedOut => self.is_owed = true,
            Waited::GivenUp => {
                if self.calls == 0 && !self.is_owed {
                    self.unanswered_since = None;
                }
            }
        }
    }

    /// The peer is there again under a new connection: what it owed is forgotten.
    pub fn forgive(&mut self, now: Instant) {
        self.is_owed = false;
        self.unanswered_since = (self.calls > 0).then_some(now);
    }

    /// For how long calls have been waiting without any answer.
    pub fn unanswered_for(&self, now: Instant) -> Option<Duration> {
        self.unanswered_since.map(|since| now.saturating_duration_since(since))
    }

    /// Whether that is too long.
    pub fn is_unanswered(&self, now: Instant) -> bool {
        self.unanswered_for(now).is_some_and(|silence| silence >= UNANSWERED_MAX)
    }

    /// When it will be, unless an answer comes.
    pub fn unanswered_at(&self) -> Option<Instant> {
        self.unanswered_since.map(|since| since + UNANSWERED_MAX)
    }

    /// The last silence that was too long ended then.
    pub fn answering_since(&self) -> Option<Instant> {
        self.answering_since
    }

    /// The log is to have it that the peer is out, unless it has.
    pub fn tell_out(&mut self, since: Instant) -> bool {
        let is_news = self.told_out.is_none();
        self.told_out.get_or_insert(since);
        is_news
    }

    /// The log has it that the peer is out.
    pub fn is_told_out(&self) -> bool {
        self.told_out.is_some()
    }

    /// The log is to have it that the peer is back; for how long it was out, if it had that.
    pub fn tell_back(&mut self, now: Instant) -> Option<Duration> {
        self.told_out.take().map(|since| now.saturating_duration_since(since))
    }

    /// Takes note of what an answer said. An error is news once there has been nothing else for
    /// long; an answer that is none is news if errors were: then it tells for how long.
    pub fn note(&mut self, said: Said, now: Instant) -> Option<(Said, Duration)> {
        let failing = match said {
            Said::Done => {
                let failing = self.failing.take()?;
                return failing
                    .is_told
                    .then(|| (said, now.saturating_duration_since(failing.since)));
            }
            Said::Failed => self.failing.get_or_insert(Failing { since: now, is_told: false }),
        };
        let lasts = now.saturating_duration_since(failing.since);
        if failing.is_told || lasts < FAILING_TOLD_AFTER {
            return None;
        }
        failing.is_told = true;
        Some((said, lasts))
    }

    /// For how long all answers have been errors.
    pub fn failing_for(&self, now: Instant) -> Option<Duration> {
        self.failing.map(|failing| now.saturating_duration_since(failing.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn silence_is_measured_from_the_first_call_that_waits() {
        let (mut health, begin) = (Health::default(), Instant::now());
        assert_eq!(health.unanswered_for(begin), None);
        health.begin(begin);
        health.begin(begin + ms(1500));
        assert!(!health.is_unanswered(begin + ms(1999)));
        assert!(health.is_unanswered(begin + ms(2000)));
        assert_eq!(health.unanswered_at(), Some(begin + UNANSWERED_MAX));
        // An answer to one is an answer; the other waits from then on.
        health.end(Waited::Answered, begin + ms(2500));
        assert_eq!(health.unanswered_for(begin + ms(2600)), Some(ms(100)));
        assert_eq!(health.answering_since(), Some(begin + ms(2500)));
        health.end(Waited::Answered, begin + ms(2700));
        assert_eq!(health.unanswered_for(begin + ms(9000)), None, "nothing is asked");
    }

    #[test]
    fn who_lets_calls_time_out_still_owes_an_answer() {
        let (mut health, begin) = (Health::default(), Instant::now());
        health.begin(begin);
        health.end(Waited::TimedOut, begin + ms(1000));
        assert_eq!(health.unanswered_for(begin + ms(1200)), Some(ms(1200)));
        health.begin(begin + ms(1300));
        health.end(Waited::GivenUp, begin + ms(1400));
        assert!(health.is_unanswered(begin + ms(2000)));
        health.begin(begin + ms(3000));
        health.end(Waited::Answered, begin + ms(3001));
        assert_eq!(health.unanswered_for(begin + ms(3002)), None);
    }

    #[test]
    fn calls_that_we_give_up_say_nothing() {
        let (mut health, begin) = (Health::default(), Instant::now());
        health.begin(begin);
        health.end(Waited::GivenUp, begin + ms(5000));
        assert_eq!(health.unanswered_for(begin + ms(5000)), None);
    }

    #[test]
    fn a_new_connection_forgives() {
        let (mut health, begin) = (Health::default(), Instant::now());
        health.begin(begin);
        health.end(Waited::TimedOut, begin + ms(3000));
        health.forgive(begin + ms(3100));
        assert!(!health.is_unanswered(begin + ms(9000)));
    }

    #[test]
    fn an_outage_is_told_once_and_so_is_its_end() {
        let (mut health, begin) = (Health::default(), Instant::now());
        assert_eq!(health.tell_back(begin), None);
        assert!(health.tell_out(begin));
        assert!(!health.tell_out(begin + ms(10)));
        assert_eq!(health.tell_back(begin + ms(70)), Some(ms(70)));
        assert_eq!(health.tell_back(begin + ms(80)), None);
    }

    #[test]
    fn errors_are_news_if_there_is_nothing_else_for_long() {
        let (mut health, begin) = (Health::default(), Instant::now());
        assert_eq!(health.note(Said::Failed, begin), None);
        assert_eq!(health.note(Said::Done, begin + ms(9000)), None, "never told");
        assert_eq!(health.note(Said::Failed, begin + ms(9500)), None);
        assert_eq!(health.note(Said::Failed, begin + ms(19_499)), None);
        let told = health.note(Said::Failed, begin + ms(19_500));
        assert_eq!(told, Some((Said::Failed, FAILING_TOLD_AFTER)));
        assert_eq!(health.note(Said::Failed, begin + ms(30_000)), None, "told once");
        assert_eq!(health.failing_for(begin + ms(30_000)), Some(ms(20_500)));
        let told = health.note(Said::Done, begin + ms(30_500));
        assert_eq!(told, Some((Said::Done, ms(21_000))));
        assert_eq!(health.failing_for(begin + ms(30_500)), None);
    }
}
