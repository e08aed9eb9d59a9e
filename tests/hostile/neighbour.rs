//! Somebody honest, who wants to clone, push and publish while others attack.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{Client, Project, Repo, Service, events};

/// Rounds by which it is known how long things take.
const ROUNDS: usize = 3;

/// How long one round took.
#[derive(Debug, Clone, Copy)]
struct Round {
    event: Duration,
    push: Duration,
    clone: Duration,
}

/// How many times as long things took as they do alone, by the medians.
#[derive(Debug, Clone, Copy)]
pub struct Ratios {
    event: f64,
    push: f64,
    clone: f64,
    rounds: usize,
}

impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            event,
            push,
            clone,
            rounds,
        } = self;
        write!(
            f,
            "event ×{event:.1}, push ×{push:.1}, clone ×{clone:.1} in {rounds} rounds"
        )
    }
}

/// An honest user with a repository.
pub struct Neighbour {
    project: Project,
    client: Client,
    alone: Vec<Round>,
}

impl Neighbour {
    /// One whose repository is served, and who knows how long things take alone.
    pub async fn settle(service: &Service) -> Self {
        let mut client = Client::connect(service).await;
        let project = Project::active(service, &mut client, "neighbour").await;
        let mut neighbour = Self {
            project,
            client,
            alone: Vec::new(),
        };
        // The first is what a cold start takes.
        neighbour.round(service).await;
        for _ in 0..ROUNDS {
            let round = neighbour.round(service).await;
            neighbour.alone.push(round);
        }
        neighbour
    }

    /// Does everything once. All of it has to come out right.
    async fn round(&mut self, service: &Service) -> Round {
        // A minute of rounds is more than one connection may publish.
        self.client = Client::connect(service).await;
        let begun = Instant::now();
        let issue = events::issue(&self.project.coordinate()).sign(&self.project.owner);
        self.client.publish(&issue).await.served();
        let event = begun.elapsed();
        let begun = Instant::now();
        let commit = self.project.repo.commit().await;
        self.project
            .update(service, &mut self.client, &["main"])
            .await;
        let push = begun.elapsed();
        let begun = Instant::now();
        let (clone, out) = Repo::clone(&self.project.url(service), &[]).await;
        out.good();
        assert_eq!(clone.oid("HEAD").await, commit);
        let read = self.client.query(json!({"ids": [issue.id.to_hex()]})).await;
        assert_eq!(read.len(), 1);
        Round {
            event,
            push,
            clone: begun.elapsed(),
        }
    }

    /// Goes on while the others do.
    pub async fn live_on(&mut self, service: &Service, others: impl Future<Output = ()>) -> Ratios {
        let mut during = Vec::new();
        tokio::pin!(others);
        let mut others_are_done = false;
        while !others_are_done || during.len() < ROUNDS {
            let round = self.round(service);
            tokio::pin!(round);
            let round = loop {
                tokio::select! {
                    round = &mut round => break round,
                    () = &mut others, if !others_are_done => others_are_done = true,
                }
            };
            during.push(round);
        }
        let ratio = |of: fn(&Round) -> Duration| {
            let median = |rounds: &[Round]| {
                let mut times: Vec<Duration> = rounds.iter().map(of).collect();
                times.sort_unstable();
                times[times.len() / 2].as_secs_f64()
            };
            median(&during) / median(&self.alone)
        };
        Ratios {
            event: ratio(|round| round.event),
            push: ratio(|round| round.push),
            clone: ratio(|round| round.clone),
            rounds: during.len(),
        }
    }
}
