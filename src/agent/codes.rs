//! Why an agent failed, by code.

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, and what to do about it.
    pub message: String,
    /// Whether the same turn may work when tried again.
    pub retryable: bool,
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $retryable:literal;)+) => {
        /// Why an agent failed. Stable: programs compare `turns.error_code` with these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name,)+
        }

        impl ErrorCode {
            /// As in `turns.error_code`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Whether the same turn may work when tried again.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)+ }
            }

            /// Whether the agent's conversation is there to go on with.
            pub const fn keeps_conversation(self) -> bool {
                !matches!(self, Self::SessionNotFound | Self::PrepareFailed | Self::PrepareTimeout)
            }
        }
    };
}

error_codes! {
    /// The model's API refuses the key.
    AuthenticationFailed = "authentication_failed", false;
    /// The account can't pay, or is on hold.
    Billing = "billing_error", false;
    /// Too many requests to the model.
    RateLimit = "rate_limit", true;
    /// The model has too much to do.
    Overloaded = "overloaded", true;
    /// The model's API failed.
    ServerError = "server_error", true;
    /// The model's API can't be reached from the sandbox.
    ConnectionFailed = "connection_failed", true;
    /// There is no such model, or not for this key.
    ModelNotFound = "model_not_found", false;
    /// The API takes the request for wrong.
    InvalidRequest = "invalid_request", false;
    /// The conversation no longer fits the model.
    PromptTooLong = "prompt_too_long", false;
    /// An image can't be processed.
    ImageError = "image_error", false;
    /// The model declined.
    Refusal = "refusal", false;
    /// The answer was longer than the model may write.
    MaxOutputTokens = "max_output_tokens", false;
    /// The turn's limit of model calls.
    MaxTurns = "max_turns", false;
    /// The turn's budget.
    BudgetExhausted = "budget_exhausted", false;
    /// Any other failure of the API.
    ApiError = "api_error", true;
    /// The agent's program is not in the sandbox.
    AgentNotFound = "agent_not_found", false;
    /// It refuses the pool's command line: too old, or a wrong flag.
    AgentRefused = "agent_refused", false;
    /// It knows nothing of the conversation that it was to go on with.
    SessionNotFound = "session_not_found", true;
    /// It ended without a word.
    AgentNoOutput = "agent_no_output", false;
    /// What it printed is no stream-json.
    AgentGarbage = "agent_garbage", false;
    /// It printed more than its journal may hold.
    JournalFull = "journal_full", false;
    /// The hook that fetches the project's files misses something that no other try will bring.
    PrepareConfig = "prepare_config", false;
    /// The hook that fetches the project's files failed.
    PrepareFailed = "prepare_failed", true;
    /// It took too long.
    PrepareTimeout = "prepare_timeout", true;
    /// The files of the turns before could not be unpacked.
    WorkspaceFailed = "workspace_failed", false;
    /// A file that came with the message could not be put where it belongs.
    AttachmentRefused = "attachment_refused", false;
    /// The hook that saves the project's files misses something that no other try will bring.
    FinishConfig = "finish_config", false;
    /// The hook that saves the project's files failed.
    FinishFailed = "finish_failed", true;
    /// It took too long.
    FinishTimeout = "finish_timeout", true;
    /// A signal ended it, which we did not send.
    AgentKilled = "agent_killed", true;
    /// It ended in the middle.
    AgentCrashed = "agent_crashed", true;
    /// It was interrupted, which we did not ask for.
    AgentInterrupted = "agent_interrupted", true;
    /// It said nothing for too long, and was stopped.
    AgentIdle = "agent_idle", true;
    /// It says that it failed, in words that are new to us.
    AgentFailed = "agent_failed", false;
}
