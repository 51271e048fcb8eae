//! How one rule goes on, whatever becomes of its link: as ever, or waiting, or trying with one message.
//!
//! ```text
//! going ─ refused, missing, full → waiting ─ due → trying ─ taken → going
//!                                     ▲               │
//!                                     └─── refused ───┘
//! ```
//!
//! Always true: a rule that waits has no channel there and no consumer here, and holds nothing but itself; the
//! range that pauses are taken from grows with each refusal, until something is taken, or its queue there was
//! consumed for long; what was sent before a refusal and is taken after it ends no wait.

use leveret_bridge::{Backoff, Cause};
use leveret_core::time::{Deadline, Now};

/// What was logged lately of a rule or an upstream: some causes, for they take turns.
#[derive(Clone, Default, Debug)]
pub(super) struct Told(heapless::HistoryBuf<Cause, 3>);

impl Told {
    /// Whether this cause is to be logged, as it is then.
    pub(super) fn is_news(&mut self, cause: &Cause) -> bool {
        let is_news = !self.0.contains(cause);
        if is_news {
            self.0.write(cause.clone());
        }
        is_news
    }

    /// What happens next is news.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// What ends the trouble of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Remedy {
    /// Its channel at the upstream is open again.
    Open,
    /// A message is taken.
    Taken,
    /// A message that is sent alone is taken: they are tried one by one.
    OneTaken,
}

/// One rule's course.
#[derive(Clone, Default, Debug)]
pub(super) struct Course {
    backoff: Backoff,
    /// Why the rule is held, and since when; what ends that.
    error: Option<(Cause, Now, Remedy)>,
    waits: Option<Deadline>,
    /// Since when its queue there is consumed again, while nothing of it was taken.
    open_since: Option<Now>,
    /// What was refused was a message, or one of several: they are tried one by one.
    is_careful: bool,
    /// What was logged since it last went on.
    told: Told,
    /// Messages that nothing here can take, and that its queue there keeps.
    pub(super) held: u16,
}

impl Course {
    /// Whether it is to take nothing now.
    pub(super) fn waits(&self, now: Now) -> bool {
        self.waits.is_some_and(|until| !until.is_due(now))
    }

    /// When it tries; never if it does not wait.
    pub(super) fn deadline(&self) -> Deadline {
        self.waits.unwrap_or(Deadline::NEVER)
    }

    /// Ends the wait of the course if its time to try has come.
    pub(super) fn take_due(&mut self, now: Now) {
        self.waits.take_if(|until| until.is_due(now));
    }

    /// Has the course try now.
    pub(super) fn hurry(&mut self, now: Now) {
        if let Some(until) = &mut self.waits {
            *until = now.after_ms(0);
            self.backoff.reset();
            // One message at a time, all the same.
            self.backoff.note_failure();
        }
    }

    /// Why the rule is held, and since when; `None`: it is not held.
    pub(super) fn error(&self) -> Option<(&Cause, Now)> {
        self.error.as_ref().map(|(cause, at, _)| (cause, *at))
    }

    /// Notes that the channel at the upstream is open: an error that needed no more is mended.
    pub(super) fn note_ready(&mut self) {
        let is_careful = self.is_careful;
        self.error.take_if(|(.., remedy)| *remedy == Remedy::Open && !is_careful);
    }

    /// Whether it takes one message at a time, to see if that is taken.
    pub(super) const fn is_careful(&self) -> bool {
        self.is_careful
    }

    /// How often it was refused in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Has the course wait from now on, for this cause, until the remedy; says whether the cause is news.
    pub(super) fn wait(
        &mut self,
        now: Now,
        (cause, remedy): (&Cause, Remedy),
        most_ms: u64,
        chance: u64,
    ) -> bool {
        if self.waits.is_none() {
            self.waits = Some(self.backoff.fail(now, self.open_since.take(), most_ms, chance));
            if self.failures() == 1 {
                self.told.forget();
            }
        }
        self.is_careful |= remedy == Remedy::OneTaken;
        self.error = Some((cause.clone(), now, remedy));
        self.told.is_news(cause)
    }

    /// Notes that the queue at the upstream is consumed: if that lasts, it was all that the course waited for,
    /// unless a message was refused.
    pub(super) fn note_open(&mut self, now: Now) {
        self.open_since = Some(now).filter(|_| !self.is_careful);
    }

    /// Something was taken; whether it had to be tried.
    pub(super) fn note_taken(&mut self) -> bool {
        // What was under way before the refusal says nothing of what is to be tried.
        if self.waits.is_some() {
            return false;
        }
        let was_trying = self.failures() > 0;
        if was_trying {
            let held = self.held;
            *self = Self { held, ..Self::default() };
        }
        was_trying
    }
}
