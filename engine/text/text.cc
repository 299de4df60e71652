// Tokenizer and ChatTemplate over the Rust library: encoding is the library's, decoding is a
// stream's whole text. Detokenizer gives out the bytes of one stream's ids as soon as their
// characters are complete.
#include "engine/text/text.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "engine/base/status.h"
#include "engine/text/rust/millrace_text.h"

namespace millrace {

namespace {

// Bytes the Rust library filled.
class RustBuffer {
 public:
  RustBuffer() = default;
  ~RustBuffer() { mr_buffer_free(buffer_); }
  RustBuffer(const RustBuffer&) = delete;

  mr_buffer* out() { return &buffer_; }  // to be filled once
  std::string_view view() const {
    return {reinterpret_cast<const char*>(buffer_.data), buffer_.size};
  }
  std::string text() const { return std::string(view()); }

 private:
  mr_buffer buffer_{};
};

mr_bytes rust_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

std::string_view view(const mr_bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data), bytes.size};
}

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
  Detokenizer stream(shared_from_this(), {}, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    piece(id);
    text += stream.push(id);
  }
  return text + stream.finish();
}

std::string Tokenizer::token_bytes(int32_t id) const { return std::string(view(piece(id).bytes)); }

mr_piece Tokenizer::piece(int32_t id) const {
  mr_piece piece{};
  if (!mr_tokenizer_piece(handle_.get(), id, &piece)) {
    throw RequestError(ErrorCode::kInvalidArgument,
        fmt::format("Token id {} is not in the vocabulary (0 to {}).", id, vocab_size() - 1));
  }
  return piece;
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
  if (!fallback_.empty()) strip(take_utf8(fallback_, /*last=*/false));
}

std::string Detokenizer::push(int32_t id) {
  mr_piece piece{};
  if (!mr_tokenizer_piece(tokenizer_->handle_.get(), id, &piece)) return {};
  if (piece.special && skip_special_) return {};
  const std::string_view bytes = view(is_first_ ? piece.first : piece.bytes);
  is_first_ = false;
  if (piece.fallback) {
    fallback_ += bytes;
    return {};
  }
  std::string text = take_fallback();
  pending_ += bytes;
  return strip(text + take_utf8(pending_, /*last=*/false));
}

std::string Detokenizer::finish() {
  std::string text = take_fallback();
  return strip(text + take_utf8(pending_, /*last=*/true));
}

// As the Python library: a run of such bytes is text, or each byte of it is invalid.
std::string Detokenizer::take_fallback() {
  const std::string run = std::exchange(fallback_, {});
  std::string rest = run;
  std::string text = take_utf8(rest, /*last=*/true);
  if (text == run) return text;
  text.clear();
  for (size_t i = 0; i < run.size(); ++i) text += kReplacement;
  return text;
}

std::string Detokenizer::strip(std::string text) {
  size_t spaces = 0;
  while (leading_spaces_ > 0 && spaces < text.size()) {
    if (text[spaces] != ' ') {
      leading_spaces_ = 0;
    } else {
      ++spaces;
      --leading_spaces_;
    }
  }
  return text.substr(spaces);
}

ChatTemplate::ChatTemplate(mr_template* handle) : handle_(handle, mr_template_free) {}

std::shared_ptr<const ChatTemplate> ChatTemplate::parse(
    std::string_view source, std::string_view bos_token, std::string_view eos_token) {
  mr_template* handle = nullptr;
  RustBuffer error;
  if (!mr_template_new(
          rust_bytes(source), rust_bytes(bos_token), rust_bytes(eos_token), &handle, error.out())) {
    throw Error(ExitCode::kModel,
        "The model's chat template cannot be used: {}. Give another one with --chat-template, or "
        "fetch the model again.",
        error.view());
  }
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(handle));
}

std::string ChatTemplate::render(
    std::string_view messages_json, std::string_view extra_json, bool add_generation_prompt) const {
  RustBuffer text, error;
  if (!mr_template_render(handle_.get(), rust_bytes(messages_json), rust_bytes(extra_json),
          add_generation_prompt, text.out(), error.out())) {
    throw RequestError(ErrorCode::kInvalidArgument, error.text(), "messages");
  }
  return text.text();
}

}  // namespace millrace
