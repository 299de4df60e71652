// The three messages that open a TCP link, each of a fixed size. Both sides prove that they hold
// the session key; nothing else is read from a peer before. Pure values; any thread.
//
//   coordinator -> worker   Challenge   magic, version, nonce_c
//   worker -> coordinator   Answer      magic, version, rank, nonce_w,
//                                       HMAC(key, "worker" | nonce_c | nonce_w | rank)
//   coordinator -> worker   Proof       HMAC(key, "coordinator" | nonce_w | nonce_c | rank)
//
// Each side's fresh nonce makes a recorded answer worthless, the two labels a reflected one.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "comm/link.h"

namespace millrace::handshake {

using Nonce = std::array<uint8_t, 32>;
using Mac = std::array<uint8_t, 32>;

inline constexpr size_t kPrefixBytes = 12;  // magic and version, the same in both directions
using Challenge = std::array<uint8_t, kPrefixBytes + 32>;
using Answer = std::array<uint8_t, kPrefixBytes + 4 + 32 + 32>;

// Throws Error(kFailure) when the system has no random bytes.
Nonce make_nonce();

// True while `received` (any length) can still be the beginning of a message of ours.
bool prefix_fits(std::span<const uint8_t> received);

Challenge make_challenge(const Nonce& coordinator_nonce);
// False unless magic and version are ours.
bool read_challenge(const Challenge& challenge, Nonce* coordinator_nonce);

Answer make_answer(
    const SessionKey& key, const Nonce& coordinator_nonce, const Nonce& worker_nonce, int32_t rank);
// False unless the worker holds the key; only then are rank and nonce set.
bool read_answer(const SessionKey& key, const Nonce& coordinator_nonce, const Answer& answer,
    int32_t* rank, Nonce* worker_nonce);

Mac make_proof(
    const SessionKey& key, const Nonce& coordinator_nonce, const Nonce& worker_nonce, int32_t rank);
bool equal(const Mac& a, const Mac& b);  // in constant time

}  // namespace millrace::handshake
