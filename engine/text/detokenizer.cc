// Detokenizer: the bytes of one stream's ids, given out as soon as their characters are complete.
// One stream, one thread at a time.
#include "engine/text/rust_bytes.h"
#include "engine/text/text.h"

namespace millrace {

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
