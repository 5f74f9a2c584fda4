//! Errors as people read them: the causes in one line, once each, and what to do.

use std::process::ExitCode;

use super::paint;

/// What a database says that has no schema of ours, or an old one: no such schema, table, column, function.
const NOT_OURS: [&str; 4] = ["3F000", "42P01", "42703", "42883"];

/// What it says to a login without the right.
const NO_RIGHT: &str = "42501";

/// Prints an error with its causes, and what Postgres adds as a hint.
pub fn complain(error: &anyhow::Error) {
    anstream::eprintln!("{}error:{} {}", paint::BAD, paint::OFF, text(error));
}

/// Prints what clap has to say: the help, or what is wrong with the command line.
pub fn explain(error: &clap::Error) -> ExitCode {
    let foreign = std::env::args_os().any(|arg| arg.to_string_lossy().contains(char::is_control));
    // It quotes the command line as it is. With nothing in that to fear, it may have its colours.
    if foreign && error.use_stderr() {
        anstream::eprint!("{}", paint::safe(&error.render().to_string()));
    } else {
        // Nobody to tell.
        drop(error.print());
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// An error with its causes. It may quote anything: nothing of it may steer the terminal.
pub fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let database = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        let said = database.map_or_else(|| cause.to_string(), refused);
        // Some errors repeat their source in their own text.
        if !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        // Below is the same once more, with the place in Postgres' source.
        if database.is_some() {
            break;
        }
    }
    paint::safe(&text)
}

fn refused(error: &dyn sqlx::error::DatabaseError) -> String {
    if error.code().is_some_and(|code| NOT_OURS.contains(&code.as_ref())) {
        return format!("the database's schema is not there, or older than this binary ({})\n  run: turnmill migrate", error.message());
    }
    if error.code().as_deref() == Some(NO_RIGHT) {
        return format!(
            "this login of the database has no right to that ({})\n  who has which: turnmill roles, as the schema's owner",
            error.message()
        );
    }
    let hint = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|error| error.hint());
    format!("{}{}", error.message(), hint.map(|hint| format!("\n  {hint}")).unwrap_or_default())
}
