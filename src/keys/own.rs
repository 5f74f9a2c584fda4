//! Users' and tenants' own keys, as they are kept: sealed as theirs, so that nobody's row opens as another's.

use secrecy::{ExposeSecret as _, SecretString};

use super::{Closed, KeyKind, Sealed, Vault};

/// A key as the database has it.
#[derive(Debug, Clone)]
pub struct OwnKey {
    /// Of sessions of this tenant; empty: of sessions of none.
    pub tenant_id: String,
    /// Of this user's; empty: of all of the tenant's.
    pub user_id: String,
    /// The key.
    pub sealed: Sealed,
}

impl OwnKey {
    /// Seals it as theirs; `None`: there is no master key, and nothing is kept unsealed.
    pub fn seal(vault: &Vault, tenant_id: &str, user_id: &str, key: &SecretString) -> Option<Self> {
        vault.sealing()?;
        let sealed = vault.seal(&seal_of_own(tenant_id, user_id), key.expose_secret().as_bytes().to_vec());
        Some(Self { tenant_id: tenant_id.to_owned(), user_id: user_id.to_owned(), sealed })
    }

    /// Opens it.
    pub fn open(self, vault: &Vault) -> Result<(KeyKind, SecretString), Closed> {
        let key_id = self.sealed.key_id.clone().unwrap_or_default();
        let opened = vault.open(&seal_of_own(&self.tenant_id, &self.user_id), self.sealed)?;
        let key = String::from_utf8(opened).map_err(|_| Closed::Broken(key_id))?;
        Ok((kind_of(&key), key.into()))
    }
}

/// As what a user's own key is sealed. The length keeps two ids apart, whatever they hold.
pub fn seal_of_own(tenant_id: &str, user_id: &str) -> String {
    format!("user_key/{}/{tenant_id}/{user_id}", tenant_id.len())
}

/// Whether it can be a key: those of Anthropic alone, for it goes there. Says what is wrong, and not what was given.
pub fn check_own(key: &str) -> Result<(), &'static str> {
    let rest = key.strip_prefix("sk-ant-").ok_or("the key must be one of Anthropic's, which begin with sk-ant-")?;
    let good = (8..=1017).contains(&rest.len()) && rest.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if good {
        Ok(())
    } else {
        Err("the key is not whole, or more than the key was copied: after sk-ant- it has letters, digits, \"_\" and \"-\"")
    }
}

/// What a user's own key is, by its beginning; which its owner can't choose.
pub fn kind_of(key: &str) -> KeyKind {
    if key.starts_with("sk-ant-oat") { KeyKind::OauthToken } else { KeyKind::ApiKey }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_key_is_refused_and_not_repeated() {
        for wrong in ["", "sk-ant-", "sk-ant-short", "sk-proj-0123456789abcdef", "sk-ant-api03-abc def", "sk-ant-api03-abc...", "password"]
        {
            assert!(wrong.is_empty() || !check_own(wrong).unwrap_err().contains(wrong) || wrong == "sk-ant-", "{wrong}");
        }
        assert_eq!(check_own("sk-ant-api03-AbC_-123"), Ok(()));
    }

    #[test]
    fn a_key_opens_as_its_owner_s_only() {
        let vault = Vault::new(&Vault::new_key("k")).unwrap();
        let own = |tenant: &str, user: &str| OwnKey {
            tenant_id: tenant.to_owned(),
            user_id: user.to_owned(),
            sealed: vault.seal(&seal_of_own("a/b", "c"), b"sk-ant-oat01-x".to_vec()),
        };
        assert_eq!(own("a/b", "c").open(&vault).unwrap().0, KeyKind::OauthToken);
        for (tenant, user) in [("a", "b/c"), ("a/b", "d"), ("", "c"), ("a/b", "")] {
            assert_eq!(own(tenant, user).open(&vault).unwrap_err(), Closed::Broken("k".to_owned()), "{tenant} {user}");
        }
    }
}
