//! With which of the relays that are named this service syncs. Announcements are made by anybody: what
//! only waits cannot keep out what is served, and no third party is overrun in our name. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use crate::targets::{Asked, relay_url::RelayUrl};

/// Remote relays that are synced with: those that served repositories name come first. As many more
/// are known at most while they are on their way back from workers.
pub const RELAYS: usize = 4_096;
/// Of one host so many addresses: whoever names more would have us overrun somebody else.
pub const OF_ONE_HOST: usize = 4;

/// How a relay is known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    /// A worker holds it.
    Leased,
    /// Nobody does.
    Free,
}

/// Those of the relays that are synced with: of one host `OF_ONE_HOST`, all together `RELAYS`.
pub fn choose(
    asked: &BTreeMap<RelayUrl, Asked>,
    known: impl Fn(&RelayUrl) -> Option<Known>,
) -> BTreeMap<&RelayUrl, &Asked> {
    // What is known already stays before what is like it, so that nothing changes without need.
    let rank = |(url, asked): &(&RelayUrl, &Asked)| {
        let known = known(url);
        let place = known.map_or((true, None), |known| (false, Some(known)));
        (asked.full == 0, place, Reverse(asked.targets))
    };
    let mut hosts: HashMap<&str, Vec<(&RelayUrl, &Asked)>> = HashMap::new();
    for one in asked {
        hosts.entry(one.0.place()).or_default().push(one);
    }
    let mut chosen = Vec::new();
    for mut of_host in hosts.into_values() {
        if of_host.len() > OF_ONE_HOST {
            // A host's own address before what somebody may have put behind it.
            of_host.sort_by_key(|one| (one.1.full == 0, !one.0.is_plain(), rank(one), one.0));
            of_host.truncate(OF_ONE_HOST);
        }
        chosen.append(&mut of_host);
    }
    if chosen.len() > RELAYS {
        chosen.sort_by_key(|one| (rank(one), one.0));
        chosen.truncate(RELAYS);
    }
    chosen.into_iter().collect()
}
