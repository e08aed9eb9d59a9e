//! What a pusher is told at the end, line by line: `report-status` and `report-status-v2`.

use bytes::{Bytes, BytesMut};
use grasp_proto::{
    contract::Command,
    words::{EventId, Oid},
};

use super::{
    commands::{Request, Status},
    pkt_line::{self, Band},
};
use crate::relay::{Verdict, Verdicts};

/// The longest reason that is told.
const MOST_REASON: usize = 1000;

/// What the client is told at the end. Begins with what is to be said of lines that cannot be read;
/// all others stand until they are refused.
pub struct Report {
    unpacked: Result<(), String>,
    lines: Vec<Verdict>,
    remarks: Vec<String>,
    state: Option<EventId>,
}

/// A reason on one line and of bounded length.
pub fn one_line(reason: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    reason.chars().map(clean).take(MOST_REASON).collect()
}

impl Report {
    /// On a push of which nothing is known but what was read.
    pub fn on(request: &Request) -> Self {
        let line = |line: &super::commands::Line| Verdict {
            refused: line.command.clone().err(),
            old: None,
        };
        let mut report = Self {
            unpacked: Ok(()),
            lines: request.lines.iter().map(line).collect(),
            remarks: Vec::new(),
            state: None,
        };
        let unread = report.lines.iter().position(|line| line.refused.is_some());
        if let Some(at) = unread.filter(|_| request.atomic) {
            let name = &request.lines[at].name;
            report.refuse(&format!("this push is atomic, and {name} is refused"));
        }
        report
    }

    /// The lines that are not refused, by their place.
    pub fn standing(&self) -> Vec<usize> {
        let standing = self.lines.iter().enumerate();
        let standing = standing.filter(|(_, line)| line.refused.is_none());
        standing.map(|(at, _)| at).collect()
    }

    /// Refuses everything that stands, for one reason.
    pub fn refuse(&mut self, reason: &str) {
        for line in &mut self.lines {
            line.refused.get_or_insert_with(|| reason.to_owned());
        }
    }

    /// Nothing of the pack was taken in.
    pub fn not_unpacked(&mut self, reason: &str) {
        self.unpacked = Err(reason.to_owned());
        self.refuse(reason);
    }

    /// Notes what the relay says to the lines at these places.
    pub fn settle(&mut self, places: &[usize], verdicts: Verdicts) {
        for (at, verdict) in places.iter().zip(verdicts.commands) {
            self.lines[*at] = verdict;
        }
        self.remarks.extend(verdicts.remarks);
        self.state = self.state.or(verdicts.state);
    }

    /// Whether all was done.
    pub fn is_done(&self) -> bool {
        self.unpacked.is_ok() && self.lines.iter().all(|line| line.refused.is_none())
    }

    /// As it stands in metrics: some refs of a push may be refused without the others.
    pub fn outcome(&self) -> &'static str {
        match (self.standing().len(), self.refused()) {
            (_, 0) => "ok",
            (0, _) => "refused",
            _ => "partial",
        }
    }

    /// The first reason that is told.
    pub fn reason(&self) -> Option<&String> {
        match &self.unpacked {
            Err(reason) => Some(reason),
            Ok(()) => self.lines.iter().find_map(|line| line.refused.as_ref()),
        }
    }

    /// The state event that the push fulfilled.
    pub fn state(&self) -> Option<EventId> {
        self.state
    }

    /// How many lines are refused.
    pub fn refused(&self) -> usize {
        self.lines.len() - self.standing().len()
    }

    /// The bytes that tell it.
    pub fn write(&self, request: &Request) -> Bytes {
        let mut report = BytesMut::new();
        if request.status != Status::Untold {
            self.write_lines(request, &mut report);
            report.extend_from_slice(pkt_line::FLUSH);
        }
        if !request.sideband {
            return report.freeze();
        }
        let mut out = BytesMut::with_capacity(report.len() + 64);
        for remark in &self.remarks {
            let remark = one_line(remark) + "\n";
            pkt_line::put_band(&mut out, Band::Progress, remark.as_bytes());
        }
        pkt_line::put_band(&mut out, Band::Data, &report);
        out.extend_from_slice(pkt_line::FLUSH);
        out.freeze()
    }

    fn write_lines(&self, request: &Request, report: &mut BytesMut) {
        let unpack = match &self.unpacked {
            Ok(()) => "unpack ok\n".to_owned(),
            Err(reason) => format!("unpack {}\n", one_line(reason)),
        };
        pkt_line::put(report, unpack.as_bytes());
        for (line, verdict) in request.lines.iter().zip(&self.lines) {
            let text = match &verdict.refused {
                None => format!("ok {}\n", line.name),
                Some(reason) => format!("ng {} {}\n", line.name, one_line(reason)),
            };
            pkt_line::put(report, text.as_bytes());
            if request.status == Status::WithOptions
                && verdict.refused.is_none()
                && let Ok(command) = &line.command
                && let Some(options) = options(command, verdict.old)
            {
                pkt_line::put(report, options.as_bytes());
            }
        }
    }
}

/// What a ref was in truth, where the pusher believed something else and nothing was rewritten: it was
/// there already, or not there yet. Of other moves git would have to be told as well whether history
/// was rewritten.
fn options(command: &Command, old: Option<Oid>) -> Option<String> {
    let old = old.filter(|old| *old != command.old && (*old == command.new || old.is_zero()))?;
    Some(format!("option old-oid {old}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smart_http::commands::Line;

    fn oid(byte: u8) -> Oid {
        Oid::from_bytes([byte; 20])
    }

    fn request(names: &[&str], status: Status) -> Request {
        let line = |name: &&str| {
            let line = format!("{} {} {name}", oid(1), oid(2));
            Line::parse(line.as_bytes()).unwrap()
        };
        Request {
            lines: names.iter().map(line).collect(),
            status,
            ..Request::default()
        }
    }

    fn told(report: &Report, request: &Request) -> Vec<String> {
        let text = String::from_utf8_lossy(&report.write(request)).into_owned();
        text.lines().map(|line| line[4..].to_owned()).collect()
    }

    #[test]
    fn reasons_stay_on_their_line() {
        let request = request(&["refs/heads/a"], Status::Plain);
        let mut report = Report::on(&request);
        report.refuse("a\nng refs/heads/b c");
        assert_eq!(
            told(&report, &request),
            ["unpack ok", "ng refs/heads/a a ng refs/heads/b c", ""]
        );
    }

    #[test]
    fn each_line_has_its_own_reason() {
        let mut request = request(
            &["refs/heads/a", "refs/heads/b..c", "refs/x/y"],
            Status::Plain,
        );
        let mut report = Report::on(&request);
        assert_eq!(report.standing(), [0, 2]);
        let refused = Verdict {
            refused: Some("not this one".to_owned()),
            old: None,
        };
        let verdicts = Verdicts {
            commands: vec![Verdict::default(), refused],
            remarks: vec!["and\nthis".to_owned()],
            state: None,
        };
        report.settle(&[0, 2], verdicts);
        let lines = told(&report, &request);
        assert_eq!(lines[1], "ok refs/heads/a");
        assert!(lines[2].starts_with("ng refs/heads/b..c "), "{lines:?}");
        assert_eq!(lines[3], "ng refs/x/y not this one");
        assert_eq!(
            (report.outcome(), report.refused(), report.is_done()),
            ("partial", 2, false)
        );
        request.sideband = true;
        let bytes = report.write(&request);
        assert!(bytes.starts_with(b"000e\x02and this\n"), "{bytes:?}");

        request.atomic = true;
        let report = Report::on(&request);
        assert_eq!((report.standing().len(), report.outcome()), (0, "refused"));
        assert!(
            report.lines[0]
                .refused
                .as_ref()
                .unwrap()
                .contains("refs/heads/b..c")
        );
    }

    #[test]
    fn a_pack_that_was_not_taken_in_refuses_all() {
        let request = request(&["refs/heads/a"], Status::WithOptions);
        let mut report = Report::on(&request);
        report.not_unpacked("bad");
        assert_eq!(
            told(&report, &request)[..2],
            ["unpack bad", "ng refs/heads/a bad"]
        );
        assert_eq!(report.outcome(), "refused");
    }

    #[test]
    fn an_old_value_is_told_who_asked_for_it_where_it_is_another() {
        let names = [
            "refs/heads/a",
            "refs/heads/b",
            "refs/heads/c",
            "refs/heads/d",
        ];
        let verdict = |old: Option<Oid>| Verdict { refused: None, old };
        let commands = [None, Some(oid(2)), Some(Oid::ZERO), Some(oid(7))].map(verdict);
        for (status, options) in [(Status::Plain, 0), (Status::WithOptions, 2)] {
            let request = request(&names, status);
            let mut report = Report::on(&request);
            let verdicts = Verdicts {
                commands: commands.to_vec(),
                ..Verdicts::default()
            };
            report.settle(&[0, 1, 2, 3], verdicts);
            let lines = told(&report, &request);
            let found: Vec<_> = lines
                .iter()
                .filter(|line| line.starts_with("option "))
                .collect();
            assert_eq!(found.len(), options, "{lines:?}");
            if options > 0 {
                assert_eq!(lines[3], format!("option old-oid {}", oid(2)));
                assert_eq!(lines[5], format!("option old-oid {}", Oid::ZERO));
            }
        }
    }
}
