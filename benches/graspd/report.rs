//! Figures beside their yardsticks, for people and for machines.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::target::OURS;

/// What is measured.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Of time.
    Milliseconds,
    /// Of memory.
    Megabytes,
}

impl Unit {
    fn sign(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Megabytes => "MB",
        }
    }
}

/// What one row measured, target by target.
pub struct Samples {
    unit: Unit,
    by_target: Vec<(String, Vec<f64>)>,
}

impl Samples {
    /// None yet.
    pub fn of(unit: Unit) -> Self {
        let by_target = Vec::new();
        Self { unit, by_target }
    }

    /// One more.
    pub fn add(&mut self, target: &str, value: f64) {
        match self.by_target.iter_mut().find(|(name, _)| name == target) {
            Some((_, values)) => values.push(value),
            None => self.by_target.push((target.to_owned(), vec![value])),
        }
    }
}

/// What one operation takes in µs as something grows, the smallest first.
#[derive(Default)]
pub struct Growth(Vec<(String, Vec<f64>)>);

impl Growth {
    /// One size more.
    pub fn add(&mut self, size: String, values: Vec<f64>) {
        self.0.push((size, values));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// All rows.
pub struct Report(Vec<Value>);

impl Report {
    /// None yet.
    pub fn new() -> Self {
        println!("median; in brackets what graspd takes as a multiple of it\n");
        Self(Vec::new())
    }

    /// Prints a row and keeps it.
    pub fn add(&mut self, row: &str, samples: Samples) {
        let sign = samples.unit.sign();
        let ours = samples.by_target.iter().find(|(name, _)| name == OURS);
        let ours = ours.map(|(_, values)| median(values));
        println!("{row}");
        let mut figures = Vec::new();
        for (name, values) in &samples.by_target {
            let figure = median(values);
            let ratio = ours.filter(|_| name != OURS).map(|ours| ours / figure);
            let shown = ratio.map_or_else(String::new, |ratio| format!("  [{ratio:.2}]"));
            println!("  {name:<20} {figure:>10.2} {sign}{shown}");
            figures.push(json!({
                "target": name,
                "median": figure,
                "ours_to_this": ratio,
                "samples": values,
            }));
        }
        self.0
            .push(json!({"row": row, "unit": sign, "figures": figures}));
    }

    /// Prints a row of ours alone whose first target is what the others are measured against, and
    /// keeps it.
    pub fn add_scaling(&mut self, row: &str, samples: Samples) {
        let sign = samples.unit.sign();
        println!("{row}");
        let first = samples.by_target.first().map(|(_, values)| median(values));
        let mut figures = Vec::new();
        for (name, values) in &samples.by_target {
            let figure = median(values);
            let times = first.map(|first| first / figure).unwrap_or_default();
            println!("  {name:<20} {figure:>10.2} {sign}  [{times:.2} times as fast as the first]");
            figures.push(json!({
                "target": name,
                "median": figure,
                "first_to_this": times,
                "samples": values,
            }));
        }
        self.0
            .push(json!({"row": row, "unit": sign, "figures": figures}));
    }

    /// Prints a row that is measured against its own beginning, and keeps it.
    pub fn add_growth(&mut self, row: &str, growth: Growth) {
        println!("{row}");
        let smallest = growth.0.first().map(|(_, values)| median(values));
        let mut figures = Vec::new();
        for (size, values) in &growth.0 {
            let figure = median(values);
            let ratio = smallest.map(|smallest| figure / smallest);
            let shown = ratio.unwrap_or_default();
            println!("  {size:<20} {figure:>10.2} µs  [{shown:.2} of the first]");
            figures.push(json!({
                "target": size,
                "median": figure,
                "this_to_first": ratio,
                "samples": values,
            }));
        }
        self.0
            .push(json!({"row": row, "unit": "µs", "figures": figures}));
    }

    /// Writes all rows as JSON.
    pub fn write(self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&Value::Array(self.0))?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}
