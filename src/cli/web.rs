//! `turnmill web`: the HTTP API.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret as _;

use super::DatabaseArg;
use super::signals::stop_on_signal;
use crate::config::Config;
use crate::store::Store;

/// How long it waits for a Postgres that refuses connections: one that is just restarted costs no start of a server.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serve the HTTP API, until SIGTERM.
///
/// Its document is at /openapi.json, for people at /docs. Requests need a token: turnmill token create NAME
#[derive(Debug, Args)]
pub struct Web {
    #[command(flatten)]
    database: DatabaseArg,
    /// Address and port [default: web.listen of the configuration, 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Ask nobody for a token: on loopback only, for development
    #[arg(long)]
    open: bool,
}

impl Web {
    /// Runs it.
    pub async fn run(self, mut config: Config) -> anyhow::Result<ExitCode> {
        if let Some(listen) = self.listen {
            config.web.listen = listen;
        }
        if let Some(url) = self.database.database_url {
            config.database.url = url.into();
        }
        let url = config.database.url.expose_secret();
        anyhow::ensure!(!url.is_empty(), "DATABASE_URL is not set; the web server needs the fleet's Postgres");
        let store = Store::connect(&config.database.options(url), PATIENCE).await?;
        store.check_schema().await?;
        let web = crate::web::Web::bind(store, &config, self.open).await?;
        anstream::println!("HTTP API on http://{}/docs", web.address()?);
        web.run(stop_on_signal()?).await?;
        Ok(ExitCode::SUCCESS)
    }
}
