#include "comm/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/protocol/messages.h"

namespace millrace {

namespace {

std::array<uint8_t, 32> random_bytes() {
  std::array<uint8_t, 32> bytes;
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) {
    throw Error(ExitCode::kFailure, "the system has no random bytes for a session key");
  }
  return bytes;
}

}  // namespace

SessionKey make_session_key() { return random_bytes(); }

namespace handshake {

namespace {

constexpr std::string_view kMagic = "MILLRACE";

std::array<uint8_t, kPrefixBytes> prefix() {
  std::array<uint8_t, kPrefixBytes> bytes;
  static_assert(kMagic.size() + sizeof(kProtocolVersion) == kPrefixBytes);
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  std::memcpy(bytes.data() + kMagic.size(), &kProtocolVersion, sizeof(kProtocolVersion));
  return bytes;
}

Mac sign(const SessionKey& key, std::string_view label, const Nonce& first, const Nonce& second,
    int32_t rank) {
  ByteWriter message;  // its parts are told apart by the label's length, fixed per label
  for (const char c : label) message.put(c);
  for (const uint8_t byte : first) message.put(byte);
  for (const uint8_t byte : second) message.put(byte);
  message.put(rank);
  const Bytes bytes = message.take();
  Mac mac;
  unsigned int length = 0;
  const uint8_t* done = HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), bytes.data(),
      bytes.size(), mac.data(), &length);
  CHECK(done != nullptr && length == mac.size(), "HMAC-SHA256 failed");
  return mac;
}

template <size_t N, size_t M>
void copy_to(std::array<uint8_t, N>& to, size_t offset, const std::array<uint8_t, M>& from) {
  CHECK(offset + M <= N);
  std::memcpy(to.data() + offset, from.data(), M);
}

template <size_t M>
std::array<uint8_t, M> cut(std::span<const uint8_t> from, size_t offset) {
  CHECK(offset + M <= from.size());
  std::array<uint8_t, M> out;
  std::memcpy(out.data(), from.data() + offset, M);
  return out;
}

constexpr size_t kRankAt = kPrefixBytes;
constexpr size_t kNonceAt = kRankAt + sizeof(int32_t);
constexpr size_t kMacAt = kNonceAt + sizeof(Nonce);
static_assert(kMacAt + sizeof(Mac) == kAnswerBytes);

}  // namespace

Nonce make_nonce() { return random_bytes(); }

bool prefix_fits(std::span<const uint8_t> received) {
  const auto expected = prefix();
  return std::equal(expected.begin(),
      expected.begin() + static_cast<ptrdiff_t>(std::min(expected.size(), received.size())),
      received.begin());
}

Challenge make_challenge(const Nonce& coordinator_nonce) {
  Challenge challenge;
  copy_to(challenge, 0, prefix());
  copy_to(challenge, kPrefixBytes, coordinator_nonce);
  return challenge;
}

bool read_challenge(const Challenge& challenge, Nonce* coordinator_nonce) {
  if (!prefix_fits(challenge)) return false;
  *coordinator_nonce = cut<sizeof(Nonce)>(challenge, kPrefixBytes);
  return true;
}

Answer make_answer(const SessionKey& key, const Nonce& coordinator_nonce, const Nonce& worker_nonce,
    int32_t rank) {
  Answer answer;
  copy_to(answer, 0, prefix());
  std::memcpy(answer.data() + kRankAt, &rank, sizeof rank);
  copy_to(answer, kNonceAt, worker_nonce);
  copy_to(answer, kMacAt, sign(key, "worker", coordinator_nonce, worker_nonce, rank));
  return answer;
}

bool read_answer(const SessionKey& key, const Nonce& coordinator_nonce, const Answer& answer,
    int32_t* rank, Nonce* worker_nonce) {
  if (!prefix_fits(answer)) return false;
  int32_t claimed_rank;
  std::memcpy(&claimed_rank, answer.data() + kRankAt, sizeof claimed_rank);
  const Nonce nonce = cut<sizeof(Nonce)>(answer, kNonceAt);
  const Mac claimed = cut<sizeof(Mac)>(answer, kMacAt);
  if (!equal(claimed, sign(key, "worker", coordinator_nonce, nonce, claimed_rank))) return false;
  *rank = claimed_rank;
  *worker_nonce = nonce;
  return true;
}

Mac make_proof(const SessionKey& key, const Nonce& coordinator_nonce, const Nonce& worker_nonce,
    int32_t rank) {
  return sign(key, "coordinator", worker_nonce, coordinator_nonce, rank);
}

bool equal(const Mac& a, const Mac& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

}  // namespace handshake

}  // namespace millrace
