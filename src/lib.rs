//! Turnmill runs coding-agent turns durably on Postgres.
