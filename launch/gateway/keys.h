// Who may ask: the server's API keys. Const after construction; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

// Holds SHA-256 digests, not keys: every one is compared whatever matched before, and how long that
// takes tells of digests alone, which nobody can steer.
class KeyRing {
 public:
  // `key`: one, or "". `path`: a file with one key a line, or "": blank lines and those that begin
  // with # are passed over. Throws Error(kInput) naming the file and line, never the key.
  KeyRing(const std::string& key, const std::string& path);

  // No keys: everybody may ask.
  bool empty() const { return digests_.empty(); }
  size_t size() const { return digests_.size(); }
  // The number of the key in a field "Bearer KEY"; nothing when there is none of ours.
  std::optional<size_t> find(std::string_view authorization) const;

 private:
  using Digest = std::array<uint8_t, 32>;
  static Digest digest(std::string_view key);
  void add(std::string_view key, const std::string& where);

  std::vector<Digest> digests_;
};

}  // namespace millrace
