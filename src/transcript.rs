//! A conversation on its way into the database and out of it: the agent's own file, a JSON entry a line as the Agent SDK's
//! session stores have them, as gzip in a seal. No I/O in this module.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::keys::{Sealed, Vault};

/// The conversation after a turn as it is kept.
pub fn pack(vault: &Vault, turn_id: &str, conversation: &[u8]) -> Sealed {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    // Into memory: neither can fail.
    let _ = gzip.write_all(conversation);
    vault.seal(&seal_of_conversation(turn_id), gzip.finish().unwrap_or_default())
}

/// The same as the agent wrote it; or why that can't be had, for people.
pub fn unpack(vault: &Vault, turn_id: &str, sealed: Sealed) -> Result<Vec<u8>, String> {
    let gzip =
        vault.open(&seal_of_conversation(turn_id), sealed).map_err(|why| format!("the saved conversation can't be opened: {why}"))?;
    let mut conversation = Vec::new();
    GzDecoder::new(gzip.as_slice())
        .read_to_end(&mut conversation)
        .map_err(|error| format!("the saved conversation is damaged ({error})"))?;
    Ok(conversation)
}

/// As what it is sealed.
pub fn seal_of_conversation(turn_id: &str) -> String {
    format!("transcript/{turn_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_as_the_same_turn_s_only() {
        let vault = Vault::new(&Vault::new_key("k")).unwrap();
        assert_eq!(unpack(&vault, "t1", pack(&vault, "t1", b"{}\n")), Ok(b"{}\n".to_vec()));
        assert!(unpack(&vault, "t2", pack(&vault, "t1", b"{}\n")).unwrap_err().contains("its seal is broken"));
        let mut cut = pack(&Vault::default(), "t1", b"{}\n");
        cut.data.truncate(10);
        assert!(unpack(&Vault::default(), "t1", cut).unwrap_err().contains("damaged"));
    }
}
