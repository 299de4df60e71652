#include "engine/protocol/request.h"

#include <cmath>

namespace millrace {

bool within_limits(const SamplingParams& params) {
  // Comparisons with a NaN are false, so each is written to hold for the good values.
  return std::isfinite(params.temperature) && params.temperature >= 0 &&  //
         params.top_p > 0 && params.top_p <= 1 &&                         //
         params.min_p >= 0 && params.min_p <= 1 &&                        //
         params.top_k >= 0 &&                                             //
         std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0 &&
         std::isfinite(params.presence_penalty) && std::isfinite(params.frequency_penalty) &&
         params.num_logprobs >= -1 && params.num_logprobs <= kMaxLogprobs;
}

}  // namespace millrace
