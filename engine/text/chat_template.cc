// ChatTemplate over the Rust library.
#include <fmt/format.h>

#include "engine/base/status.h"
#include "engine/text/tokenizer_impl.h"

namespace millrace {

struct ChatTemplate::Impl {
  mr_template* handle = nullptr;

  ~Impl() {
    if (handle != nullptr) mr_template_free(handle);
  }
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

std::shared_ptr<const ChatTemplate> ChatTemplate::parse(
    std::string_view source, std::string_view bos_token, std::string_view eos_token) {
  auto impl = std::make_unique<Impl>();
  RustBuffer error;
  if (!mr_template_new(rust_bytes(source), source.size(), rust_bytes(bos_token), bos_token.size(),
          rust_bytes(eos_token), eos_token.size(), &impl->handle, error.out())) {
    throw Error(ExitCode::kModel,
        "The model's chat template cannot be used: {}. Give another one with --chat-template, or "
        "fetch the model again.",
        error.view());
  }
  return std::shared_ptr<const ChatTemplate>(new ChatTemplate(std::move(impl)));
}

std::string ChatTemplate::render(
    std::string_view messages_json, std::string_view extra_json, bool add_generation_prompt) const {
  RustBuffer text, error;
  if (!mr_template_render(impl_->handle, rust_bytes(messages_json), messages_json.size(),
          rust_bytes(extra_json), extra_json.size(), add_generation_prompt, text.out(),
          error.out())) {
    throw RequestError(ErrorCode::kInvalidArgument, error.text(), "messages");
  }
  return text.text();
}

}  // namespace millrace
