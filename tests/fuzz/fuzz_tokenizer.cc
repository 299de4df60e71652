// tokenizer.json. One that is accepted encodes and decodes without a way out of its tables.
#include "engine/text/text.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  must_read_or_refuse([&] {
    const auto tokenizer = Tokenizer::from_json(text_of(data, size));
    const int32_t size_of_vocab = tokenizer->vocab_size();
    if (size_of_vocab < 1 || tokenizer->ordinary_size() > size_of_vocab) std::abort();
    try {
      const auto ids = tokenizer->encode("Hi  \xc3\xa9t\xc3\xa9 \xf0\x9f\x90\xa6 12345\n", true);
      for (const int32_t id : ids) {
        if (id < 0 || id >= size_of_vocab) std::abort();
      }
      tokenizer->decode(ids, /*skip_special=*/false);
    } catch (const RequestError&) {
    }
  });
  return 0;
}
