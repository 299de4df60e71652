// Tokenizer over the Rust library: encoding is the library's, decoding joins the bytes of ids.
// Detokenizer gives out the bytes of one stream's ids as soon as their characters are complete.
#include <fmt/format.h>

#include <cstring>

#include "engine/base/status.h"
#include "engine/text/rust_bytes.h"
#include "engine/text/text.h"

namespace millrace {

namespace {

// The part of `bytes` that is certain, as UTF-8 with U+FFFD for what is invalid; it is taken out
// of `bytes`. Unless `last`, the start of an unfinished character stays there.
std::string take_utf8(std::string& bytes, bool last) {
  RustBuffer text;
  const size_t taken = mr_utf8_lossy(rust_bytes(bytes), last, text.out());
  bytes.erase(0, taken);
  return text.text();
}

}  // namespace

Tokenizer::Tokenizer(mr_tokenizer* handle) : handle_(handle, mr_tokenizer_free) {}

bool Tokenizer::append(
    int32_t id, bool skip_special, int32_t& leading_spaces, std::string& bytes) const {
  mr_bytes rest{};
  bool special = false;
  if (!mr_tokenizer_piece(handle_.get(), id, &rest, &special)) return false;
  if (special && skip_special) return true;
  std::string_view piece(reinterpret_cast<const char*>(rest.data), rest.size);
  while (leading_spaces > 0 && piece.starts_with(' ')) {
    piece.remove_prefix(1);
    --leading_spaces;
  }
  if (!piece.empty()) leading_spaces = 0;
  bytes += piece;
  return true;
}

std::shared_ptr<const Tokenizer> Tokenizer::from_json(std::string_view json) {
  mr_tokenizer* handle = nullptr;
  RustBuffer error;
  if (!mr_tokenizer_new(rust_bytes(json), &handle, error.out())) {
    throw Error(ExitCode::kModel,
        "The model's tokenizer cannot be used: {}. Fetch the model's tokenizer.json (or GGUF file) "
        "again, or convert it anew.",
        error.view());
  }
  return std::shared_ptr<const Tokenizer>(new Tokenizer(handle));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  RustBuffer ids, error;
  if (!mr_tokenizer_encode(handle_.get(), rust_bytes(text), add_special, ids.out(), error.out())) {
    throw RequestError(ErrorCode::kInvalidArgument,
        fmt::format("The text cannot be tokenized: {}.", error.view()));
  }
  std::vector<int32_t> result(ids.view().size() / sizeof(int32_t));
  if (!result.empty()) std::memcpy(result.data(), ids.view().data(), ids.view().size());
  return result;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  int32_t leading_spaces = mr_tokenizer_leading_spaces(handle_.get());
  for (const int32_t id : ids) {
    if (!append(id, skip_special, leading_spaces, bytes)) {
      throw RequestError(ErrorCode::kInvalidArgument,
          fmt::format("Token id {} is not in the vocabulary (0 to {}).", id, vocab_size() - 1));
    }
  }
  return take_utf8(bytes, /*last=*/true);
}

std::string Tokenizer::token_bytes(int32_t id) const {
  std::string bytes;
  int32_t leading_spaces = 0;
  if (!append(id, /*skip_special=*/false, leading_spaces, bytes)) {
    throw RequestError(ErrorCode::kInvalidArgument,
        fmt::format("Token id {} is not in the vocabulary (0 to {}).", id, vocab_size() - 1));
  }
  return bytes;
}

int32_t Tokenizer::vocab_size() const { return mr_tokenizer_vocab_size(handle_.get()); }

int32_t Tokenizer::ordinary_size() const { return mr_tokenizer_ordinary_size(handle_.get()); }

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer,
    std::span<const int32_t> prompt_tail, bool skip_special)
    : tokenizer_(std::move(tokenizer)),
      leading_spaces_(mr_tokenizer_leading_spaces(tokenizer_->handle_.get())),
      skip_special_(skip_special) {
  // The prompt's text is not the stream's, but a character it began is.
  for (const int32_t id : prompt_tail) push(id);
}

std::string Detokenizer::push(int32_t id) {
  tokenizer_->append(id, skip_special_, leading_spaces_, pending_);
  return take_utf8(pending_, /*last=*/false);
}

std::string Detokenizer::finish() { return take_utf8(pending_, /*last=*/true); }

}  // namespace millrace
