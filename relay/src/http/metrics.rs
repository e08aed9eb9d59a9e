//! The metrics of two processes as one valid exposition (Prometheus text format).

use std::collections::HashMap;

#[derive(Default)]
struct Family<'a> {
    comments: Vec<&'a str>,
    /// Series and value.
    samples: Vec<(&'a str, &'a str)>,
}

/// Joins expositions: every family once. A series that several processes have is their sum.
pub fn join(texts: &[&str]) -> String {
    let mut order = Vec::new();
    let mut families: HashMap<&str, Family> = HashMap::new();
    for text in texts {
        let mut current = "";
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let described = line
                .strip_prefix("# TYPE ")
                .or_else(|| line.strip_prefix("# HELP "));
            if let Some(name) = described.and_then(|rest| rest.split(' ').next()) {
                current = name;
            } else if line.starts_with('#') {
                continue;
            } else if !belongs(line, current) {
                current = line.split(['{', ' ']).next().unwrap_or(line);
            }
            let family = families.entry(current).or_insert_with(|| {
                order.push(current);
                Family::default()
            });
            if described.is_some() {
                // What the first process says of a family stands.
                let kind = line.get(..6);
                if !family.comments.iter().any(|known| known.get(..6) == kind) {
                    family.comments.push(line);
                }
            } else if let Some(sample) = line.rsplit_once(' ') {
                family.samples.push(sample);
            }
        }
    }
    let mut joined = String::new();
    for name in order {
        for comment in &families[name].comments {
            joined.push_str(comment);
            joined.push('\n');
        }
        let mut position = HashMap::new();
        let mut sums: Vec<(&str, String)> = Vec::new();
        for &(series, value) in &families[name].samples {
            match position.get(series) {
                None => {
                    position.insert(series, sums.len());
                    sums.push((series, value.to_owned()));
                }
                Some(&known) => {
                    let sum = |value: &str| value.parse().unwrap_or(0.0_f64);
                    sums[known].1 = (sum(&sums[known].1) + sum(value)).to_string();
                }
            }
        }
        for (series, value) in sums {
            joined.push_str(series);
            joined.push(' ');
            joined.push_str(&value);
            joined.push('\n');
        }
        joined.push('\n');
    }
    joined
}

/// Whether a sample is one of the family's, parts of a histogram or summary included.
fn belongs(sample: &str, family: &str) -> bool {
    sample.strip_prefix(family).is_some_and(|rest| {
        !family.is_empty()
            && ["", "_bucket", "_sum", "_count"].iter().any(|part| {
                rest.strip_prefix(part)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_once_and_equal_series_added() {
        let relay = "# HELP a_total help\n# TYPE a_total counter\na_total 1\na_total{x=\"y z\"} 2\n\n\
                     # TYPE mem gauge\nmem{role=\"relay\"} 5\n";
        let gitd = "# TYPE mem gauge\nmem{role=\"gitd\"} 7\n\n# TYPE a_total counter\na_total 2.5\n\n\
                    # TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\nloose 4\n";
        let expected = "# HELP a_total help\n# TYPE a_total counter\na_total 3.5\na_total{x=\"y z\"} 2\n\n\
                        # TYPE mem gauge\nmem{role=\"relay\"} 5\nmem{role=\"gitd\"} 7\n\n\
                        # TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n\nloose 4\n\n";
        assert_eq!(join(&[relay, gitd]), expected);
        assert_eq!(join(&[]), "");
        assert_eq!(join(&["# EOF\nnonsense"]), "\n");
    }
}
