// For tests/blackbox/test_safetensors_crate.py: reads .safetensors files from standard input, each
// behind its length (8 bytes, little-endian), and answers each with a line: "ok" or the refusal.
#include <cstdio>

#include "engine/base/one_line.h"
#include "engine/model/stored_model.h"
#include "tests/fuzz/input.h"

int main() {
  uint64_t size = 0;
  while (std::fread(&size, sizeof(size), 1, stdin) == 1) {
    std::string bytes(size, '\0');
    if (std::fread(bytes.data(), 1, size, stdin) != size) return 1;
    const millrace::InputFile input(bytes);
    try {
      read_safetensors(millrace::File(input.path(), millrace::ExitCode::kModel), 0);
      std::puts("ok");
    } catch (const millrace::Error& error) {
      std::puts(millrace::one_line(error.what()).c_str());
    }
  }
  return 0;
}
