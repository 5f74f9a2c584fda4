//! Secrets and signatures, as Standard Webhooks has them: `v1,` and the HMAC-SHA256 of id, time and body, under a secret that
//! people see as `whsec_` and base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

/// Bytes of a secret; at least 24 and at most 64 are wanted.
const SECRET: usize = 32;

/// A new secret: its bytes, and as its receiver gets it.
pub fn new_secret() -> (Vec<u8>, String) {
    let secret: [u8; SECRET] = rand::random();
    (secret.to_vec(), format!("whsec_{}", BASE64.encode(secret)))
}

/// The header: a signature for each secret, with blanks between.
pub fn signature(secrets: &[Vec<u8>], id: &str, timestamp_s: i64, body: &str) -> String {
    let signed = format!("{id}.{timestamp_s}.{body}");
    let one = |secret: &Vec<u8>| {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("v1,{}", BASE64.encode(tag))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_signs_as_the_specification_s_own_example() {
        let secret = BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = signature(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
