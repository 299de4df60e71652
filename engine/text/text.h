// Text in, token ids out, and back: tokenizer, incremental detokenizer and chat template over the
// Rust library in rust/. Everything here is const after construction and safe from any thread,
// except Detokenizer, which belongs to one stream.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct mr_piece;
struct mr_template;
struct mr_tokenizer;

namespace millrace {

// A Hugging Face tokenizer (tokenizer.json).
class Tokenizer : public std::enable_shared_from_this<Tokenizer> {
 public:
  // `json`: the bytes of tokenizer.json (GGUF models make one, engine/model/gguf_tokenizer.cc).
  // Throws Error(kModel) saying what is wrong with it.
  static std::shared_ptr<const Tokenizer> from_json(std::string_view json);

  // Ids of `text` (UTF-8). With `add_special` the tokenizer's own post-processor adds BOS/EOS.
  // Throws RequestError(kInvalidArgument) when the text is not UTF-8 or the tokenizer refuses it.
  std::vector<int32_t> encode(std::string_view text, bool add_special) const;
  // The text of ids as the Python library decodes it, invalid UTF-8 as U+FFFD. Unknown ids throw
  // RequestError.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;
  // The raw bytes one id stands for (may be part of a UTF-8 character). For logprobs' `bytes`.
  std::string token_bytes(int32_t id) const;
  // Number of ids, added tokens included: ids are in [0, vocab_size).
  int32_t vocab_size() const;
  // The same without the added tokens.
  int32_t ordinary_size() const;

 private:
  friend class Detokenizer;
  explicit Tokenizer(mr_tokenizer* handle);
  mr_piece piece(int32_t id) const;  // throws RequestError when there is no such id

  std::unique_ptr<mr_tokenizer, void (*)(mr_tokenizer*)> handle_;
};

// Incremental detokenizing of one stream: the concatenation of all pushes and finish() equals
// decode() of all ids, and no push ever returns part of a UTF-8 character. A push costs the bytes
// of its token and of what it ends, however long the stream is.
class Detokenizer {
 public:
  // `prompt_tail`: the last prompt ids (up to ~8), so that the first token's leading space is
  // rendered as in the whole text.
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, std::span<const int32_t> prompt_tail,
      bool skip_special);
  // The text that became certain with `id`; often one word, sometimes empty. An id the tokenizer
  // does not know (models pad their vocabulary) adds nothing.
  std::string push(int32_t id);
  // What is left at the end of the stream (an unfinished character becomes U+FFFD).
  std::string finish();

 private:
  std::string take_fallback();
  std::string strip(std::string text);  // without the spaces that are still to be taken off

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string pending_;     // bytes of a character that is not complete yet
  std::string fallback_;    // a run of SentencePiece's byte tokens: what it is, its end decides
  int32_t leading_spaces_;  // spaces still to be taken off the start of the whole text
  bool is_first_ = true;    // no token came yet that is not skipped
  bool skip_special_;
};

// A model's chat template (Jinja, as transformers renders it: trim_blocks, lstrip_blocks, loop
// controls, Python string and dict methods, raise_exception, strftime_now, tojson).
class ChatTemplate {
 public:
  // Throws Error(kModel) when the template does not parse. `bos_token`, `eos_token`: their text.
  static std::shared_ptr<const ChatTemplate> parse(
      std::string_view source, std::string_view bos_token, std::string_view eos_token);

  // `messages_json`: a JSON array of message objects; `extra_json`: a JSON object of further
  // variables (tools, documents, template kwargs), or "{}". Bounded in fuel, recursion and output.
  // Throws RequestError(kInvalidArgument, param "messages") with the template's own message.
  std::string render(std::string_view messages_json, std::string_view extra_json,
      bool add_generation_prompt) const;

 private:
  explicit ChatTemplate(mr_template* handle);
  std::unique_ptr<mr_template, void (*)(mr_template*)> handle_;
};

}  // namespace millrace
