//! AWS STS over our own HTTP client: AWS' own would bring HTTP/2, and a second TLS provider with it.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::Credentials as AwsCredentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sts::config::Region;
use aws_sdk_sts::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sts::types::Credentials as Assumed;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::{Response, StatusCode};
use aws_smithy_types::body::SdkBody;
use secrecy::{ExposeSecret as _, SecretString};

use super::KeyTrouble;

/// Longest time for one call, with its own repetitions.
const DEADLINE: Duration = Duration::from_secs(20);

/// Most characters of what STS says that are passed on.
const SAID_MAX: usize = 300;

/// Who asks STS.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    /// A user's long-term key, or a session's.
    Key { id: String, secret: SecretString, session: Option<SecretString> },
    /// A Kubernetes service account's token, in this file.
    ServiceAccount(String),
    /// Whatever AWS' own search finds: a profile, a container's or a machine's role.
    Found,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub role: &'a str,
    pub session: &'a str,
    pub policy: &'a str,
    pub life: Duration,
}

/// Assumes the role; what comes of it lasts for as long as was asked for.
pub(super) async fn assume(
    identity: &Identity,
    region: &str,
    endpoint: Option<&str>,
    wanted: Wanted<'_>,
) -> Result<AwsCredentials, KeyTrouble> {
    let client = client(identity, region, endpoint).await.map_err(|error| KeyTrouble::passing("bedrock_unreachable", error.to_string()))?;
    let seconds = i32::try_from(wanted.life.as_secs()).unwrap_or(i32::MAX);
    let assumed = match identity {
        Identity::ServiceAccount(file) => {
            let token = std::fs::read_to_string(file).map_err(|error| {
                KeyTrouble::passing(
                    "bedrock_refused",
                    format!("the service account's token can't be read (AWS_WEB_IDENTITY_TOKEN_FILE): {error}"),
                )
            })?;
            let call = client.assume_role_with_web_identity().role_arn(wanted.role).role_session_name(wanted.session);
            let call = call.web_identity_token(token.trim()).policy(wanted.policy).duration_seconds(seconds);
            call.send().await.map(|answer| answer.credentials).map_err(|error| trouble(wanted.role, &error))?
        }
        Identity::Key { .. } | Identity::Found => {
            let call = client.assume_role().role_arn(wanted.role).role_session_name(wanted.session);
            let call = call.policy(wanted.policy).duration_seconds(seconds);
            call.send().await.map(|answer| answer.credentials).map_err(|error| trouble(wanted.role, &error))?
        }
    };
    let Assumed { access_key_id, secret_access_key, session_token, .. } =
        assumed.ok_or_else(|| KeyTrouble::passing("bedrock_refused", "STS answers without credentials"))?;
    Ok(AwsCredentials::new(access_key_id, secret_access_key, Some(session_token), None, "turnmill"))
}

async fn client(identity: &Identity, region: &str, endpoint: Option<&str>) -> anyhow::Result<aws_sdk_sts::Client> {
    let http = Http(reqwest::Client::builder().http1_only().connect_timeout(Duration::from_secs(5)).timeout(DEADLINE).build()?);
    let connector = SharedHttpConnector::new(http);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .timeout_config(TimeoutConfig::builder().operation_timeout(DEADLINE).build());
    if let Identity::Key { id, secret, session } = identity {
        let session = session.as_ref().map(|session| session.expose_secret().to_owned());
        let key = AwsCredentials::new(id.clone(), secret.expose_secret(), session, None, "environment");
        loader = loader.credentials_provider(SharedCredentialsProvider::new(key));
    }
    if let Identity::ServiceAccount(_) = identity {
        loader = loader.no_credentials();
    }
    let mut config = aws_sdk_sts::config::Builder::from(&loader.load().await);
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(aws_sdk_sts::Client::from_conf(config.build()))
}

/// What an operator can do about what STS says.
fn trouble<E>(role: &str, error: &SdkError<E>) -> KeyTrouble
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let Some(refused) = error.as_service_error() else {
        let cause = shortened(&DisplayErrorContext(error).to_string());
        return if cause.contains("credential") {
            let text =
                format!("no AWS credentials are found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with a role: {cause}");
            KeyTrouble::passing("bedrock_refused", text)
        } else {
            KeyTrouble::passing("bedrock_unreachable", format!("AWS STS can't be reached: {cause}"))
        };
    };
    let code = refused.meta().code().unwrap_or("an error");
    // Only its beginning: about a wrong signature STS goes on to repeat the request, session token and all.
    let said = shortened(refused.meta().message().unwrap_or_default());
    let clock = ["Signature expired", "Signature not yet current"].iter().any(|words| said.contains(words));
    if clock || ["RequestExpired", "RequestTimeTooSkewed"].contains(&code) {
        return KeyTrouble::passing(
            "bedrock_clock",
            format!("this worker's clock is wrong, so AWS takes nothing that it signs: {code}: {said}"),
        );
    }
    let (code_of_ours, what) = match code {
        "AccessDenied" => (
            "bedrock_refused",
            format!("STS does not let this worker assume {role}; see the role's trust policy, and what the worker may do"),
        ),
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidIdentityToken" => ("bedrock_refused", "AWS does not take this worker's own credentials".to_owned()),
        "ValidationError" if said.contains("DurationSeconds") => (
            "bedrock_session_too_short",
            format!("{role} may not be assumed for so long; raise its maximum session duration, or lower keys.bedrock_session_max"),
        ),
        "ValidationError" | "MalformedPolicyDocument" | "PackedPolicyTooLarge" => {
            ("bedrock_refused", "STS takes the request for wrong".to_owned())
        }
        _ => ("bedrock_refused", format!("STS refuses to let this worker assume {role}")),
    };
    KeyTrouble::passing(code_of_ours, format!("{what}: {code}: {said}"))
}

fn shortened(said: &str) -> String {
    super::shortened(said.lines().next().unwrap_or_default(), SAID_MAX)
}

/// Our HTTP client, as AWS' code wants one.
#[derive(Debug)]
struct Http(reqwest::Client);

impl HttpConnector for Http {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move { send(client, request).await })
    }
}

async fn send(client: reqwest::Client, request: HttpRequest) -> Result<Response, ConnectorError> {
    let user = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::user(error);
    let request = request.try_into_http1x().map_err(|error| user(error.into()))?;
    let (parts, body) = request.into_parts();
    let body = body.bytes().map(<[u8]>::to_vec).unwrap_or_default();
    let call = client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body);
    let failed = |error: reqwest::Error| {
        if error.is_timeout() { ConnectorError::timeout(error.into()) } else { ConnectorError::io(error.into()) }
    };
    let answer = call.send().await.map_err(failed)?;
    let status = StatusCode::try_from(answer.status().as_u16()).map_err(|error| ConnectorError::other(error.into(), None))?;
    let headers = answer.headers().clone();
    let mut response = Response::new(status, SdkBody::from(answer.bytes().await.map_err(failed)?.to_vec()));
    for (name, value) in &headers {
        if let Ok(value) = value.to_str() {
            response.headers_mut().append(name.as_str().to_owned(), value.to_owned());
        }
    }
    Ok(response)
}
