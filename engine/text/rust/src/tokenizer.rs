//! A tokenizer.json and the table of bytes its ids stand for. Decoding is that table, so that text
//! can be given out as it comes, whatever the decoder.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::tokenizer_file::TokenizerFile;

/// A tokenizer's ids index tables here and in the engine: a larger one is a broken file.
const MAX_VOCAB_SIZE: usize = 1 << 24;

pub struct TextTokenizer {
    tokenizer: Tokenizer,
    pieces: Vec<Option<Piece>>,
    pub leading_spaces: i32,
    /// One more than the largest id that is not an added token's.
    pub ordinary_size: i32,
}

/// What an id adds to a text.
pub struct Piece {
    pub bytes: Box<[u8]>,
    pub first: Option<Box<[u8]>>, // where it differs as the first of a text
    pub special: bool,
    pub fallback: bool, // one byte of a character that the vocabulary lacks
}

impl TextTokenizer {
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let file = TokenizerFile::read(json)?;
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        // A file may keep the limits of the corpus it was made for; ours are the engine's.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        file.check_added_ids(&tokenizer)?;
        let mut decoder = Decoder::default();
        let steps = serde_json::to_value(tokenizer.get_decoder()).map_err(|e| e.to_string())?;
        decoder.read(&steps)?;
        let pieces = pieces(&tokenizer, &decoder)?;
        let ordinary_size = ordinary_size(&tokenizer);
        let leading_spaces = decoder.leading_spaces;
        Ok(TextTokenizer { tokenizer, pieces, leading_spaces, ordinary_size })
    }

    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        let encoding = self.tokenizer.encode_fast(text, add_special).map_err(|e| e.to_string())?;
        let ids = encoding.get_ids().to_vec();
        // A post-processor's ids are its own: one may be outside the tables they index.
        match ids.iter().find(|id| i32::try_from(**id).ok().and_then(|id| self.piece(id)).is_none())
        {
            Some(id) => Err(format!("the tokenizer gave id {id}, which its vocabulary lacks")),
            None => Ok(ids),
        }
    }

    pub fn vocab_size(&self) -> i32 {
        self.pieces.len() as i32
    }

    pub fn piece(&self, id: i32) -> Option<&Piece> {
        self.pieces.get(usize::try_from(id).ok()?)?.as_ref()
    }
}

fn ordinary_size(tokenizer: &Tokenizer) -> i32 {
    let added = tokenizer.get_added_tokens_decoder();
    let vocab = tokenizer.get_vocab(false);
    let largest = vocab.values().filter(|id| !added.contains_key(id)).max();
    largest.map_or(0, |id| *id as i32 + 1)
}

fn pieces(tokenizer: &Tokenizer, decoder: &Decoder) -> Result<Vec<Option<Piece>>, String> {
    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    if size == 0 || size > MAX_VOCAB_SIZE {
        return Err(format!("its ids reach {size}, but 1 to {MAX_VOCAB_SIZE} are allowed"));
    }
    let mut pieces: Vec<Option<Piece>> = (0..size).map(|_| None).collect();
    let added = tokenizer.get_added_tokens_decoder();
    for (token, id) in vocab {
        let fallback = decoder.fallback_byte(&token);
        let bytes = fallback.map_or_else(|| decoder.bytes(&token, false), |byte| vec![byte]);
        let first = decoder.bytes(&token, true);
        pieces[id as usize] = Some(Piece {
            first: (fallback.is_none() && first != bytes).then(|| first.into()),
            bytes: bytes.into(),
            special: added.get(&id).is_some_and(|token| token.special),
            fallback: fallback.is_some(),
        });
    }
    Ok(pieces)
}

/// What a tokenizer's decoder does to each token, and to the start of the whole.
#[derive(Default)]
struct Decoder {
    replacements: Vec<[String; 3]>, // of what, by what, and by what in the first token
    byte_fallback: bool,
    byte_level: Option<HashMap<char, u8>>,
    fused: bool,
    leading_spaces: i32,
}

impl Decoder {
    fn read(&mut self, step: &Value) -> Result<(), String> {
        let kind = step["type"].as_str().unwrap_or("none at all");
        match kind {
            "Sequence" => {
                for inner in step["decoders"].as_array().into_iter().flatten() {
                    self.read(inner)?;
                }
            }
            "ByteLevel" => self.byte_level = Some(byte_level_chars()),
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => self.fused = true,
            "Replace" if step["pattern"]["String"].is_string() && !self.fused => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let content = text(&step["content"]);
                let pattern = text(&step["pattern"]["String"]);
                self.replacements.push([pattern, content.clone(), content]);
            }
            "Metaspace" => {
                let replacement = step["replacement"].as_str().unwrap_or("\u{2581}");
                let first = if step["prepend_scheme"] == "never" { " " } else { "" };
                self.replacements.push([replacement, " ", first].map(str::to_owned));
            }
            "Strip" if step["content"] == " " && step["stop"] == 0 && self.fused => {
                self.leading_spaces = step["start"].as_i64().unwrap_or(0).clamp(0, 16) as i32;
            }
            _ => {
                return Err(format!(
                    "its decoder has a step ({kind}) that Millrace does not know: text is \
                     generated with byte-level and SentencePiece tokenizers"
                ));
            }
        }
        Ok(())
    }

    fn fallback_byte(&self, token: &str) -> Option<u8> {
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        let is_byte = self.byte_fallback && digits.len() == 2;
        is_byte.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    }

    fn bytes(&self, token: &str, first: bool) -> Vec<u8> {
        let mut text = token.to_owned();
        for [pattern, content, of_first] in &self.replacements {
            text = text.replace(pattern, if first { of_first } else { content });
        }
        // A token with a character outside the alphabet was added as plain text.
        self.byte_level
            .as_ref()
            .and_then(|chars| text.chars().map(|c| chars.get(&c).copied()).collect())
            .unwrap_or_else(|| text.into_bytes())
    }
}

/// GPT-2's printable stand-ins for bytes: itself where printable, else from U+0100 on in order.
fn byte_level_chars() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut stand_ins = '\u{100}'..;
    (0..=255u8)
        .map(|byte| match printable(byte) {
            true => (char::from(byte), byte),
            false => (stand_ins.next().unwrap_or_default(), byte),
        })
        .collect()
}
