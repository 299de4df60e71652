//! What is held against a tokenizer.json before the library reads it: the library takes memory and
//! stack on the file's word, and neither can be given back by catching a panic.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

/// The library keeps Unigram's tokens as a trie, some 300 bytes for each byte of a token, and drops
/// it level by level. XLM-R's 250,000 tokens have 2 MB.
const MAX_TOKEN_BYTES: usize = 4096;
const MAX_UNIGRAM_BYTES: usize = 8 << 20;

#[derive(Deserialize)]
pub struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Value, // Unigram's is an array of pairs
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

impl TokenizerFile {
    pub fn read(json: &[u8]) -> Result<Self, String> {
        let file: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let pairs = file.model.vocab.as_array().into_iter().flatten();
        let (mut longest, mut total) = (0, 0);
        for size in pairs.filter_map(|pair| pair[0].as_str()).map(str::len) {
            longest = longest.max(size);
            total += size;
        }
        if longest > MAX_TOKEN_BYTES || total > MAX_UNIGRAM_BYTES {
            return Err(format!(
                "the tokens of its model have {total} bytes, the longest {longest}; at most \
                 {MAX_UNIGRAM_BYTES} and {MAX_TOKEN_BYTES} are accepted"
            ));
        }
        check_charsmaps(&file.normalizer)?;
        Ok(file)
    }

    /// The library numbers an added token that the model's vocabulary lacks by itself, whatever the
    /// file says: text would silently become other ids than the model was trained on.
    pub fn check_added_ids(&self, tokenizer: &Tokenizer) -> Result<(), String> {
        for token in &self.added_tokens {
            if tokenizer.token_to_id(&token.content) != Some(token.id) {
                return Err(format!(
                    "its added token {:?} cannot keep the id {}: another token or a gap is in the \
                     way",
                    token.content, token.id
                ));
            }
        }
        Ok(())
    }
}

/// A precompiled normalizer begins with the bytes of its trie, for which the library takes memory.
fn check_charsmaps(normalizer: &Value) -> Result<(), String> {
    for inner in normalizer["normalizers"].as_array().into_iter().flatten() {
        check_charsmaps(inner)?;
    }
    let Some(map) = normalizer["precompiled_charsmap"].as_str() else { return Ok(()) };
    let digit = |c: u8| match c {
        b'A'..=b'Z' => u64::from(c - b'A'),
        b'a'..=b'z' => u64::from(c - b'a') + 26,
        b'0'..=b'9' => u64::from(c - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    // Six base64 digits are 36 bits; the first 32 are the length, little-endian.
    let bits = map.bytes().take(6).fold(0, |bits, c| bits << 6 | digit(c));
    let trie_bytes = ((bits >> 4) as u32).swap_bytes() as usize;
    if trie_bytes > map.len() / 4 * 3 {
        return Err(format!(
            "its normalizer's precompiled_charsmap ends before its trie of {trie_bytes} bytes"
        ));
    }
    Ok(())
}
