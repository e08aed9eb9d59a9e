//! What workers say of the remote relays they hold: shown, and never believed to matter.

use crate::clock::Moment;

/// How a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum State {
    /// There is none.
    #[default]
    Disconnected,
    /// It is being made.
    Connecting,
    /// History is being fetched.
    Syncing,
    /// History is complete.
    Connected,
    /// Some history could not be had.
    ConnectedWithFailures,
}

impl State {
    /// Whether there is a connection.
    pub fn is_connected(self) -> bool {
        self > Self::Connecting
    }

    /// As dashboards read it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connecting => "connecting",
            Self::Syncing => "syncing",
            Self::Connected => "connected",
            Self::ConnectedWithFailures => "connected, history incomplete",
        }
    }
}

/// How a relay is doing, whoever holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should.
    Healthy,
    /// Its last attempts to connect failed.
    Failing,
    /// Nothing but failures for a day.
    Dead,
    /// It asked to be left alone.
    Silent,
}

impl Health {
    /// As dashboards read it.
    pub fn number(self) -> u8 {
        match self {
            Self::Healthy => 1,
            Self::Failing => 2,
            Self::Dead => 3,
            Self::Silent => 4,
        }
    }

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Failing => "failing",
            Self::Dead => "dead",
            Self::Silent => "silent",
        }
    }
}

/// Counts of one relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections made.
    pub succeeded: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Events received live,
    pub live: u64,
    /// by reconciliation,
    pub negentropy: u64,
    /// and page by page.
    pub paged: u64,
}

impl Counts {
    /// What these are more than those.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            succeeded: self.succeeded.saturating_sub(before.succeeded),
            failed: self.failed.saturating_sub(before.failed),
            live: self.live.saturating_sub(before.live),
            negentropy: self.negentropy.saturating_sub(before.negentropy),
            paged: self.paged.saturating_sub(before.paged),
        }
    }

    /// These and those.
    pub fn add(&mut self, more: &Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.succeeded, more.succeeded);
        add(&mut self.failed, more.failed);
        add(&mut self.live, more.live);
        add(&mut self.negentropy, more.negentropy);
        add(&mut self.paged, more.paged);
    }
}

/// What is known of one relay by its workers' reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// How its connection is.
    pub state: State,
    /// Nothing but failures for a day.
    pub dead: bool,
    /// It is left alone until then.
    pub silent_until: Option<Moment>,
    /// When the next attempt to connect is due.
    pub next_attempt: Option<Moment>,
    /// Subscriptions that are open.
    pub subscriptions: u32,
    /// Repositories and root events whose history is complete.
    pub confirmed: u32,
    /// All that are wanted.
    pub wanted: u32,
    /// Since this run began.
    pub counts: Counts,
    /// Why the last connection failed or ended.
    pub last_error: String,
    /// Its last attempt to connect failed.
    pub failing: bool,
}

impl Report {
    /// Nobody holds it any more: there is no connection.
    pub fn ended(&mut self) {
        self.state = State::Disconnected;
        self.subscriptions = 0;
        self.next_attempt = None;
        self.confirmed = 0;
        self.wanted = 0;
    }

    /// What a worker says now; `more` is what happened since it said something last.
    pub fn update(&mut self, said: Self, more: &Counts) {
        let mut counts = self.counts;
        counts.add(more);
        let failing = match (more.succeeded, more.failed) {
            _ if said.state.is_connected() => false,
            (0, 0) => self.failing,
            (_, failed) => failed > 0,
        };
        *self = Self {
            counts,
            failing,
            ..said
        };
    }

    /// How the relay is doing.
    pub fn health(&self, now: Moment) -> Health {
        match self.silent_until {
            Some(until) if until > now => Health::Silent,
            _ if self.dead => Health::Dead,
            _ if self.failing => Health::Failing,
            _ => Health::Healthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_from_what_was_reported() {
        let now = Moment::from_millis(5_000);
        let mut report = Report::default();
        assert_eq!(report.health(now), Health::Healthy);
        let failed = Counts {
            failed: 2,
            ..Counts::default()
        };
        report.update(Report::default(), &failed);
        report.update(Report::default(), &Counts::default());
        assert_eq!(report.health(now), Health::Failing);
        assert_eq!(report.counts.failed, 2);
        let connected = Report {
            state: State::Syncing,
            silent_until: Some(Moment::from_millis(6_000)),
            ..Report::default()
        };
        report.update(connected, &failed);
        assert_eq!(report.counts.failed, 4);
        assert_eq!(report.health(now), Health::Silent);
        assert_eq!(report.health(Moment::from_millis(6_000)), Health::Healthy);
        let dead = Report {
            dead: true,
            ..Report::default()
        };
        report.update(dead, &Counts::default());
        assert_eq!(report.health(now), Health::Dead);
    }
}
