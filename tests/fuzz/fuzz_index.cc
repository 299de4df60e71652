// model.safetensors.index.json, in a folder whose config and two shards are sound.
#include <fstream>

#include "engine/model/stored_model.h"
#include "tests/engine/model/files.h"
#include "tests/fuzz/input.h"

namespace millrace {
namespace {

// The tiny model's folder; its index is written anew for each input.
std::string folder_with(std::string_view index) {
  static const TempDir dir;
  const std::string folder = dir / "model";
  if (!std::filesystem::exists(folder)) {
    std::filesystem::copy("tests/data/tiny-llama-tied", folder);
    std::filesystem::remove(folder + "/tokenizer.json");
  }
  write_file(folder + "/model.safetensors.index.json", index);
  return folder;
}

}  // namespace
}  // namespace millrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  const std::string folder = folder_with(text_of(data, size));
  must_read_or_refuse([&] {
    if (read_folder(folder).files.size() != 2) std::abort();
  });
  return 0;
}
