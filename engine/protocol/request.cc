#include "engine/protocol/request.h"

#include <cmath>

namespace millrace {

void put(ByteWriter& out, const SamplingParams& params) {
  out.put(params.temperature);
  out.put(params.top_p);
  out.put(params.min_p);
  out.put(params.top_k);
  out.put(params.repetition_penalty);
  out.put(params.presence_penalty);
  out.put(params.frequency_penalty);
  out.put(params.seed);
  out.put(params.num_logprobs);
}

SamplingParams get_sampling_params(ByteReader& in) {
  SamplingParams params;
  params.temperature = in.get<float>();
  params.top_p = in.get<float>();
  params.min_p = in.get<float>();
  params.top_k = in.get<int32_t>();
  params.repetition_penalty = in.get<float>();
  params.presence_penalty = in.get<float>();
  params.frequency_penalty = in.get<float>();
  params.seed = in.get<uint64_t>();
  params.num_logprobs = in.get<int32_t>();
  return params;
}

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
