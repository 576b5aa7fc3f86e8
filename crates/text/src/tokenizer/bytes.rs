//! The GPT-2 alphabet: byte-level vocabularies are stored as text, so each of the 256 bytes has a printable
//! character. Printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards, in order.

/// The alphabet in both directions.
pub(super) struct Alphabet {
    to_char: [char; 256],
    to_byte: [Option<u8>; LAST as usize + 1],
}

/// The highest code point in use: 0x100 + 67.
const LAST: u32 = 0x143;

impl Alphabet {
    pub(super) fn new() -> Self {
        let mut alphabet = Self { to_char: ['\0'; 256], to_byte: [None; LAST as usize + 1] };
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let code = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    next += 1;
                    next - 1
                }
            };
            alphabet.to_char[usize::from(byte)] = char::from_u32(code).expect("below the surrogates");
            alphabet.to_byte[code as usize] = Some(byte);
        }
        alphabet
    }

    pub(super) fn char(&self, byte: u8) -> char {
        self.to_char[usize::from(byte)]
    }

    /// Appends `text` to `out` in the alphabet.
    pub(super) fn encode(&self, text: &str, out: &mut String) {
        out.extend(text.bytes().map(|byte| self.char(byte)));
    }

    /// Appends the bytes that `token` stands for. A token with a character outside the alphabet was never written
    /// in it, and stands for its own text; as in Hugging Face tokenizers.
    pub(super) fn decode(&self, token: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for char in token.chars() {
            match self.to_byte.get(char as usize) {
                Some(Some(byte)) => out.push(*byte),
                _ => {
                    out.truncate(start);
                    out.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        let alphabet = Alphabet::new();
        assert_eq!(alphabet.char(b' '), 'Ġ');
        assert_eq!(alphabet.char(b'\n'), 'Ċ');
        assert_eq!(alphabet.char(0xad), '\u{143}');
        let mut out = Vec::new();
        for byte in 0..=255u8 {
            out.clear();
            alphabet.decode(&alphabet.char(byte).to_string(), &mut out);
            assert_eq!(out, [byte]);
        }
        out.clear();
        alphabet.decode("Ġ界", &mut out);
        assert_eq!(out, "Ġ界".as_bytes());
    }
}
