//! Seals what the database keeps of users: conversations. XChaCha20-Poly1305, with a random nonce in front, under a master key
//! that only workers have; what it belongs to is authenticated with it, so that a row can't pass for another.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};

/// Bytes of a key.
const KEY: usize = 32;

/// Bytes in front of what is sealed.
const NONCE: usize = 24;

/// Something as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key; `None`: it is not sealed.
    pub key_id: Option<String>,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Why something can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// It was sealed under a key that is not configured.
    #[error("it is sealed under key \"{0}\", which this worker does not have (keys.master)")]
    UnknownKey(String),
    /// Another key of the same name, other bytes, or another's row.
    #[error("its seal is broken: it was changed, or key \"{0}\" is not the one that it was sealed with")]
    Broken(String),
}

/// The master keys. Without one nothing is sealed.
#[derive(Clone, Default)]
pub struct Vault {
    /// By id; the first seals.
    keys: Vec<(String, XChaCha20Poly1305)>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl Vault {
    /// From `ID:BASE64` words, the one that seals first; the others only open. Errors name no key, only its place.
    pub fn new(keys: &str) -> anyhow::Result<Self> {
        let read = |(nth, word): (usize, &str)| {
            let wrong = || format!("key {} of keys.master is not ID:BASE64 of {KEY} bytes; make one: turnmill keys new", nth + 1);
            let (id, bytes) = word.split_once(':').with_context(wrong)?;
            let good = (1..=64).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            let bytes: [u8; KEY] =
                BASE64.decode(bytes).ok().filter(|_| good).and_then(|bytes| bytes.try_into().ok()).with_context(wrong)?;
            Ok((id.to_owned(), XChaCha20Poly1305::new(&bytes.into())))
        };
        let keys = keys.split_whitespace().enumerate().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        let mut ids: Vec<_> = keys.iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        anyhow::ensure!(ids.windows(2).all(|two| two[0] != two[1]), "keys.master has two keys of one id; give each its own");
        Ok(Self { keys })
    }

    /// A key for the configuration, `ID:BASE64`.
    pub fn new_key(id: &str) -> String {
        format!("{id}:{}", BASE64.encode(rand::random::<[u8; KEY]>()))
    }

    /// The key that seals; `None`: nothing is.
    pub fn sealing(&self) -> Option<&str> {
        self.keys.first().map(|(id, _)| id.as_str())
    }

    /// Whether it has this key.
    pub fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|(known, _)| known == id)
    }

    /// Seals it as `belongs_to`'s, where there is a key.
    pub fn seal(&self, belongs_to: &str, data: Vec<u8>) -> Sealed {
        let Some((id, key)) = self.keys.first() else { return Sealed { key_id: None, data } };
        let nonce: [u8; NONCE] = rand::random();
        let aad = bound(belongs_to, id);
        // It refuses only what is longer than 256 GiB.
        let sealed = key.encrypt(&XNonce::from(nonce), Payload { msg: &data, aad: aad.as_bytes() }).unwrap_or_default();
        Sealed { key_id: Some(id.clone()), data: [nonce.as_slice(), &sealed].concat() }
    }

    /// Opens what was sealed as `belongs_to`'s.
    pub fn open(&self, belongs_to: &str, sealed: Sealed) -> Result<Vec<u8>, Closed> {
        let Some(id) = sealed.key_id else { return Ok(sealed.data) };
        let Some((_, key)) = self.keys.iter().find(|(known, _)| *known == id) else { return Err(Closed::UnknownKey(id)) };
        let opened = sealed.data.split_first_chunk::<NONCE>().and_then(|(nonce, data)| {
            let aad = bound(belongs_to, &id);
            key.decrypt(&XNonce::from(*nonce), Payload { msg: data, aad: aad.as_bytes() }).ok()
        });
        opened.ok_or(Closed::Broken(id))
    }
}

fn bound(belongs_to: &str, key_id: &str) -> String {
    format!("turnmill/{key_id}/{belongs_to}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_only_and_as_what_it_is_only() {
        let (old, new) = (Vault::new_key("old"), Vault::new_key("new"));
        let vault = Vault::new(&old).unwrap();
        let sealed = vault.seal("transcript/t1", b"hello".to_vec());
        assert!(!sealed.data.windows(5).any(|five| five == b"hello"));
        assert_ne!(vault.seal("transcript/t1", b"hello".to_vec()), sealed, "each has a nonce of its own");
        let rotated = Vault::new(&format!("{new} {old}")).unwrap();
        assert_eq!((rotated.sealing(), rotated.open("transcript/t1", sealed.clone())), (Some("new"), Ok(b"hello".to_vec())));
        assert_eq!(rotated.open("transcript/t2", sealed.clone()), Err(Closed::Broken("old".to_owned())), "another's row");
        let mut changed = sealed.clone();
        *changed.data.last_mut().unwrap() ^= 1;
        assert_eq!(vault.open("transcript/t1", changed), Err(Closed::Broken("old".to_owned())));
        assert_eq!(vault.open("transcript/t1", Sealed { data: vec![1, 2], ..sealed.clone() }), Err(Closed::Broken("old".to_owned())));
        assert_eq!(Vault::new(&new).unwrap().open("transcript/t1", sealed.clone()), Err(Closed::UnknownKey("old".to_owned())));
        let other = Vault::new(&Vault::new_key("old")).unwrap();
        assert_eq!(other.open("transcript/t1", sealed), Err(Closed::Broken("old".to_owned())));
    }

    #[test]
    fn without_a_key_nothing_is_sealed_and_what_is_not_sealed_opens() {
        let open = Vault::default().seal("x", b"hello".to_vec());
        assert_eq!(open, Sealed { key_id: None, data: b"hello".to_vec() });
        assert_eq!(Vault::new(&Vault::new_key("k")).unwrap().open("x", open), Ok(b"hello".to_vec()));
    }

    #[test]
    fn a_key_that_is_none_is_refused_by_its_place_and_not_repeated() {
        let good = Vault::new_key("a");
        for (keys, place) in [("secret", "key 1"), (&*format!("{good} b:c2hvcnQ="), "key 2"), (&*format!(":{}", &good[2..]), "key 1")] {
            let error = Vault::new(keys).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains("turnmill keys new"), "{error}");
            assert!(!error.contains("secret") && !error.contains("c2hvcnQ="), "{error}");
        }
        assert!(Vault::new(&format!("{good} {good}")).unwrap_err().to_string().contains("two keys of one id"));
        assert!(!format!("{:?}", Vault::new(&good).unwrap()).contains(&good[2..]));
    }
}
