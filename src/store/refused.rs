//! What the public SQL functions refuse, in their own words: SQLSTATE TM4xx, a message, a hint.

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// TM400: an argument.
    Argument,
    /// TM404: there is no such thing.
    Unknown,
    /// TM409: it contradicts what is there.
    Conflict,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its kind.
    pub wrong: Wrong,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// The refusal that this error is; `None`: it is something else.
pub fn refused(error: &sqlx::Error) -> Option<Refused> {
    let error = error.as_database_error()?;
    let wrong = match error.code()?.as_ref() {
        "TM400" => Wrong::Argument,
        "TM404" => Wrong::Unknown,
        "TM409" => Wrong::Conflict,
        _ => return None,
    };
    let hint = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|error| error.hint()).map(str::to_owned);
    Some(Refused { wrong, message: error.message().to_owned(), hint })
}
