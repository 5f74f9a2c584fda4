//! `turnmill token`: who may use the HTTP API.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{paint, store};
use crate::config::Config;
use crate::store::Bounds;
use crate::web::{SCOPES, new_token};

/// Make, list and revoke tokens of the HTTP API.
#[derive(Debug, Args)]
pub struct Tokens {
    #[command(subcommand)]
    what: Option<TokenCommand>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Show all tokens, without their secrets (the default)
    List,
    /// Make a token, and print it once
    Create(TokenCreate),
    /// Refuse a token from now on
    Revoke {
        /// Its id, or how it begins: as the list shows them
        token: String,
    },
}

#[derive(Debug, Args)]
struct TokenCreate {
    /// Whose it is, for people
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// What it may do: turns:read, turns:write, turns:cancel, queue:read, usage:read, webhooks:read, webhooks:write, keys:write, ops:read and ops:act
    /// for the dashboard; the first three without it
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', value_parser = SCOPES)]
    scopes: Vec<String>,
    /// Only sessions of this project
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    project: Option<String>,
    /// Only sessions of this tenant
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    tenant: Option<String>,
    /// How long it lasts, as 90d or 12h; until it is revoked without it
    #[arg(long, value_name = "TIME", value_parser = lasting)]
    expires: Option<Duration>,
}

fn lasting(value: &str) -> Result<Duration, String> {
    let century = Duration::from_secs(100 * 366 * 24 * 3600);
    let good = humantime::parse_duration(value).ok().filter(|time| !time.is_zero() && *time < century);
    good.ok_or_else(|| "give a time like 90d or 12h".to_owned())
}

impl Tokens {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        match self.what {
            Some(TokenCommand::Create(create)) => {
                let chosen: Vec<&str> = create.scopes.iter().map(String::as_str).collect();
                let scopes = if chosen.is_empty() { &SCOPES[..3] } else { &chosen };
                let bounds = Bounds { project_id: create.project, tenant_id: create.tenant, session_id: None };
                let (token, stored) = new_token(&create.name, scopes, bounds, create.expires);
                let (id, _) = store.add_token(&stored).await?;
                anstream::eprintln!("{id}  {}; it is shown this once:", scopes.join(" "));
                anstream::println!("{token}");
            }
            Some(TokenCommand::Revoke { token }) => {
                let revoked = store.revoke_token(&token).await?;
                anyhow::ensure!(revoked > 0, "there is no token \"{token}\"; list tokens with: turnmill token list");
                anstream::println!("Revoked. Streams that are open end within web.stream_max.");
            }
            None | Some(TokenCommand::List) => {
                for token in store.tokens().await? {
                    let only = |what: &str, id: Option<String>| id.map(|id| format!(", {what} {}", paint::line(&id))).unwrap_or_default();
                    let used = token.last_used_at.map_or("never used".to_owned(), |at| format!("used {}", paint::time(at)));
                    let until = token.expires_at.map(|at| format!(", until {}", paint::time(at))).unwrap_or_default();
                    anstream::println!(
                        "{}{}{}  {}…  {}  {}: {}{}{}, {used}{until}",
                        paint::BOLD,
                        token.id,
                        paint::OFF,
                        paint::line(&token.prefix),
                        token.state,
                        paint::short(&token.name, 40),
                        token.scopes.join(" "),
                        only("project", token.project_id),
                        only("tenant", token.tenant_id),
                    );
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
