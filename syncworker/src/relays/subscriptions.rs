//! How live subscriptions are kept to what is wanted, and history planned with them.
//!
//! What is subscribed to is decided in [`Live`]; here it is sent, in its time, and what the remote
//! relay closes is opened again.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    health::asks_for_silence,
    live::{Change, Live, interrupt},
    session::{End, Route, Session, live_number, lock},
};

impl Session<'_> {
    /// Keeps live subscriptions to what is wanted, and plans the history of it.
    pub(super) async fn subscribe(&self) -> End {
        let targets = &self.relay.world.targets;
        let timing = &self.relay.world.timing;
        let mut live = Live::new(self.limits);
        let mut changes = targets.changes();
        let (mut hold, mut refusals) = (None::<Instant>, 0_u32);
        let mut waits_for_auth = false;
        let mut first = true;
        loop {
            self.quiet().await;
            let news = std::mem::take(&mut *lock(&self.news));
            for (number, why) in news.closed {
                live.closed(number);
                if why.starts_with("auth-required") && !self.is_authenticated() {
                    waits_for_auth = true;
                } else if !asks_for_silence(&why) {
                    refusals += 1;
                    hold = Some(Instant::now() + timing.refused * refusals.min(10));
                }
            }
            if let Some(too_many) = news.too_many {
                live.shrink(too_many);
            }
            waits_for_auth &= !self.is_authenticated();
            let (version, wanted) = targets.wanted(&self.relay.url);
            let again = self.to_be_sent_again(news.again, news.unheard);
            {
                let mut memory = lock(self.memory);
                let since = news.since.unwrap_or_else(|| timing.overlap_begin());
                memory.cover(&wanted, live.covered(), since);
                if news.unheard {
                    let items = again.iter().flat_map(|number| live.items(*number));
                    memory.coverage.lose(items, since);
                }
            }
            let mut commands = Vec::new();
            if !waits_for_auth && hold.is_none_or(|hold| hold <= Instant::now()) {
                hold = None;
                let before = live.covered().clone();
                commands = live.change(&wanted);
                if interrupt(&commands) {
                    let mut memory = lock(self.memory);
                    memory.coverage.lose(&before, timing.overlap_begin());
                }
            }
            commands.extend(live.again(|number| again.contains(&number)));
            for command in commands {
                // At once, unless that was too fast for it once.
                if self.was_hushed() {
                    sleep(timing.request).await;
                    self.quiet().await;
                }
                self.change(command).await;
            }
            {
                let generations = targets.generations(&self.relay.url);
                let mut memory = lock(self.memory);
                memory.cover(&wanted, live.covered(), timing.overlap_begin());
                memory.generations(generations, |repo| targets.items(repo));
                memory.wanted = wanted;
                if std::mem::take(&mut first) {
                    let longest = self.limits.filter_bytes();
                    memory.plan.reconnected(timing.oldest(), longest);
                }
                memory.refresh(self.limits.filter_bytes());
                memory.tell(&self.relay.status);
            }
            self.relay
                .status
                .change(|facts| facts.subscriptions = live.count());
            self.history_wakes.notify_one();
            loop {
                tokio::select! {
                    _ = changes.changed() => {
                        if targets.version(&self.relay.url) == version {
                            continue;
                        }
                    }
                    () = self.live_wakes.notified() => {}
                    () = sleep_until(hold.unwrap_or_else(Instant::now)), if hold.is_some() => {}
                }
                break;
            }
        }
    }

    /// Of the live subscriptions that are open all, or those that are not known to have been heard.
    fn to_be_sent_again(&self, all: bool, unheard: bool) -> BTreeSet<u64> {
        let routes = lock(&self.routes);
        let these = routes.iter().filter_map(|(id, route)| match route {
            Route::Live { awaited, .. } if all || unheard && *awaited > 0 => live_number(id),
            _ => None,
        });
        these.collect()
    }

    async fn change(&self, change: Change) {
        match change {
            Change::Open(number, filters) => {
                let id = format!("l{number}");
                let mut message = vec![json!("REQ"), json!(id)];
                message.extend(filters.iter().map(|filter| json!(filter)));
                self.route(id, filters);
                self.send(message.into()).await;
            }
            Change::Close(number) => {
                let id = format!("l{number}");
                lock(&self.routes).remove(&id);
                self.send(json!(["CLOSE", id])).await;
            }
        }
    }
}
