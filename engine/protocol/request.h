// What a request is once it has passed the edge: token ids and typed parameters under an internal
// id. Nothing in it is text a client sent. Plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/bytes.h"

namespace millrace {

using RequestId = uint64_t;

inline constexpr int32_t kMaxLogprobs = 20;
inline constexpr int32_t kMaxLogitBias = 1024;

// How the next token is drawn from the logits. Validated at the edge (launch/api/validate.h).
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  int32_t top_k = 0;                // 0: all
  float repetition_penalty = 1.0f;  // > 0; over prompt and output (Keskar et al. 2019)
  float presence_penalty = 0.0f;    // over output, as OpenAI's
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;          // of this request's noise, Philox(seed, position, token id)
  int32_t num_logprobs = -1;  // -1: none; 0 to kMaxLogprobs: the sampled token's and the n highest
  int32_t num_prompt_logprobs = -1;  // the same of each id of the prompt after the first
  bool only_listed = false;          // no other tokens than those of Request::logit_bias

  constexpr bool has_penalties() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
  constexpr bool has_filters() const {
    return temperature > 0 && (top_k > 0 || top_p < 1 || min_p > 0);
  }
  // False: the token and its logprob follow from the best score, the maximum and the sum of
  // exponents, each found shard by shard.
  constexpr bool needs_all_logits() const {
    return has_penalties() || has_filters() || num_logprobs > 0;
  }
  bool operator==(const SamplingParams&) const = default;
};

void fields(auto& io, Is<SamplingParams> auto& params) {
  io(params.temperature, params.top_p, params.min_p, params.top_k, params.repetition_penalty,
      params.presence_penalty, params.frequency_penalty, params.seed, params.num_logprobs,
      params.num_prompt_logprobs, params.only_listed);
}
// Every field finite and in the range its comment names.
bool within_limits(const SamplingParams& params);

// Added to a token's logit before it is drawn; logprobs are those without.
struct TokenBias {
  int32_t token = 0;
  float bias = 0;
  bool operator==(const TokenBias&) const = default;
};
void fields(auto& io, Is<TokenBias> auto& entry) { io(entry.token, entry.bias); }
inline constexpr float kForbidden = -1e30f;  // a bias far below any logit, and yet finite
// At most kMaxLogitBias entries by ascending id, from 0, each bias from kForbidden to its opposite.
bool within_limits(const std::vector<TokenBias>& logit_bias);

struct Request {
  std::vector<int32_t> prompt;  // at least one id, each in [0, vocabulary)
  SamplingParams sampling;
  std::vector<TokenBias> logit_bias;
  int32_t max_tokens = 16;              // at least 1; prompt + max_tokens <= context length
  int32_t min_tokens = 0;               // no stop id ends the request before
  std::vector<int32_t> stop_token_ids;  // EOS ids included, unless ignore_eos
  int32_t priority = 0;  // higher goes first and may take the place of lower (scheduler/README.md)
  int64_t timeout_ms = 0;   // from its submission to its end; 0: none
  uint64_t cache_salt = 0;  // requests of different salts share no cached prefix
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};
void fields(auto& io, Is<TokenLogprob> auto& entry) { io(entry.token, entry.logprob); }

// A sampled token as it travels from the last stage to the edge.
struct SampledToken {
  int32_t token = 0;
  float logprob = 0;              // of the model's own distribution (before temperature)
  std::vector<TokenLogprob> top;  // the asked n highest, best first
};
void fields(auto& io, Is<SampledToken> auto& sampled) {
  io(sampled.token, sampled.logprob);
  io.list(sampled.top, kMaxLogprobs);
}

}  // namespace millrace
