//! A script that fails, made as short as it can be: whole runs of steps go first, then single ones, then
//! what single steps say, as long as it still fails.

use super::steps::{Kind, Naming, Step};

/// The shortest script found that still `fails`.
pub fn shrink(mut script: Vec<Step>, fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    loop {
        let before = script.clone();
        let mut run = script.len().div_ceil(2).max(1);
        loop {
            drop_runs(&mut script, run, &fails);
            if run == 1 {
                break;
            }
            run = run.div_ceil(2);
        }
        simplify(&mut script, &fails);
        if script == before {
            return script;
        }
    }
}

fn drop_runs(script: &mut Vec<Step>, run: usize, fails: &impl Fn(&[Step]) -> bool) {
    let mut end = script.len();
    while end > 0 {
        let begin = end.saturating_sub(run);
        let mut shorter = script[..begin].to_vec();
        shorter.extend_from_slice(&script[end..]);
        if fails(&shorter) {
            *script = shorter;
        }
        end = begin.min(script.len());
    }
}

fn simplify(script: &mut [Step], fails: &impl Fn(&[Step]) -> bool) {
    for at in 0..script.len() {
        for simpler in simpler(&script[at]) {
            let step = std::mem::replace(&mut script[at], simpler);
            if !fails(script) {
                script[at] = step;
            }
        }
    }
}

/// The same step with a little less in it, in several ways.
fn simpler(step: &Step) -> Vec<Step> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Step)| {
        let mut changed = step.clone();
        change(&mut changed);
        if changed != *step {
            all.push(changed);
        }
    };
    if let Step::Event { what, .. } = step {
        with(&|step| {
            if let Step::Event { is_synced, .. } = step {
                *is_synced = false;
            }
        });
        with(&|step| {
            if let Step::Event { what, .. } = step {
                what.until = None;
            }
        });
        let parts = match &what.kind {
            Kind::Announcement { naming, .. } => match naming {
                Naming::Maintainers(named) => named.len(),
                Naming::Roles(roles) => roles.len(),
            },
            Kind::State { refs, .. } if refs.len() > 1 => refs.len(),
            _ => 0,
        };
        for part in 0..parts {
            with(&|step| {
                let Step::Event { what, .. } = step else {
                    return;
                };
                match &mut what.kind {
                    Kind::Announcement { naming, .. } => match naming {
                        Naming::Maintainers(named) if part < named.len() => {
                            named.remove(part);
                        }
                        Naming::Roles(roles) if roles.len() > 1 && part < roles.len() => {
                            roles.remove(part);
                        }
                        _ => {}
                    },
                    Kind::State { refs, .. } => {
                        refs.remove(part);
                    }
                    _ => {}
                }
            });
        }
    }
    if let Step::Push { refs, .. } = step
        && refs.len() > 1
    {
        for part in 0..refs.len() {
            with(&|step| {
                if let Step::Push { refs, .. } = step {
                    refs.remove(part);
                }
            });
        }
    }
    all
}
