//! The C interface of engine/text (millrace_text.h): tokenizers and chat templates. An exported
//! function that runs code of a library catches its panics; the others only read tables. Handles
//! are immutable and may be used from any thread.
#![deny(clippy::all)]

mod python;
mod template;
mod tokenizer;
mod tokenizer_file;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Once;

use template::ChatTemplate;
use tokenizer::TextTokenizer;

/// Bytes handed to C: a boxed slice taken apart. Empty is a null pointer.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Buffer { data: null_mut(), size: 0 };
        }
        let slice = Box::leak(bytes.into_boxed_slice());
        Buffer { data: slice.as_mut_ptr(), size: slice.len() }
    }
}

/// Bytes lent by C, or to it.
#[repr(C)]
pub struct Bytes {
    data: *const u8,
    size: usize,
}

impl Bytes {
    /// # Safety
    /// `data` must point to `size` bytes that stay as they are during the call (null when empty).
    unsafe fn get<'a>(self) -> &'a [u8] {
        if self.size == 0 {
            return &[];
        }
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }

    fn lend(bytes: &[u8]) -> Self {
        Bytes { data: bytes.as_ptr(), size: bytes.len() }
    }
}

/// `tokenizer::Piece`, lent to C.
#[repr(C)]
pub struct PieceView {
    bytes: Bytes,
    first: Bytes,
    special: bool,
    fallback: bool,
}

fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, String> {
    std::str::from_utf8(bytes)
        .map_err(|e| format!("the {what} is not UTF-8 (byte {})", e.valid_up_to()))
}

/// Runs `body`; a panic becomes an error. Its message is not printed: it could hold a prompt.
fn guarded<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("of an unknown kind");
        Err(format!("the text library panicked: {message}"))
    })
}

/// Writes the value to `out`, or the message to `error`; true when there was a value.
///
/// # Safety
/// `out` and `error` must be valid for writes.
unsafe fn finish<T>(result: Result<T, String>, out: *mut T, error: *mut Buffer) -> bool {
    match result {
        Ok(value) => unsafe { out.write(value) },
        Err(message) => {
            // A broken tokenizer.json can make the library cut a character in two.
            let message = String::from_utf8_lossy(message.as_bytes()).into_owned();
            unsafe { error.write(message.into_bytes().into()) };
            return false;
        }
    }
    true
}

/// # Safety
/// `buffer` must come from this library and not have been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_buffer_free(buffer: Buffer) {
    if !buffer.data.is_null() {
        let slice = std::ptr::slice_from_raw_parts_mut(buffer.data, buffer.size);
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// Drops a handle that was handed to C.
///
/// # Safety
/// `handle` must come from `Box::into_raw`, and nothing may use it any more.
unsafe fn free<T>(handle: *mut T) {
    let handle = unsafe { Box::from_raw(handle) };
    let _ = guarded(move || {
        drop(handle);
        Ok(())
    });
}

/// # Safety
/// See millrace_text.h; this holds for all functions below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_new(
    json: Bytes,
    tokenizer: *mut *mut TextTokenizer,
    error: *mut Buffer,
) -> bool {
    let json = unsafe { json.get() };
    let result = guarded(|| Ok(Box::into_raw(Box::new(TextTokenizer::from_json(json)?))));
    unsafe { finish(result, tokenizer, error) }
}

/// # Safety
/// `tokenizer` must come from `mr_tokenizer_new`, and nothing may use it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_free(tokenizer: *mut TextTokenizer) {
    unsafe { free(tokenizer) }
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_encode(
    tokenizer: *const TextTokenizer,
    input: Bytes,
    add_special: bool,
    ids: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let (tokenizer, input) = unsafe { (&*tokenizer, input.get()) };
    let result = guarded(|| {
        let ids = tokenizer.encode(text(input, "text")?, add_special)?;
        Ok(ids.iter().flat_map(|id| id.to_ne_bytes()).collect::<Vec<u8>>().into())
    });
    unsafe { finish(result, ids, error) }
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_vocab_size(tokenizer: *const TextTokenizer) -> i32 {
    unsafe { &*tokenizer }.vocab_size()
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_ordinary_size(tokenizer: *const TextTokenizer) -> i32 {
    unsafe { &*tokenizer }.ordinary_size
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_leading_spaces(tokenizer: *const TextTokenizer) -> i32 {
    unsafe { &*tokenizer }.leading_spaces
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_tokenizer_piece(
    tokenizer: *const TextTokenizer,
    id: i32,
    out: *mut PieceView,
) -> bool {
    let Some(piece) = unsafe { &*tokenizer }.piece(id) else {
        return false;
    };
    let first = piece.first.as_ref().unwrap_or(&piece.bytes);
    let view = PieceView {
        bytes: Bytes::lend(&piece.bytes),
        first: Bytes::lend(first),
        special: piece.special,
        fallback: piece.fallback,
    };
    unsafe { out.write(view) };
    true
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_utf8_lossy(bytes: Bytes, last: bool, out: *mut Buffer) -> usize {
    let bytes = unsafe { bytes.get() };
    let mut valid = String::with_capacity(bytes.len());
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        valid.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = taken + invalid.len() == bytes.len();
        let unfinished = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
        if invalid.is_empty() || (at_end && unfinished && !last) {
            break;
        }
        valid.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    unsafe { out.write(valid.into_bytes().into()) };
    taken
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_template_new(
    source: Bytes,
    bos: Bytes,
    eos: Bytes,
    template: *mut *mut ChatTemplate,
    error: *mut Buffer,
) -> bool {
    let (source, bos, eos) = unsafe { (source.get(), bos.get(), eos.get()) };
    let result = guarded(|| {
        let source = text(source, "chat template")?;
        let parsed = ChatTemplate::parse(source, text(bos, "BOS token")?, text(eos, "EOS token")?)?;
        Ok(Box::into_raw(Box::new(parsed)))
    });
    unsafe { finish(result, template, error) }
}

/// # Safety
/// `template` must come from `mr_template_new`, and nothing may use it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_template_free(template: *mut ChatTemplate) {
    unsafe { free(template) }
}

/// # Safety
/// See millrace_text.h.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mr_template_render(
    template: *const ChatTemplate,
    messages: Bytes,
    extra: Bytes,
    add_generation_prompt: bool,
    out: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    let (template, messages, extra) = unsafe { (&*template, messages.get(), extra.get()) };
    let result = guarded(|| Ok(template.render(messages, extra, add_generation_prompt)?.into()));
    unsafe { finish(result, out, error) }
}
