// The head of a GGUF file, with room for its tensors behind it: its config, its vocabulary, and the
// tokenizer made of it.
#include "engine/model/checkpoint.h"
#include "engine/model/gguf.h"
#include "engine/text/text.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  constexpr size_t kRoom = 64 << 10;
  const InputFile input(text_of(data, size), kRoom);
  must_read_or_refuse([&] {
    for (const auto& [name, tensor] : read_gguf(input.path()).tensors) {
      if (!tensor.readable) continue;
      if (tensor.offset > size + kRoom || tensor.bytes > size + kRoom - tensor.offset) std::abort();
    }
    const auto model = open_checkpoint(input.path());
    if (!model->tokenizer_json().empty()) Tokenizer::from_json(model->tokenizer_json());
  });
  return 0;
}
