//! `tokenizer.model`: SentencePiece's own file, of which the pieces are read. Source: google/sentencepiece,
//! src/sentencepiece_model.proto (`ModelProto.pieces`), in protobuf's wire format (protobuf.dev, "Encoding").

use super::spm::Kind;

/// One piece, in the order of ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: Vec<u8>,
    pub score: f32,
    pub kind: Kind,
}

/// The pieces of a file. An error is a sentence that the caller puts the path before.
pub fn pieces(bytes: &[u8]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    for field in Fields(bytes) {
        if let (1, Content::Bytes(inner)) = field? {
            pieces.push(piece(inner)?);
        }
    }
    if pieces.is_empty() { Err("holds no pieces: it is no SentencePiece model".to_owned()) } else { Ok(pieces) }
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: Vec::new(), score: 0.0, kind: Kind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Content::Bytes(text)) => piece.text = text.to_vec(),
            (2, Content::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Content::Varint(number)) => {
                piece.kind = match number {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => return Err(format!("has a piece of the unknown type {other}")),
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// What a field holds.
enum Content<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message: number and content. Ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Content<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "is cut or no SentencePiece model".to_owned()))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Content<'a>)> {
        let tag = self.varint()?;
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Content::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Content::Bytes(self.take(length)?)
            }
            5 => Content::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, content))
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Seven bits a byte, lowest first; ten bytes at most.
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pieces and a field that is passed over, spelled out by hand.
    const MODEL: &[u8] = b"\x0a\x09\x0a\x03<s>\x18\x03\x10\x00\x0a\x0a\x0a\x03\xe2\x96\x81\x15\x00\x00\xc0\xbf\x12\x01\x00";

    #[test]
    fn pieces_are_read_with_score_and_type() {
        // A `score` that is no float is passed over, as protobuf passes over what it does not know.
        let found = pieces(MODEL).unwrap();
        assert_eq!(found[0], Piece { text: b"<s>".to_vec(), score: 0.0, kind: Kind::Control });
        assert_eq!(found[1], Piece { text: "\u{2581}".into(), score: -1.5, kind: Kind::Normal });
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn what_is_no_model_is_told() {
        for cut in [1, 2, 5, MODEL.len() - 2] {
            assert!(pieces(&MODEL[..cut]).unwrap_err().contains("is cut or no SentencePiece model"), "{cut}");
        }
        assert!(pieces(b"").unwrap_err().contains("holds no pieces"));
        assert!(pieces(&[0xff; 32]).is_err());
        // Meta's tiktoken file of the same name: base64 text and ranks.
        assert!(pieces(b"IQ== 0\nIg== 1\nIw== 2\n").is_err());
        assert!(pieces(b"\x0a\x02\x18\x09").unwrap_err().contains("unknown type 9"));
    }
}
