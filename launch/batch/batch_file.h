// The two files of a batch: the input, read line by line however large it is, and the output, which
// appears under its name only when it is complete. Main thread.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace millrace {

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
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  bool read_line(std::string& line, bool& too_long);

  std::string path_;
  std::unique_ptr<std::FILE, Closer> file_;
  int64_t line_number_ = 0;
  std::array<char, 65536> block_;
  size_t begin_ = 0;  // of what is not yet given out of block_
  size_t end_ = 0;
};

class BatchOutput {
 public:
  // Opens PATH.partial. Throws Error(kInput) when it cannot be, or when PATH is there and no file.
  explicit BatchOutput(const std::string& path);
  // Leaves PATH.partial behind when commit() was not reached.
  ~BatchOutput();
  BatchOutput(const BatchOutput&) = delete;

  void write_line(const std::string& line);
  // On disk, then under its name.
  void commit();
  const std::string& partial_path() const { return partial_; }

 private:
  void write_buffer();
  [[noreturn]] void fail(const std::string& what) const;

  std::string path_;
  std::string partial_;
  int fd_ = -1;
  std::string buffer_;
};

}  // namespace millrace
