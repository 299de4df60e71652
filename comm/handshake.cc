#include "comm/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <bit>
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

struct Prefix {
  char magic[8] = {'M', 'I', 'L', 'L', 'R', 'A', 'C', 'E'};
  uint32_t version = kProtocolVersion;
};
static_assert(sizeof(Prefix) == kPrefixBytes);

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

// What the messages' bytes are.
struct ChallengeParts {
  Prefix prefix;
  Nonce nonce;
};
struct AnswerParts {
  Prefix prefix;
  int32_t rank;
  Nonce nonce;
  Mac mac;
};

}  // namespace

Nonce make_nonce() { return random_bytes(); }

bool prefix_fits(std::span<const uint8_t> received) {
  const Prefix expected;
  return std::memcmp(&expected, received.data(), std::min(sizeof expected, received.size())) == 0;
}

Challenge make_challenge(const Nonce& coordinator_nonce) {
  return std::bit_cast<Challenge>(ChallengeParts{Prefix(), coordinator_nonce});
}

bool read_challenge(const Challenge& challenge, Nonce* coordinator_nonce) {
  if (!prefix_fits(challenge)) return false;
  *coordinator_nonce = std::bit_cast<ChallengeParts>(challenge).nonce;
  return true;
}

Answer make_answer(const SessionKey& key, const Nonce& coordinator_nonce, const Nonce& worker_nonce,
    int32_t rank) {
  return std::bit_cast<Answer>(AnswerParts{
      Prefix(), rank, worker_nonce, sign(key, "worker", coordinator_nonce, worker_nonce, rank)});
}

bool read_answer(const SessionKey& key, const Nonce& coordinator_nonce, const Answer& answer,
    int32_t* rank, Nonce* worker_nonce) {
  if (!prefix_fits(answer)) return false;
  const auto parts = std::bit_cast<AnswerParts>(answer);
  const Mac due = sign(key, "worker", coordinator_nonce, parts.nonce, parts.rank);
  if (!equal(parts.mac, due)) return false;
  *rank = parts.rank;
  *worker_nonce = parts.nonce;
  return true;
}

Mac make_proof(const SessionKey& key, const Nonce& coordinator_nonce, const Nonce& worker_nonce,
    int32_t rank) {
  return sign(key, "coordinator", worker_nonce, coordinator_nonce, rank);
}

bool equal(const Mac& a, const Mac& b) { return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

}  // namespace handshake

}  // namespace millrace
