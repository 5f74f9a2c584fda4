//! Amazon Bedrock's short-term key: a request to it, signed beforehand and written as one word. Nobody is asked for it; it lets
//! its holder do what those credentials may, in Bedrock and in one region, for as long as both last.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aws_credential_types::Credentials as AwsCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::SecretString;

/// Longest life that Bedrock allows it.
pub(super) const LIFE_MAX: Duration = Duration::from_secs(12 * 3600);

const SIGNED: &str = "https://bedrock.amazonaws.com/?Action=CallWithBearerToken";

/// Makes one that lasts for `life` from `now` on, if the credentials do.
pub fn bearer_token(credentials: AwsCredentials, region: &str, life: Duration, now: SystemTime) -> anyhow::Result<SecretString> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(life.min(LIFE_MAX));
    let identity = credentials.into();
    let params =
        v4::SigningParams::builder().identity(&identity).region(region).name("bedrock").time(now).settings(settings).build()?.into();
    let signable = SignableRequest::new("POST", SIGNED, std::iter::empty(), SignableBody::Bytes(b""))?;
    let (instructions, _) = sign(signable, &params)?.into_parts();
    let mut request = Request::post(SIGNED).body(())?;
    instructions.apply_to_request_http1x(&mut request);
    let url = request.uri().to_string();
    // Added after signing: Bedrock leaves it out when it checks.
    let bare = url.strip_prefix("https://").context("a signed URL")?;
    Ok(format!("bedrock-api-key-{}", BASE64.encode(format!("{bare}&Version=1"))).into())
}
