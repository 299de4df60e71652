// What the tests of this room share: a folder that cleans up, files written whole, the committed
// models, and the message of an expected Error.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "engine/base/bytes.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace millrace {

class TempDir {
 public:
  TempDir() {
    // In memory where that can be: these tests write tens of thousands of small files.
    const std::filesystem::path memory = "/dev/shm";
    const auto base =
        std::filesystem::exists(memory) ? memory : std::filesystem::temp_directory_path();
    std::string name = (base / "millrace-model-XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string_view as_text(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline std::string read_all(const std::string& path) {
  return read_file(path, 1 << 30, ExitCode::kInput);
}

// A safetensors file: length, header, data.
inline std::string safetensors_bytes(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes += header;
  bytes.append(data_bytes, '\x3c');
  return bytes;
}

// The message of the Error(kModel) that `body` must throw; "" with a failure otherwise.
inline std::string model_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kModel) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

inline void expect_model_error(const std::function<void()>& body, std::string_view part) {
  const std::string message = model_error(body);
  EXPECT_NE(message.find(part), std::string::npos) << "'" << message << "' lacks '" << part << "'";
}

}  // namespace millrace
