#include "engine/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace millrace {

File::File(const std::string& path, ExitCode exit_code) : path_(path), exit_code_(exit_code) {
  // O_NONBLOCK: a pipe under that name is refused below instead of waited for.
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) {
    throw Error(exit_code, "cannot open '{}': {}", path, std::strerror(errno));
  }
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    throw Error(exit_code, "'{}' is not a regular file", path);
  }
  size_ = static_cast<uint64_t>(info.st_size);
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      exit_code_(other.exit_code_) {}

void File::read_at(uint64_t offset, std::span<uint8_t> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw Error(exit_code_, "cannot read '{}': {}", path_, std::strerror(errno));
    }
    if (got == 0) {
      throw Error(exit_code_,
          "'{}' ends at byte {}, {} bytes too early: the file is torn; copy or download it again",
          path_, offset, out.size());
    }
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
}

std::string read_file(const std::string& path, uint64_t max_bytes, ExitCode exit_code) {
  const File file(path, exit_code);
  if (file.size() > max_bytes) {
    throw Error(exit_code, "'{}' has {} bytes; at most {} are accepted for such a file", path,
        file.size(), max_bytes);
  }
  std::string text(file.size(), '\0');
  file.read_at(0, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
  return text;
}

}  // namespace millrace
