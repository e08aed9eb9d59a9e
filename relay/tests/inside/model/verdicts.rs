//! What is said of an event that comes: which are taken, which are not.

use super::{
    ledger::{Done, Ledger, Reply, Standing},
    rules,
    steps::{Kind, Label, Name, Repo, Step},
};

/// What the rules say of an event that comes.
enum Judged {
    Refused,
    /// Refused, and with it goes what its author had here.
    MovedAway,
    Duplicate,
    Taken,
    /// Taken or refused.
    Either,
}

impl Ledger {
    pub fn send(&mut self, label: Label, is_synced: bool, reply: Reply) -> Result<(), String> {
        let judged = self.judge(label, is_synced);
        let wanted = match (judged, reply) {
            (Judged::Refused | Judged::Either, Reply::Refused) => return Ok(()),
            (Judged::MovedAway, Reply::Refused) => {
                self.move_away(label);
                return Ok(());
            }
            (Judged::Duplicate, Reply::Duplicate) => {
                self.send_again(label);
                return Ok(());
            }
            (Judged::Taken | Judged::Either, Reply::Served | Reply::Waits) => {
                self.take(label);
                return Ok(());
            }
            (Judged::Refused | Judged::MovedAway, _) => "refused",
            (Judged::Duplicate, _) => "a duplicate",
            (Judged::Taken | Judged::Either, _) => "taken",
        };
        Err(format!(
            "{label} is to be {wanted}, and was answered {reply:?}"
        ))
    }

    fn judge(&self, label: Label, is_synced: bool) -> Judged {
        if self.has_expired(label) {
            return Judged::Refused;
        }
        if self.served.contains(&label) {
            return Judged::Duplicate;
        }
        if self.is_deleted(label) {
            return Judged::Refused;
        }
        let judged = match self.fact(label).what.kind {
            Kind::Announcement { .. } => self.judge_announcement(label, is_synced),
            Kind::State { name, .. } => self.judge_state(label, name),
            Kind::PullRequest { to, .. } => self.judge_request(label, to),
            Kind::Deletion(_) => Judged::Taken,
        };
        match judged {
            Judged::Taken if is_synced && self.expired.contains(&label) => Judged::Either,
            judged => judged,
        }
    }

    /// Whether a later version of it is served.
    fn is_replaced(&self, label: Label) -> bool {
        let fact = self.fact(label);
        let stored = fact.address().and_then(|address| self.stored(address));
        stored.is_some_and(|stored| self.fact(stored).version() > fact.version())
    }

    fn judge_announcement(&self, label: Label, is_synced: bool) -> Judged {
        let fact = self.fact(label);
        let repo = fact.announced().expect("an announcement");
        let waiting = self.waiting_for(repo);
        let is_soft = waiting.is_some_and(|waiting| self.waiting[&waiting].is_soft);
        if waiting == Some(label) && is_soft && !is_synced {
            return Judged::Taken;
        }
        let is_behind = |one| self.fact(one).version() >= fact.version();
        if waiting.is_some_and(is_behind) || self.is_replaced(label) {
            return Judged::Duplicate;
        }
        if self.is_overtaken(label) {
            return Judged::Refused;
        }
        if self.is_perhaps_overtaken(label) {
            return Judged::Either;
        }
        match fact.is_here() || rules::is_invited(&self.words(repo.name), repo.owner) {
            true => Judged::Taken,
            false => Judged::MovedAway,
        }
    }

    fn judge_state(&self, label: Label, name: Name) -> Judged {
        if self.waiting.contains_key(&label) {
            return Judged::Duplicate;
        }
        if self.trusting(name, self.fact(label).what.by).is_empty() {
            return Judged::Refused;
        }
        if self.is_replaced(label) {
            return Judged::Duplicate;
        }
        match self.is_overtaken(label) {
            true => Judged::Refused,
            false if self.is_perhaps_overtaken(label) => Judged::Either,
            false => Judged::Taken,
        }
    }

    fn judge_request(&self, label: Label, to: Repo) -> Judged {
        if self.waiting.contains_key(&label) {
            return Judged::Duplicate;
        }
        match self.standing(to) {
            Some(Standing::Active | Standing::Elsewhere) => Judged::Taken,
            _ => Judged::Refused,
        }
    }

    /// Whoever sent something was told what became of it.
    pub fn was_answered(&self, step: &Step, done: &Done) -> Result<(), String> {
        let (Step::Event { label, .. } | Step::Again { label, .. }) = step else {
            return Ok(());
        };
        let is_deletion = matches!(self.facts.get(label), Some(fact) if matches!(fact.what.kind, Kind::Deletion(_)));
        let is_true = match done.reply {
            Some(Reply::Served) => is_deletion || self.served.contains(label),
            Some(Reply::Waits) => self.waiting.contains_key(label),
            _ => true,
        };
        match is_true {
            true => Ok(()),
            false => Err(format!("{label} was answered {:?}", done.reply)),
        }
    }
}
