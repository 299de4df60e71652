// An open file read by offset. pread, not mmap: a file that shrinks under us is an error with a
// name, not a SIGBUS. Thread-safe after opening.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "engine/base/status.h"

namespace millrace {

class File {
 public:
  // Throws Error(code) with the path and the system's reason; refuses what is not a regular file.
  File(const std::string& path, ExitCode exit_code);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  // Fills `out` from `offset`; throws Error naming the file when it ends too early.
  void read_at(uint64_t offset, std::span<uint8_t> out) const;

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
  ExitCode exit_code_;
};

// The whole of a file of at most `max_bytes`; throws Error(exit_code) when missing or larger.
std::string read_file(const std::string& path, uint64_t max_bytes, ExitCode exit_code);

}  // namespace millrace
