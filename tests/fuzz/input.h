// What the fuzz targets share. Each defines libFuzzer's entry point for one reader of model files;
// without clang, replay.cc calls it for stored inputs.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>

#include "engine/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace millrace {

// A file in memory, open under `path()` for as long as this lives: `bytes`, then `zeros`.
class InputFile {
 public:
  explicit InputFile(std::string_view bytes, size_t zeros = 0)
      : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    const auto size = static_cast<ssize_t>(bytes.size());
    if (fd_ < 0 || write(fd_, bytes.data(), bytes.size()) != size) std::abort();
    if (ftruncate(fd_, size + static_cast<ssize_t>(zeros)) != 0) std::abort();
  }
  ~InputFile() { close(fd_); }
  InputFile(const InputFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Runs `read`: a model file is read or refused by Error(kModel), on one line; all else is a find.
inline void must_read_or_refuse(const std::function<void()>& read) {
  try {
    read();
  } catch (const Error& error) {
    if (error.exit_code() != ExitCode::kModel || std::string_view(error.what()).empty()) abort();
  }
}

}  // namespace millrace
