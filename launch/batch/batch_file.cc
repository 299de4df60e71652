#include "launch/batch/batch_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "engine/base/status.h"

namespace millrace {
namespace {

constexpr size_t kBuffer = 256 << 10;

[[noreturn]] void fail_input(const std::string& path, const std::string& why) {
  throw Error(ExitCode::kInput, fmt::format("Cannot read the batch \"{}\": {}.", path, why));
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
  for (bool any = false;; any = true) {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = std::fread(block_.data(), 1, block_.size(), file_.get());
      if (std::ferror(file_.get())) fail_input(path_, std::strerror(errno));
      if (end_ == 0) {
        line_number_ += any;
        return any;
      }
    }
    const std::string_view rest(block_.data() + begin_, end_ - begin_);
    const size_t size = rest.find('\n');
    line += rest.substr(0, size);
    if (line.size() > kMaxLine) {
      line.resize(kMaxLine);
      too_long = true;
    }
    begin_ = size == std::string_view::npos ? end_ : begin_ + size + 1;
    if (size == std::string_view::npos) continue;
    ++line_number_;
    return true;
  }
}

bool BatchInput::next(std::string& line, bool& too_long) {
  while (read_line(line, too_long))
    if (too_long || line.find_first_not_of(" \t\r") != std::string::npos) return true;
  return false;
}

void BatchInput::rewind() {
  std::rewind(file_.get());
  begin_ = end_ = 0;
  line_number_ = 0;
}

BatchOutput::BatchOutput(const std::string& path) : path_(path), partial_(path + ".partial") {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) fail("it is not a regular file");
  fd_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(std::strerror(errno));
}

BatchOutput::~BatchOutput() {
  if (fd_ < 0) return;
  // After an error: what is answered is worth keeping, and there is nobody left to tell.
  [[maybe_unused]] const ssize_t ignored = write(fd_, buffer_.data(), buffer_.size());
  close(fd_);
}

void BatchOutput::fail(const std::string& what) const {
  throw Error(ExitCode::kInput, fmt::format("Cannot write the results \"{}\": {}.", path_, what));
}

void BatchOutput::write_line(const std::string& line) {
  buffer_ += line;
  buffer_ += '\n';
  if (buffer_.size() >= kBuffer) write_buffer();
}

void BatchOutput::write_buffer() {
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t size = write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) {
      const std::string why = std::strerror(errno);
      buffer_.clear();  // part of it may be written: the destructor must not write it twice
      fail(why);
    }
    done += static_cast<size_t>(size);
  }
  buffer_.clear();
}

void BatchOutput::commit() {
  write_buffer();
  if (fsync(fd_) != 0) fail(std::strerror(errno));
  close(std::exchange(fd_, -1));
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
