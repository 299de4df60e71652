// config.json, and behind a NUL byte generation_config.json. What is accepted is in range, and its
// list of tensors can be made.
#include "engine/model/config.h"
#include "engine/model/families.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  const std::string_view input = text_of(data, size);
  const size_t cut = input.find('\0');
  const std::string_view generation = cut == input.npos ? "" : input.substr(cut + 1);
  must_read_or_refuse([&] {
    const ModelConfig config = parse_hf_config(input.substr(0, cut), generation, "fuzz");
    if (config.num_layers < 1 || config.num_layers > ConfigLimits::kLayers) std::abort();
    if (config.num_heads % config.num_kv_heads != 0) std::abort();
    for (const int32_t id : config.eos_token_ids) {
      if (id < 0 || id >= config.vocab_size) std::abort();
    }
    if (expected_tensors(config).empty()) std::abort();
  });
  return 0;
}
