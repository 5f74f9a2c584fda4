//! `turnmill usage`: what was spent.

use std::process::ExitCode;

use chrono::NaiveDate;
use clap::Args;

use super::{paint, store};
use crate::config::Config;
use crate::store::{By, Usage as Sum, UsageFilter};

/// Sum what turns have cost: models and sandboxes.
#[derive(Debug, Args)]
pub struct Usage {
    /// Over what: day, tenant, project, pool, model, session or turn
    #[arg(long, value_name = "WHAT", default_value = "day", value_parser = by)]
    by: By,
    /// The first UTC day, as 2026-11-01; a month before the last without it
    #[arg(long, value_name = "DAY")]
    since: Option<NaiveDate>,
    /// The last UTC day; today without it
    #[arg(long, value_name = "DAY")]
    until: Option<NaiveDate>,
    /// Only of this tenant; "" for turns without one
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// Only of this project
    #[arg(long, value_name = "ID")]
    project: Option<String>,
    /// Only of this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// A line of JSON each
    #[arg(long)]
    json: bool,
}

fn by(value: &str) -> Result<By, String> {
    let found = By::NAMES.iter().find(|(name, _)| *name == value).map(|(_, by)| *by);
    found.ok_or_else(|| format!("give one of {}", By::NAMES.map(|(name, _)| name).join(", ")))
}

impl Usage {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        if let (Some(since), Some(until)) = (self.since, self.until) {
            anyhow::ensure!(since <= until, "--since {since} is after --until {until}");
        }
        let filter = UsageFilter {
            since: self.since,
            until: self.until,
            tenant_id: self.tenant,
            project_id: self.project,
            session_id: self.session,
            limit: None,
        };
        let sums = store(config).await?.usage(self.by, &filter).await?;
        if self.json {
            for sum in &sums {
                anstream::println!("{}", paint::json(sum)?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        if sums.is_empty() {
            anstream::println!("nothing was spent then");
            return Ok(ExitCode::SUCCESS);
        }
        let name = self.by.name();
        let width = sums.iter().map(|sum| paint::line(&sum.key).chars().count()).max().unwrap_or(0).clamp(10, 44);
        anstream::println!(
            "{}{name:<width$} {:>7} {:>12} {:>12} {:>12} {:>10} {:>10} {:>10}{}",
            paint::BOLD,
            "turns",
            "tokens in",
            "out",
            "sandboxes",
            "model",
            "sandbox",
            "all",
            paint::OFF
        );
        for sum in &sums {
            line(sum, &paint::line(&sum.key), width);
        }
        if sums.len() > 1 {
            line(&total(&sums), "all", width);
        }
        let unpriced: i64 = sums.iter().map(|sum| sum.unpriced).sum();
        if unpriced > 0 {
            anstream::println!("{unpriced} attempts ended before their agent said what they cost; they are not in these sums.");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(sum: &Sum, key: &str, width: usize) {
    let read = sum.input_tokens + sum.cache_read_tokens + sum.cache_write_tokens;
    anstream::println!(
        "{:<width$} {:>7} {read:>12} {:>12} {:>10.2} h {:>10.4} {:>10.4} {:>10.4}",
        if key.is_empty() { "–" } else { key },
        sum.turns,
        sum.output_tokens,
        sum.sandbox_s / 3600.0,
        sum.model_usd,
        sum.sandbox_usd,
        sum.usd
    );
}

fn total(sums: &[Sum]) -> Sum {
    sums.iter().fold(
        Sum {
            key: String::new(),
            turns: 0,
            unpriced: 0,
            input_tokens: 0,
            output_tokens: 0,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
            sandbox_s: 0.0,
            model_usd: 0.0,
            sandbox_usd: 0.0,
            usd: 0.0,
        },
        |mut all, one| {
            all.turns += one.turns;
            all.unpriced += one.unpriced;
            all.input_tokens += one.input_tokens;
            all.output_tokens += one.output_tokens;
            all.cache_read_tokens += one.cache_read_tokens;
            all.cache_write_tokens += one.cache_write_tokens;
            all.sandbox_s += one.sandbox_s;
            all.model_usd += one.model_usd;
            all.sandbox_usd += one.sandbox_usd;
            all.usd += one.usd;
            all
        },
    )
}
