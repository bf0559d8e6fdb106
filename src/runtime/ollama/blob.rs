//! A file as Ollama knows it: by the SHA-256 of its bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A local file with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub path: PathBuf,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    pub size_bytes: u64,
}

impl Blob {
    /// Reads the whole file once.
    pub fn of(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size_bytes = 0;
        loop {
            let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size_bytes += n as u64;
        }
        Ok(Self { path: path.to_owned(), digest: digest_text(&hash.finalize()), size_bytes })
    }
}

/// `sha256:` and the digits of a hash.
pub(super) fn digest_text(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// The digest at the end of a path or a reference (`.../blobs/sha256-<hex>`, `sha256:<hex>`), as `sha256:<hex>`.
pub(super) fn digest_in(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches('"');
    let hex = text.get(text.len().checked_sub(64)?..)?;
    let before = text.get(..text.len() - 64)?;
    let is_digest = hex.bytes().all(|b| b.is_ascii_hexdigit()) && (before.ends_with("sha256-") || before.ends_with("sha256:"));
    is_digest.then(|| format!("sha256:{}", hex.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_has_the_sha256_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let blob = Blob::of(&path).unwrap();
        // FIPS 180-4, example of "abc".
        assert_eq!(blob.digest, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(blob.size_bytes, 3);
    }

    #[test]
    fn a_digest_is_found_in_paths_and_nowhere_else() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_in(&format!("/m/blobs/sha256-{hex}")), Some(format!("sha256:{hex}")));
        assert_eq!(digest_in(&format!("C:\\m\\sha256-{}", hex.to_uppercase())), Some(format!("sha256:{hex}")));
        assert_eq!(digest_in(&format!("sha1-{hex}")), None);
        assert_eq!(digest_in("smollm2:latest"), None);
        assert_eq!(digest_in(&format!("sha256-{}é{}", &hex[..31], &hex[..31])), None);
    }
}
