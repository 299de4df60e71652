#include "launch/gateway/keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <boost/beast/core/string.hpp>

#include "engine/base/file.h"

namespace millrace {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxKeyBytes = 512;
constexpr std::string_view kScheme = "Bearer ";
constexpr std::string_view kBlank = " \t\r";

}  // namespace

KeyRing::KeyRing(const std::string& key, const std::string& path) {
  if (!key.empty()) add(key, "--api-key");
  if (path.empty()) return;
  const std::string text = read_file(path, kMaxFileBytes, ExitCode::kInput);
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++number;
    line.remove_prefix(std::min(line.find_first_not_of(kBlank), line.size()));
    line = line.substr(0, line.find_last_not_of(kBlank) + 1);
    if (!line.empty() && line.front() != '#') add(line, fmt::format("'{}' line {}", path, number));
  }
  // An empty file must not mean that everybody may ask.
  if (empty()) throw Error(ExitCode::kInput, "'{}' has no API key: write one a line", path);
}

KeyRing::Digest KeyRing::digest(std::string_view key) {
  Digest digest;
  SHA256(reinterpret_cast<const uint8_t*>(key.data()), key.size(), digest.data());
  return digest;
}

void KeyRing::add(std::string_view key, const std::string& where) {
  if (key.size() > kMaxKeyBytes ||
      !std::ranges::all_of(key, [](char c) { return c > ' ' && c <= '~'; }))
    throw Error(ExitCode::kInput,
        "{}: an API key has 1 to {} printable ASCII characters and no blank among them", where,
        kMaxKeyBytes);
  digests_.push_back(digest(key));
}

std::optional<size_t> KeyRing::find(std::string_view authorization) const {
  if (!boost::beast::iequals(authorization.substr(0, kScheme.size()), kScheme)) return std::nullopt;
  const Digest asked = digest(authorization.substr(kScheme.size()));
  std::optional<size_t> found;
  for (size_t i = 0; i < digests_.size(); ++i)
    if (CRYPTO_memcmp(asked.data(), digests_[i].data(), asked.size()) == 0) found = i;
  return found;
}

}  // namespace millrace
