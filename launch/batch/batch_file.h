// The two files of a batch: the input, read line by line however large it is, and the output, which
// appears under its name only when it is complete. Main thread.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

namespace millrace {

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FileHandle = std::unique_ptr<std::FILE, FileCloser>;

class BatchInput {
 public:
  static constexpr size_t kMaxLine = 32 << 20;  // as the gateway's bodies

  // "-": standard input, which is copied to a nameless file first, to be read twice. Throws
  // Error(kInput).
  explicit BatchInput(const std::string& path);

  // The next line that is not blank, without its end; false after the last one. Of a line longer
  // than kMaxLine only the beginning is given, with `too_long`.
  bool next(std::string& line, bool& too_long);
  int64_t line_number() const { return line_number_; }  // of the last one, from 1
  void rewind();

 private:
  bool read_line(std::string& line, bool& too_long);

  std::string path_;
  FileHandle file_;
  int64_t line_number_ = 0;
};

class BatchOutput {
 public:
  // Opens PATH.partial, which is left behind, with what was written, when commit() is not reached.
  // Throws Error(kInput) when it cannot be, or when PATH is there and no file.
  explicit BatchOutput(const std::string& path);
  void write_line(const std::string& line);
  // On disk, then under its name.
  void commit();
  const std::string& partial_path() const { return partial_; }

 private:
  [[noreturn]] void fail(const std::string& what) const;

  std::string path_;
  std::string partial_;
  FileHandle file_;
};

}  // namespace millrace
