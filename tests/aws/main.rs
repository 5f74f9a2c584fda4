//! Bedrock's keys against what is not ours: moto plays STS, and AWS' own generator says what a token must be.
//! `make test-aws` starts the one and installs the other.

use std::process::Command;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::ExposeSecret as _;
use turnmill::config::Config;
use turnmill::keys::{Environment, KeyKind, Keyring, bearer_token};

/// The generator at a time of ours.
const GENERATE: &str = "
import sys, datetime, botocore.auth
from botocore.credentials import Credentials
from aws_bedrock_token_generator.token_generator import _generate_token
at = datetime.datetime.fromtimestamp(int(sys.argv[5]), datetime.timezone.utc)
botocore.auth.get_current_datetime = lambda remove_tzinfo=True: at.replace(tzinfo=None) if remove_tzinfo else at
print(_generate_token(Credentials(sys.argv[1], sys.argv[2], sys.argv[3] or None), sys.argv[4], int(sys.argv[6])))
";

fn given(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: make test-aws"))
}

/// What a token says: the address, and its parameters in an order that means nothing.
fn read(token: &str) -> (String, Vec<String>) {
    let url = BASE64.decode(token.strip_prefix("bedrock-api-key-").unwrap()).unwrap();
    let url = String::from_utf8(url).unwrap();
    let (host, query) = url.split_once('?').unwrap();
    let mut parameters: Vec<String> = query.split('&').map(str::to_owned).collect();
    assert_eq!(parameters.last().unwrap(), "Version=1", "last, and not signed");
    parameters.sort();
    (host.to_owned(), parameters)
}

#[test]
fn a_token_is_what_aws_own_generator_makes_at_the_same_second() {
    let cases = [
        ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "", "us-east-1", 1_764_000_000_u64, 43_200_u64),
        ("ASIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEBY=/+a b", "eu-central-1", 1_800_000_001, 3_600),
        ("ASIAEXAMPLE", "secret", &"Fwo/+=".repeat(200), "us-gov-west-1", 1_764_000_059, 900),
    ];
    for (id, secret, session, region, at, life) in cases {
        let generated = Command::new(given("TURNMILL_TEST_PYTHON"))
            .args(["-c", GENERATE, id, secret, session, region, &at.to_string(), &life.to_string()])
            .output()
            .unwrap();
        assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
        let theirs = String::from_utf8(generated.stdout).unwrap();
        let credentials = Credentials::new(id, secret, Some(session.to_owned()).filter(|s| !s.is_empty()), None, "test");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        let ours = bearer_token(credentials, region, Duration::from_secs(life), now).unwrap();
        assert_eq!(read(ours.expose_secret()), read(theirs.trim()));
    }
}

fn keyring(sts: &str) -> Keyring {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEOFWORKER"),
        ("AWS_SECRET_ACCESS_KEY", "the-worker-s-own-secret"),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents"),
        ("BEDROCK_MODEL_ID", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ];
    let environment = Environment::read(&|name| Some((*variables.iter().find(|(known, _)| *known == name)?.1).to_owned()), None).unwrap();
    let mut config = Config { environment, ..Config::load(None).unwrap() };
    sts.clone_into(&mut config.keys.sts_url);
    Keyring::new(&config).unwrap()
}

#[tokio::test]
async fn a_role_is_assumed_once_for_many_turns() {
    turnmill::tls::install();
    let sts = given("TURNMILL_TEST_STS");
    let ring = keyring(&sts);
    let bedrock = ring.bedrock().unwrap();
    let many = (0..20).map(|_| bedrock.credentials(None, Duration::from_secs(3000)));
    let mut tokens: Vec<String> = futures::future::join_all(many)
        .await
        .into_iter()
        .map(|credentials| {
            let credentials = credentials.unwrap();
            let (kind, token) = credentials.key().unwrap();
            assert_eq!(kind, KeyKind::BedrockToken);
            token.expose_secret().to_owned()
        })
        .collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    let (host, parameters) = read(&tokens[0]);
    assert_eq!(host, "bedrock.amazonaws.com/");
    let has = |begin: &str| parameters.iter().any(|parameter| parameter.starts_with(begin));
    assert!(has("X-Amz-Credential=ASIA") && has("X-Amz-Security-Token=") && has("X-Amz-Expires=3600"), "{parameters:?}");
    assert!(!tokens[0].contains("the-worker-s-own-secret"));
}
