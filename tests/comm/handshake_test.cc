// The handshake's messages: only the right key, the right nonce and the right direction pass.
#include "comm/handshake.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace millrace::handshake {
namespace {

TEST(Handshake, KeysAndNoncesAreFresh) {
  EXPECT_NE(make_session_key(), make_session_key());
  EXPECT_NE(make_nonce(), make_nonce());
}

TEST(Handshake, ChallengeCarriesTheNonce) {
  const Nonce nonce = make_nonce();
  Challenge challenge = make_challenge(nonce);
  Nonce read{};
  EXPECT_TRUE(read_challenge(challenge, &read));
  EXPECT_EQ(read, nonce);
  for (size_t i = 0; i < kPrefixBytes; ++i) {
    Challenge other = challenge;
    other[i] ^= 1;
    EXPECT_FALSE(read_challenge(other, &read)) << "magic or version, byte " << i;
  }
}

TEST(Handshake, AnswerProvesTheKey) {
  const SessionKey key = make_session_key();
  const Nonce coordinator = make_nonce(), worker = make_nonce();
  const Answer answer = make_answer(key, coordinator, worker, 7);
  int32_t rank = -1;
  Nonce nonce{};
  ASSERT_TRUE(read_answer(key, coordinator, answer, &rank, &nonce));
  EXPECT_EQ(rank, 7);
  EXPECT_EQ(nonce, worker);

  rank = -1;
  EXPECT_FALSE(read_answer(make_session_key(), coordinator, answer, &rank, &nonce));
  EXPECT_FALSE(read_answer(key, make_nonce(), answer, &rank, &nonce)) << "replayed";
  for (size_t i = 0; i < answer.size(); ++i) {
    Answer bent = answer;
    bent[i] ^= 0x80;
    EXPECT_FALSE(read_answer(key, coordinator, bent, &rank, &nonce)) << "byte " << i;
  }
  EXPECT_EQ(rank, -1) << "nothing is taken from an answer that is refused";
}

TEST(Handshake, ProofIsBoundToBothNoncesAndTheRank) {
  const SessionKey key = make_session_key();
  const Nonce coordinator = make_nonce(), worker = make_nonce();
  const Mac proof = make_proof(key, coordinator, worker, 3);
  EXPECT_TRUE(equal(proof, make_proof(key, coordinator, worker, 3)));
  EXPECT_FALSE(equal(proof, make_proof(key, coordinator, worker, 4)));
  EXPECT_FALSE(equal(proof, make_proof(key, worker, coordinator, 3)));
  EXPECT_FALSE(equal(proof, make_proof(make_session_key(), coordinator, worker, 3)));
  // A worker's own signature cannot be sent back as the coordinator's.
  const Answer answer = make_answer(key, worker, coordinator, 3);
  Mac reflected;
  std::copy(answer.end() - sizeof(Mac), answer.end(), reflected.begin());
  EXPECT_FALSE(equal(proof, reflected));
}

TEST(Handshake, PrefixStopsAtTheFirstWrongByte) {
  const Challenge challenge = make_challenge(make_nonce());
  const std::span<const uint8_t> bytes(challenge);
  for (size_t n = 0; n <= bytes.size(); ++n) EXPECT_TRUE(prefix_fits(bytes.first(n)));
  const std::string http = "GET / HTTP/1.1";
  EXPECT_FALSE(prefix_fits({reinterpret_cast<const uint8_t*>(http.data()), 1}));
}

}  // namespace
}  // namespace millrace::handshake
