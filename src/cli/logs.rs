//! The log: to stderr, for people or as JSON lines, without the secrets of the process.

use std::io::Write;
use std::sync::{Mutex, PoisonError, RwLock};

use secrecy::SecretString;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{self, Writer};

use super::{TerminalLike as _, paint};
use crate::keys::Mask;

/// What the process knows to be secret, and what hides it.
static SECRETS: Mutex<Vec<SecretString>> = Mutex::new(Vec::new());
static MASK: RwLock<Option<Mask>> = RwLock::new(None);

/// From now on these are masked in the log, beside those that are.
pub fn hide<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) {
    let mut all = SECRETS.lock().unwrap_or_else(PoisonError::into_inner);
    all.extend(secrets.into_iter().cloned());
    *MASK.write().unwrap_or_else(PoisonError::into_inner) = Some(Mask::new(all.iter()));
}

/// Takes whole lines, as the subscriber writes them.
struct Masked<W>(W);

impl<W: Write> Write for Masked<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match &*MASK.read().unwrap_or_else(PoisonError::into_inner) {
            Some(mask) => self.0.write_all(&mask.bytes(line))?,
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Services say what they do, other commands only what goes wrong.
pub fn logging(wanted: &str, service: bool) {
    let json = wanted.ends_with("+json");
    let wanted = wanted.trim_end_matches("+json");
    let fallback = if service { "info,sqlx=warn,apalis=warn,apalis_core=warn" } else { "warn" };
    let filter = EnvFilter::try_new(if wanted.is_empty() { fallback } else { wanted }).unwrap_or_else(|_| EnvFilter::new(fallback));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Masked(std::io::stderr()));
    if json {
        builder.json().init();
    } else {
        let fields = format::debug_fn(field).delimited(" ");
        builder.fmt_fields(fields).with_target(false).with_ansi(anstream::stderr().is_terminal_like()).init();
    }
}

/// As tracing writes fields, but harmless: ids are the caller's own texts and may have anything in them.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    let name = field.name();
    let text = paint::safe(&format!("{value:?}"));
    match name.strip_prefix("r#").unwrap_or(name) {
        "message" => writer.write_str(&text),
        // How another library's log lines say where they are from.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => write!(writer, "{}{name}={}{text}", paint::DIM, paint::OFF),
        name => write!(writer, "{name}={text}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_hidden_is_in_no_line() {
        let written = Written::default();
        let to = written.clone();
        hide(&[SecretString::from("log-Secret-4711")]);
        let log = tracing_subscriber::fmt().json().with_writer(move || Masked(to.clone())).finish();
        tracing::subscriber::with_default(log, || tracing::info!(said = "it is log-Secret-4711", "or log-Secret-4711"));
        let line = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(!line.contains("4711") && line.matches("[masked]").count() == 2 && line.ends_with("}\n"), "{line}");
    }

    #[test]
    fn nothing_in_a_field_steers_the_terminal() {
        let written = Written::default();
        let to = written.clone();
        let fields = format::debug_fn(field).delimited(" ");
        let log = tracing_subscriber::fmt().fmt_fields(fields).with_ansi(false).with_writer(move || to.clone()).finish();
        let id = "t\u{1b}[31m\u{7}\u{9b}1";
        tracing::subscriber::with_default(log, || {
            let _span = tracing::info_span!("turn.attempt", turn.id = %id).entered();
            tracing::info!(turn.id = %id, n = 7, "Turn {id} runs");
        });
        let line = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(line.contains("turn.attempt{turn.id=t\u{fffd}[31m\u{fffd}\u{fffd}1}"), "{line}");
        assert!(line.contains("Turn t\u{fffd}[31m\u{fffd}\u{fffd}1 runs turn.id=t\u{fffd}[31m") && line.contains(" n=7"), "{line}");
        assert!(!line.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{line}");
    }
}
