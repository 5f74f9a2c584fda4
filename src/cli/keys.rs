//! `turnmill keys`: master keys, and the keys that users and tenants have given.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret as _, SecretString};

use super::{paint, store};
use crate::config::Config;
use crate::keys::{OwnKey, Vault, check_own, rotate};

/// Most bytes of a key.
const KEY_MAX_BYTES: u64 = 4096;

/// Most keys that are listed.
const LISTED_MAX: i64 = 10_000;

/// Make and exchange master keys; store keys of users and tenants, which nobody can read again.
#[derive(Debug, Args)]
pub struct Keys {
    #[command(subcommand)]
    what: Option<KeysCommand>,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Show whose keys there are, and how much is sealed under which master key (the default)
    List,
    /// Print a new master key, for TURNMILL_KEYS__MASTER of every worker; put it before older ones, which still open
    New {
        /// Its id; made without it
        #[arg(value_parser = id)]
        id: Option<String>,
    },
    /// Seal everything anew under the first master key; can be stopped and begun again, while the fleet works
    Rotate,
    /// Store a key to the model, read from standard input: its turns run with it from now on
    Set {
        #[command(flatten)]
        whose: Whose,
        /// Read it from this file instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Forget a key
    Forget {
        #[command(flatten)]
        whose: Whose,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Whose {
    /// The user, as sessions name them
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// The tenant whose user it is; without --user: for all of the tenant's who have none of their own
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    tenant: Option<String>,
}

impl Whose {
    fn ids(&self) -> (&str, &str) {
        (self.tenant.as_deref().unwrap_or_default(), self.user.as_deref().unwrap_or_default())
    }
}

fn id(value: &str) -> Result<String, String> {
    let good = (1..=64).contains(&value.len()) && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if good { Ok(value.to_owned()) } else { Err("give up to 64 letters, digits, \".\", \"_\", \"-\"".to_owned()) }
}

impl Keys {
    /// Runs it.
    pub async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        match self.what {
            None | Some(KeysCommand::List) => list(config).await?,
            Some(KeysCommand::New { id }) => {
                let id = id.unwrap_or_else(|| format!("k{:06x}", rand::random_range(0..0x100_0000_u32)));
                anstream::println!("{}", Vault::new_key(&id));
            }
            Some(KeysCommand::Rotate) => return rotate_all(config).await,
            Some(KeysCommand::Set { whose, file }) => set(config, &whose, file.as_deref()).await?,
            Some(KeysCommand::Forget { whose }) => {
                let (tenant, user) = whose.ids();
                let gone = store(config).await?.forget_own_key(tenant, user).await?;
                anyhow::ensure!(gone, "there is no such key; list them with: turnmill keys list");
                anstream::println!("Forgotten. Turns that run go on with it.");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn set(config: &Config, whose: &Whose, file: Option<&Path>) -> anyhow::Result<()> {
    let vault = Vault::new(config.keys.master.expose_secret())?;
    anyhow::ensure!(vault.sealing().is_some(), "there is no master key to seal it with; make one, for all workers too: turnmill keys new");
    let key = read(file)?;
    check_own(key.expose_secret()).map_err(anyhow::Error::msg)?;
    let (tenant, user) = whose.ids();
    let own = OwnKey::seal(&vault, tenant, user, &key).context("sealing the key")?;
    let stored = store(config).await?.set_own_key(&own).await?;
    anstream::println!("Stored, sealed under \"{}\".", stored.key_id);
    if !config.keys.order.contains("user") {
        anstream::eprintln!("{}note:{} keys.order is \"{}\": no turn looks for it", paint::WARN, paint::OFF, config.keys.order);
    }
    Ok(())
}

/// Never from the command line, which everybody on the machine can read.
fn read(file: Option<&Path>) -> anyhow::Result<SecretString> {
    let mut text = String::new();
    match file {
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
            file.take(KEY_MAX_BYTES).read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
        }
        None if std::io::stdin().is_terminal() => {
            anstream::eprint!("Paste the key, then press Enter; it is not shown: ");
            let read = unseen(|| std::io::stdin().read_line(&mut text));
            anstream::eprintln!();
            read.context("reading the key")?;
        }
        None => _ = std::io::stdin().take(KEY_MAX_BYTES).read_to_string(&mut text).context("reading the key from standard input")?,
    }
    Ok(text.trim().into())
}

/// Whatever is typed meanwhile is not shown.
fn unseen<T>(act: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &silent)?;
    let done = act();
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    done
}

async fn list(config: &Config) -> anyhow::Result<()> {
    let vault = Vault::new(config.keys.master.expose_secret())?;
    let store = store(config).await?;
    for key in store.own_keys(LISTED_MAX).await? {
        let whose = match (key.tenant_id.as_str(), key.user_id.as_str()) {
            ("", user) => format!("user {}", paint::line(user)),
            (tenant, "") => format!("tenant {}", paint::line(tenant)),
            (tenant, user) => format!("user {} of tenant {}", paint::line(user), paint::line(tenant)),
        };
        anstream::println!(
            "{}{whose}{}  sealed under \"{}\", set {}",
            paint::BOLD,
            paint::OFF,
            paint::line(&key.key_id),
            paint::time(key.set_at)
        );
    }
    for row in store.sealed().await? {
        let under = match row.key_id.as_deref() {
            None => "not sealed".to_owned(),
            Some(id) if Some(id) == vault.sealing() => format!("under \"{}\", the newest", paint::line(id)),
            Some(id) if vault.has(id) => format!("under \"{}\", an older one: turnmill keys rotate", paint::line(id)),
            Some(id) => format!("under \"{}\", which is not configured here (keys.master)", paint::line(id)),
        };
        anstream::println!("{:>8} {}  {under}", row.count, row.kind);
    }
    Ok(())
}

async fn rotate_all(config: &Config) -> anyhow::Result<ExitCode> {
    let vault = Vault::new(config.keys.master.expose_secret())?;
    let newest =
        vault.sealing().context("there is no master key; make one, and put it first in keys.master of every worker: turnmill keys new")?;
    let store = store(config).await?;
    let done = rotate(&store, &vault, newest, |so_far| {
        anstream::eprint!("\r{}: {} sealed anew … ", so_far.kind.plural(), so_far.done);
    })
    .await?;
    anstream::eprintln!();
    let sealed: u64 = done.iter().map(|kind| kind.done).sum();
    for kind in done.iter().filter(|kind| kind.closed > 0) {
        anstream::eprintln!(
            "{}{} {} can't be opened{}: their key is not in keys.master, or they are damaged",
            paint::BAD,
            kind.closed,
            kind.kind.plural(),
            paint::OFF
        );
    }
    let left: i64 = store.sealed().await?.iter().filter(|row| row.key_id.as_deref() != Some(newest)).map(|row| row.count).sum();
    anstream::println!("{sealed} sealed anew under \"{newest}\", {left} left.");
    if left == 0 {
        anstream::println!("Older keys may leave keys.master once every worker and web server has \"{newest}\" first.");
        return Ok(ExitCode::SUCCESS);
    }
    anstream::println!("Run it again; what workers save meanwhile is under the key that they have first.");
    Ok(ExitCode::FAILURE)
}
