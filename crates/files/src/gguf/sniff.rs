//! What a file that is no GGUF might be. A download that went wrong is the commonest bad input of all.

use std::path::Path;

use crate::Error;

/// The first bytes of a file, as far as they are needed here.
pub(crate) const SNIFF_BYTES: usize = 64;

/// Whether these are the first bytes of a GGUF.
pub(crate) fn looks_like_gguf(head: &[u8]) -> bool {
    head.starts_with(b"GGUF")
}

/// What the file looks like (with an article) and what to do about it.
pub(crate) fn sniff(head: &[u8], file_bytes: u64) -> (String, String) {
    let text = head.trim_ascii_start();
    let starts =
        |prefix: &[u8]| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let (found, hint) = if file_bytes == 0 {
        ("an empty file", "the download did not start: download it again")
    } else if starts(b"version https://git-lfs") {
        (
            "a Git LFS pointer",
            "only the pointer was cloned: run `git lfs pull` there, or download the file itself",
        )
    } else if starts(b"<!doctype") || starts(b"<html") {
        ("an HTML page", "the download saved a web page (log-in or error): download the file itself")
    } else if head.len() > 8 && head[8] == b'{' && head[6..8] == [0, 0] {
        ("a safetensors file", "convert it to GGUF first")
    } else if starts(b"{") || starts(b"[") {
        ("a JSON file", "pass the model file or its folder")
    } else if head.starts_with(b"PK\x03\x04") {
        ("a zip archive (PyTorch checkpoint?)", "convert it to GGUF first")
    } else if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| head.starts_with(*magic)) {
        ("a ggml file from before GGUF", "convert the model again with a current llama.cpp")
    } else if head.iter().all(|&b| b == 0) {
        ("a file of zeros", "the download was never filled in: download it again")
    } else {
        ("an unknown file", "pass a .gguf file, a sidecar folder or its manifest.json")
    };
    (found.to_owned(), hint.to_owned())
}

/// An error unless `head` starts a GGUF.
pub(crate) fn expect_gguf(path: &Path, head: &[u8], file_bytes: u64) -> Result<(), Error> {
    if looks_like_gguf(head) {
        return Ok(());
    }
    let (found, hint) = sniff(head, file_bytes);
    Err(Error::WrongKind { path: path.to_path_buf(), found, expected: "a gguf file", hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_sees() {
        let kind = |head: &[u8]| sniff(head, head.len() as u64).0;
        assert_eq!(kind(b""), "an empty file");
        assert_eq!(kind(b"version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer");
        assert_eq!(kind(b"\n <!DOCTYPE html><html>"), "an HTML page");
        assert_eq!(kind(b"<HTML>"), "an HTML page");
        assert_eq!(kind(b"\x10\x01\0\0\0\0\0\0{\"__metadata__\""), "a safetensors file");
        assert_eq!(kind(b"{\"a\":1}"), "a JSON file");
        assert_eq!(kind(b"PK\x03\x04..."), "a zip archive (PyTorch checkpoint?)");
        assert_eq!(kind(b"tjgg\x01"), "a ggml file from before GGUF");
        assert_eq!(kind(&[0; 64]), "a file of zeros");
        assert_eq!(kind(b"\x7fELF"), "an unknown file");
    }
}
