//! What can't be a secret: too short to be one, or a word that everybody would try. Such a value could not be masked either:
//! it would be found in every second line that an agent prints.

/// Fewest characters.
const CHARS_MIN: usize = 8;

/// Of real keys none has more.
const CHARS_MAX: usize = 8192;

/// Lower case, letters and digits only.
const COMMON: [&str; 20] = [
    "password",
    "passw0rd",
    "password1",
    "password123",
    "changeme",
    "changeit",
    "changethis",
    "secret",
    "secretkey",
    "mysecret",
    "default",
    "example",
    "placeholder",
    "letmein",
    "iloveyou",
    "administrator",
    "apikey",
    "yourapikey",
    "yourkey",
    "undefined",
];

/// Why `value` can't be a secret, as a sentence goes on after its name. Never repeats it.
pub fn weakness(value: &str) -> Option<&'static str> {
    let folded: String = value.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let mut chars = folded.chars();
    let first = chars.next();
    if !value.chars().all(|c| c.is_ascii_graphic()) {
        Some("has blanks or characters that no key has; was more copied than the key?")
    } else if COMMON.contains(&folded.as_str()) || chars.all(|c| Some(c) == first) {
        Some("is a word that anybody would try; put the real one there")
    } else if value.ends_with("...") || folded.starts_with("your") || value.contains("${") || value.starts_with('<') {
        Some("is still the example's; put the real one there")
    } else if value.len() < CHARS_MIN {
        Some("has fewer than 8 characters, which no key has")
    } else if value.len() > CHARS_MAX {
        Some("has more than 8192 characters, which no key has")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_stumps_are_no_secrets() {
        for (value, why) in [
            ("sk", "fewer than 8"),
            ("1234567", "fewer than 8"),
            ("password", "anybody would try"),
            ("Change-Me", "anybody would try"),
            ("xxxxxxxxxxxx", "anybody would try"),
            ("--------", "anybody would try"),
            ("sk-ant-...", "example's"),
            ("your-e2b-token", "example's"),
            ("${CLAUDE_API_KEY}", "example's"),
            ("sk-ant-api03 x", "blanks"),
            ("sk-ant-api03\u{200b}abc", "blanks"),
            ("", "anybody would try"),
        ] {
            assert!(weakness(value).is_some_and(|said| said.contains(why)), "{value}: {:?}", weakness(value));
        }
        assert!(weakness(&"ab".repeat(5000)).is_some());
        for good in ["sk-ant-api03-AbCdEf", "e2b_0123456789abcdef", "12345678", "tok_12345"] {
            assert_eq!(weakness(good), None, "{good}");
        }
    }
}
