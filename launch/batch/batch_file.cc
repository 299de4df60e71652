#include "launch/batch/batch_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/base/status.h"

namespace millrace {
namespace {

constexpr size_t kBuffer = 256 << 10;

[[noreturn]] void fail_input(const std::string& path, const std::string& why) {
  throw Error(ExitCode::kInput, "Cannot read the batch \"{}\": {}.", path, why);
}

// Standard input as a file that can be read again; it is gone when closed.
std::FILE* spool_standard_input() {
  std::FILE* copy = std::tmpfile();
  if (copy == nullptr) fail_input("-", std::strerror(errno));
  std::array<char, 65536> block;
  size_t size = 0;
  while ((size = std::fread(block.data(), 1, block.size(), stdin)) > 0)
    if (std::fwrite(block.data(), 1, size, copy) != size) fail_input("-", std::strerror(errno));
  if (std::ferror(stdin)) fail_input("-", std::strerror(errno));
  return copy;
}

}  // namespace

BatchInput::BatchInput(const std::string& path) : path_(path) {
  if (path == "-") {
    file_.reset(spool_standard_input());
    rewind();
    return;
  }
  file_.reset(std::fopen(path.c_str(), "re"));
  if (file_ == nullptr) fail_input(path, std::strerror(errno));
  struct stat info {};
  if (fstat(fileno(file_.get()), &info) != 0 || !S_ISREG(info.st_mode))
    fail_input(path, "it is not a regular file (use - for standard input)");
}

bool BatchInput::read_line(std::string& line, bool& too_long) {
  line.clear();
  too_long = false;
  int c = 0;
  while ((c = getc_unlocked(file_.get())) != EOF && c != '\n') {
    too_long = line.size() >= kMaxLine;
    if (!too_long) line += static_cast<char>(c);
  }
  if (std::ferror(file_.get())) fail_input(path_, std::strerror(errno));
  if (c == EOF && line.empty()) return false;
  ++line_number_;
  return true;
}

bool BatchInput::next(std::string& line, bool& too_long) {
  while (read_line(line, too_long))
    if (too_long || line.find_first_not_of(" \t\r") != std::string::npos) return true;
  return false;
}

void BatchInput::rewind() {
  std::rewind(file_.get());
  line_number_ = 0;
}

BatchOutput::BatchOutput(const std::string& path) : path_(path), partial_(path + ".partial") {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) fail("it is not a regular file");
  const int fd =
      open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd >= 0) file_.reset(fdopen(fd, "w"));
  if (file_ == nullptr) fail(std::strerror(errno));
  std::setvbuf(file_.get(), nullptr, _IOFBF, kBuffer);
}

void BatchOutput::fail(const std::string& what) const {
  throw Error(ExitCode::kInput, "Cannot write the results \"{}\": {}.", path_, what);
}

void BatchOutput::write_line(const std::string& line) {
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() ||
      std::fputc('\n', file_.get()) == EOF)
    fail(std::strerror(errno));
}

void BatchOutput::commit() {
  if (std::fflush(file_.get()) != 0 || fsync(fileno(file_.get())) != 0) fail(std::strerror(errno));
  file_.reset();
  if (std::rename(partial_.c_str(), path_.c_str()) != 0) fail(std::strerror(errno));
  // The name, too, is to survive a power cut.
  const std::string folder = std::filesystem::absolute(path_).parent_path().string();
  const int folder_fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd >= 0) {
    fsync(folder_fd);
    close(folder_fd);
  }
}

}  // namespace millrace
