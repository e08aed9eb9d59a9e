//! Which commands of a push are allowed (protocol, "Pushes"): pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use grasp_proto::{
    contract::Command,
    words::{Address, EventId, Oid, RefKind, RefName},
};

use crate::{
    nip34::state::{State, Target},
    purgatory::pull_requests::MOST_COMMITS,
};

/// What is known of the pull request that a ref under `refs/nostr/` is named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No event of this id is here.
    Unknown,
    /// It is, and this is its commit; `None`: no commit of ours.
    Commit(Option<Oid>),
    /// An event of this id is here and is no pull request.
    Other,
    /// It is, and has expired.
    Expired,
    /// It is, and does not belong where the push goes.
    Elsewhere,
}

/// Everything a push is judged by.
#[derive(Debug)]
pub struct Case<'a> {
    /// Where it goes.
    pub address: &'a Address,
    /// What is to be done, in the pusher's order.
    pub commands: &'a [Command],
    /// All or nothing.
    pub atomic: bool,
    /// Where the refs are that the commands or the states name, as far as they exist.
    pub current: &'a BTreeMap<RefName, Oid>,
    /// The waiting states authorised for this owner that no served one supersedes, latest first.
    pub states: &'a [State],
    /// Of the objects that the states name, those that are here: they need not be pushed.
    pub here: &'a BTreeSet<Oid>,
    /// What is known of the pull requests the commands name.
    pub known: &'a BTreeMap<EventId, Known>,
    /// The commits that wait here for those that are not known.
    pub waiting: &'a BTreeMap<EventId, BTreeSet<Oid>>,
}

/// What a push may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The waiting state that it fulfils: branches and tags end up as this one says.
    pub state: Option<EventId>,
    /// Pull requests whose commit it brings.
    pub requested: Vec<(EventId, Oid)>,
    /// Commits for pull requests that are not known yet.
    pub placeholders: Vec<(EventId, Oid)>,
}

impl Allowed {
    /// Whether the push changes nothing.
    pub fn changes_nothing(&self) -> bool {
        self.state.is_none() && self.requested.is_empty() && self.placeholders.is_empty()
    }
}

/// Why a push, or one command of it, is not allowed, for the git user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What a push is judged to be, command by command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What it may do.
    pub allowed: Allowed,
    /// For each command, in their order, why it is refused; `None`: it is not.
    pub refused: Vec<Option<Refused>>,
    /// What the git user should read besides, line by line: all that a state lacks.
    pub remarks: Vec<String>,
}

impl Verdict {
    /// Whether no command is allowed.
    pub fn refuses_all(&self) -> bool {
        !self.refused.is_empty() && self.refused.iter().all(Option::is_some)
    }

    /// The first reason for which a command is refused.
    pub fn first_reason(&self) -> Option<&Refused> {
        self.refused.iter().flatten().next()
    }

    /// Refuses the command for `name` after all, and with it, where the push is `atomic`, every other.
    pub fn refuse(&mut self, commands: &[Command], name: &RefName, reason: &str, atomic: bool) {
        for (command, refused) in commands.iter().zip(&mut self.refused) {
            if command.name == *name {
                refused.get_or_insert_with(|| Refused(reason.to_owned()));
            }
        }
        let is_for = |id: &EventId| RefName::nostr(id) == *name;
        self.allowed.requested.retain(|(id, _)| !is_for(id));
        self.allowed.placeholders.retain(|(id, _)| !is_for(id));
        if atomic {
            self.refuse_rest(commands);
        }
    }

    /// One refused command of an atomic push refuses all, and each says so.
    fn refuse_rest(&mut self, commands: &[Command]) {
        let refused = self.refused.iter().position(Option::is_some);
        let Some(culprit) = refused.map(|at| &commands[at].name) else {
            return;
        };
        let reason = format!("this push is atomic, and {culprit} is refused");
        for refused in &mut self.refused {
            refused.get_or_insert_with(|| Refused(reason.clone()));
        }
        self.allowed = Allowed::default();
    }
}

/// Commits of one push for pull requests that nobody has signed yet.
const PLACEHOLDERS: usize = 256;

/// Judges a push. Branches and tags are allowed together or refused together, every other command by
/// itself; an atomic push is allowed whole or not at all.
pub fn judge(case: &Case) -> Verdict {
    let mut verdict = Verdict::default();
    let mut times: HashMap<&RefName, usize> = HashMap::new();
    for command in case.commands {
        *times.entry(&command.name).or_default() += 1;
    }
    let mut branches = Vec::new();
    for (at, command) in case.commands.iter().enumerate() {
        let judged = if times[&command.name] > 1 {
            Err(format!("{} is named more than once", command.name))
        } else {
            match command.name.kind() {
                RefKind::Head | RefKind::Tag | RefKind::Other if case.address.is_prs() => {
                    Err(format!(
                        "{}: only refs/nostr/<event id> can be pushed to an address below /prs/",
                        command.name
                    ))
                }
                RefKind::Head | RefKind::Tag => {
                    branches.push((at, command));
                    Ok(())
                }
                RefKind::Nostr(id) => {
                    judge_pull_request_ref(case, command, id, &mut verdict.allowed)
                }
                RefKind::Other
                    if changes_nothing(command, case.current) && command.new.is_zero() =>
                {
                    Ok(())
                }
                RefKind::Other => Err(format!(
                    "{}: only refs/heads/, refs/tags/ and refs/nostr/<event id> can be pushed",
                    command.name
                )),
            }
        };
        verdict.refused.push(judged.err().map(Refused));
    }
    judge_branches_and_tags(case, &branches, &mut verdict);
    if case.atomic {
        verdict.refuse_rest(case.commands);
    }
    verdict
}

/// Whether a ref is already what a command wants it to be, whatever the pusher believed.
pub fn changes_nothing(command: &Command, current: &BTreeMap<RefName, Oid>) -> bool {
    match current.get(&command.name) {
        Some(oid) => command.new == *oid,
        None => command.new.is_zero(),
    }
}

/// Judges one command for a ref under `refs/nostr/` and notes what it may do.
fn judge_pull_request_ref(
    case: &Case,
    command: &Command,
    id: EventId,
    allowed: &mut Allowed,
) -> Result<(), String> {
    if changes_nothing(command, case.current) {
        return Ok(());
    }
    let (name, event) = (&command.name, short(&id));
    let known = case.known.get(&id);
    if command.new.is_zero() {
        return Err(match known {
            None | Some(Known::Unknown) => format!(
                "{name} cannot be deleted by a push: no event of this id is here, and without one the \
                 ref goes by itself within half an hour"
            ),
            Some(_) => format!(
                "{name} cannot be deleted by a push: its author withdraws a pull request with a \
                 deletion request (kind 5) for the event, or closes it with a status event (kind 1632)"
            ),
        });
    }
    match known {
        Some(Known::Commit(commit)) if *commit == Some(command.new) => {
            allowed.requested.push((id, command.new));
            Ok(())
        }
        Some(Known::Commit(commit)) => {
            let wanted = commit.map_or("no commit of ours".to_owned(), |c| c.to_string());
            Err(format!("{name}: pull request {event} names {wanted}"))
        }
        Some(Known::Other) => Err(format!("{name}: that event is no pull request")),
        Some(Known::Expired) => Err(format!("{name}: pull request {event} has expired")),
        Some(Known::Elsewhere) => Err(match case.address.is_prs() {
            true => format!(
                "{name}: pull request {event} is not by this author, or does not name this address in \
                 clone and its identifier in an a tag"
            ),
            false => format!(
                "{name}: pull request {event} belongs to nothing that is served here: push to the \
                 address below /prs/ that it names"
            ),
        }),
        None | Some(Known::Unknown) if allowed.placeholders.len() == PLACEHOLDERS => Err(format!(
            "more than {PLACEHOLDERS} commits for pull requests that are not known yet"
        )),
        // Who knows the id cannot take away what its author has pushed: both wait, and the event chooses.
        None | Some(Known::Unknown) => {
            let is_there = case.current.contains_key(name);
            let waiting = case.waiting.get(&id).filter(|_| is_there);
            match waiting {
                Some(waiting) if waiting.contains(&command.new) => return Ok(()),
                Some(waiting) if waiting.len() >= MOST_COMMITS => {
                    return Err(format!(
                        "{name}: {MOST_COMMITS} commits wait for event {event}; publish it first, then push"
                    ));
                }
                _ => {}
            }
            allowed.placeholders.push((id, command.new));
            Ok(())
        }
    }
}

/// Judges the branches and tags of a push together: afterwards some waiting state must be reached.
fn judge_branches_and_tags(case: &Case, branches: &[(usize, &Command)], verdict: &mut Verdict) {
    let is_idle = |command: &Command| changes_nothing(command, case.current);
    if branches.iter().all(|(_, command)| is_idle(command)) {
        return;
    }
    let after: BTreeMap<&RefName, Oid> = branches.iter().map(|(_, c)| (&c.name, c.new)).collect();
    let mut latest = None;
    for state in case.states {
        let shortfall = Shortfall::of(state, &after, case);
        if shortfall.is_none() {
            verdict.allowed.state = Some(state.id());
            return;
        }
        latest = latest.or(shortfall.map(|shortfall| (state, shortfall)));
    }
    let which = latest.as_ref().map(|(state, _)| {
        let (id, author) = (short(&state.id()), state.author);
        format!("state {id} of {author}")
    });
    for (at, command) in branches.iter().filter(|(_, command)| !is_idle(command)) {
        let reason = match &latest {
            Some((_, shortfall)) => {
                format!(
                    "{} ({})",
                    shortfall.told_to(&command.name),
                    which.as_deref().unwrap_or("")
                )
            }
            None => format!(
                "{}: no state event (kind 30618) by a maintainer of {} is waiting for this push; \
                 publish one first",
                command.name,
                case.address.identifier(),
            ),
        };
        verdict.refused[*at] = Some(Refused(reason));
    }
    if let (Some((_, shortfall)), Some(which)) = (latest, which) {
        verdict.remarks = shortfall.remarks(&which);
    }
}

/// The bytes of other refs' differences that the reason of one ref repeats: a reason is one line.
const REPEATED_BYTES: usize = 600;
/// Differences that are told line by line.
const REMARKS: usize = 1000;

/// All in which the refs, after a push, are not what a state says.
struct Shortfall<'a> {
    /// By ref, in the order of their names: what differs.
    by_ref: BTreeMap<&'a RefName, String>,
}

impl<'a> Shortfall<'a> {
    /// `None`: the refs that the state names are as it says once its objects that are here count, and
    /// the push moves at least one.
    fn of(state: &'a State, after: &BTreeMap<&'a RefName, Oid>, case: &Case) -> Option<Self> {
        let mut by_ref = BTreeMap::new();
        for (name, new) in after {
            let difference = match (state.refs.get(*name), new.is_zero()) {
                (None, false) => format!("{name} is not in the state"),
                (Some(Target::At(oid) | Target::Follows(oid)), false) if oid != new => {
                    format!("{name} is {oid} in the state, not {new}")
                }
                (Some(_), true) => format!("{name} is in the state and cannot be deleted"),
                _ => continue,
            };
            by_ref.insert(*name, difference);
        }
        let mut moved = false;
        for (name, target) in state.refs.iter() {
            let wanted = match target {
                Target::At(wanted) => wanted,
                Target::Follows(_) => continue,
                Target::Never => {
                    by_ref.insert(name, format!("{name} has no object id in the state"));
                    continue;
                }
            };
            let now = case.current.get(name);
            moved |= now != Some(wanted);
            let is_reached = match after.get(name) {
                // A wrong value is told above.
                Some(_) => true,
                None => now == Some(wanted) || case.here.contains(wanted),
            };
            if !is_reached {
                by_ref.insert(
                    name,
                    format!("{name} must be pushed too: it is {wanted} in the state"),
                );
            }
        }
        (!by_ref.is_empty() || !moved).then_some(Self { by_ref })
    }

    /// Why a ref is refused: its own difference first, then those of others.
    fn told_to(&self, name: &RefName) -> String {
        let own = self.by_ref.get(name);
        let mut told = match own {
            Some(own) => own.clone(),
            None if self.by_ref.is_empty() => return "no ref of the state is moved".to_owned(),
            None => "branches and tags of a push stand or fall together".to_owned(),
        };
        let mut left = self.by_ref.len() - usize::from(own.is_some());
        let mut bytes = 0;
        for (_, difference) in self.by_ref.iter().filter(|(other, _)| **other != name) {
            bytes += difference.len();
            // Sentences are told whole or counted.
            if bytes > REPEATED_BYTES {
                break;
            }
            told.push_str("; ");
            told.push_str(difference);
            left -= 1;
        }
        if left > 0 {
            told = format!("{told}; and {left} more");
        }
        told
    }

    /// All differences, line by line, if one line does not hold them.
    fn remarks(&self, which: &str) -> Vec<String> {
        let bytes: usize = self.by_ref.values().map(String::len).sum();
        if bytes <= REPEATED_BYTES {
            return Vec::new();
        }
        let head = format!("branches and tags are refused: the push does not reach {which}:");
        let listed = self
            .by_ref
            .values()
            .take(REMARKS)
            .map(|one| format!("  {one}"));
        let mut lines: Vec<String> = std::iter::once(head).chain(listed).collect();
        if self.by_ref.len() > REMARKS {
            lines.push(format!("  and {} more", self.by_ref.len() - REMARKS));
        }
        lines
    }
}

fn short(id: &EventId) -> String {
    id.to_hex()[..12].to_owned()
}

#[cfg(test)]
mod tests;
