// A whole .safetensors file. What is accepted lies inside the file, without overlap.
#include "engine/model/stored_model.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  const InputFile input(text_of(data, size));
  must_read_or_refuse([&] {
    const File file(input.path(), ExitCode::kModel);
    uint64_t bytes = 0;
    for (const auto& [name, tensor] : read_safetensors(file, 0)) {
      if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
      bytes += tensor.bytes;
    }
    if (bytes > size) std::abort();
  });
  return 0;
}
