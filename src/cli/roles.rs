//! `turnmill roles`: who may do what in the database.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::{paint, store};
use crate::config::Config;
use crate::store::{ROLES, Store};

/// Make the SQL roles of web apps, workers, web servers and viewers; bind logins to tenants.
#[derive(Debug, Args)]
pub struct Roles {
    #[command(subcommand)]
    what: Option<RolesCommand>,
}

#[derive(Debug, Subcommand)]
enum RolesCommand {
    /// Show the roles, who has them, and which logins are bound to a tenant (the default)
    List,
    /// Make the roles that are not there, once a server; each database's migrations give them their rights
    Create,
    /// Let a login see and write one tenant's sessions only; all else looks as if it were not there
    Bind {
        /// The role that logs in; it has turnmill_enqueuer
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        login: String,
        /// The tenant, as in sessions.tenant_id
        #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        tenant: String,
    },
    /// Let a login see all tenants again
    Unbind {
        /// The role that logs in
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        login: String,
    },
}

impl Roles {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let store = store(config).await?;
        match self.what {
            None | Some(RolesCommand::List) => {}
            Some(RolesCommand::Create) => store.create_roles().await?,
            Some(RolesCommand::Bind { login, tenant }) => store.bind_login(&login, &tenant).await?,
            Some(RolesCommand::Unbind { login }) => {
                anyhow::ensure!(store.unbind_login(&login).await?, "{login} is not bound to a tenant; who is: turnmill roles list");
            }
        }
        list(&store).await?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(store: &Store) -> anyhow::Result<()> {
    let roles = store.roles().await?;
    for (role, (_, purpose)) in roles.iter().zip(ROLES) {
        let who = match (role.exists, role.logins.is_empty()) {
            (false, _) => "not there; make it: turnmill roles create".to_owned(),
            (true, true) => format!("nobody's; GRANT {} TO …", role.name),
            (true, false) => role.logins.iter().map(|login| paint::line(login)).collect::<Vec<_>>().join(", "),
        };
        anstream::println!("{}{}{}  {purpose}\n  {who}", paint::BOLD, role.name, paint::OFF);
    }
    for bound in store.bound_logins().await? {
        let (login, tenant) = (paint::line(&bound.login), paint::line(&bound.tenant_id));
        anstream::println!("{login} is bound to tenant {tenant}, since {}", paint::time(bound.bound_at));
    }
    Ok(())
}
