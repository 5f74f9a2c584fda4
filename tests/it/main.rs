//! What Turnmill promises, a file per promise. Real Postgres, a database per test; the sandboxes are the local
//! server's, over the real wire; the agent is the stand-in, as a real process.

mod harness;
mod receiver;
mod site;

mod agents;
mod attachments;
mod captures;
mod commands;
mod complaints;
mod crash;
mod end_to_end;
mod enqueue;
mod fairness;
mod faults;
mod fence;
mod files;
mod hooks;
mod house;
mod interleavings;
mod journals;
mod kept;
mod lost_answers;
mod memory;
mod outages;
mod previews;
mod properties;
mod queue;
mod races;
mod reconcile;
mod reference;
mod retries;
mod runtime;
mod sandboxes;
mod sessions;
mod signals;
mod simulated;
mod supervisor;
mod web_access;
mod web_limits;
mod web_streams;
mod web_turns;
mod webhooks;
mod wire;
mod workspace;
mod zombies;
