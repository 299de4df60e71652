// ChatTemplate over the Rust library.
#include <fmt/format.h>

#include "engine/base/status.h"
#include "engine/text/rust_bytes.h"
#include "engine/text/text.h"

namespace millrace {

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
