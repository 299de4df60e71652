#include "engine/protocol/request.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace millrace {

bool within_limits(const SamplingParams& params) {
  // Comparisons with a NaN are false, so each is written to hold for the good values.
  return std::isfinite(params.temperature) && params.temperature >= 0 &&  //
         params.top_p > 0 && params.top_p <= 1 &&                         //
         params.min_p >= 0 && params.min_p <= 1 &&                        //
         params.top_k >= 0 &&                                             //
         std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0 &&
         std::isfinite(params.presence_penalty) && std::isfinite(params.frequency_penalty) &&
         params.num_logprobs >= -1 && params.num_logprobs <= kMaxLogprobs &&
         params.num_prompt_logprobs >= -1 && params.num_prompt_logprobs <= kMaxLogprobs;
}

bool within_limits(const std::vector<TokenBias>& logit_bias) {
  const auto is_good = [](const TokenBias& entry) {
    return entry.token >= 0 && std::abs(entry.bias) <= -kForbidden;
  };
  return logit_bias.size() <= kMaxLogitBias && std::ranges::all_of(logit_bias, is_good) &&
         std::ranges::adjacent_find(logit_bias, std::greater_equal<>(), &TokenBias::token) ==
             logit_bias.end();
}

}  // namespace millrace
