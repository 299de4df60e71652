// Writes a step as the device reads it (StepHeader in engine/kernels/ops.h).
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "engine/base/check.h"
#include "engine/kernels/ops.h"
#include "engine/protocol/engine_config.h"
#include "engine/protocol/step.h"

namespace millrace {

inline constexpr int64_t kHeaderWords = sizeof(StepHeader) / 4;

// Room for the largest step. The ids and biases of one plan's admissions: the scheduler stops
// admitting when they reach the budget, so they are less than that and one whole sequence. The same
// of blocks, those of cached prefixes included.
inline int64_t step_words(const EngineConfig& config, int num_lanes, int32_t max_position) {
  const int64_t rows = config.max_num_seqs;
  const int64_t tokens = config.max_num_batched_tokens;
  const int64_t blocks = (tokens + max_position) / config.block_size + 2 * rows;
  const auto admission = static_cast<int64_t>(sizeof(AdmittedSlot) / 4);
  return kHeaderWords + 4 * rows + tokens + 3 + 3 * (rows * (num_lanes + 1) + blocks) +
         rows * admission + tokens + max_position + 2 * kMaxLogitBias;
}

// Where the prefix sums of a step of `rows` rows lie: the same for every step of as many rows, so
// that a captured step finds them.
inline const int32_t* step_cu_tokens(const uint8_t* step, int32_t rows) {
  return reinterpret_cast<const int32_t*>(step) + kHeaderWords + 2 * rows;
}

class StepWriter {
 public:
  StepWriter(int32_t* words, int64_t capacity) : words_(words), capacity_(capacity) {}

  // `first`: position of the row's first token; `num_blocks`: of the slot before this step.
  void add_row(const Row& row, uint32_t first, size_t num_blocks) {
    slots_.push_back(row.slot);
    first_.push_back(static_cast<int32_t>(first));
    cu_tokens_.push_back(cu_tokens_.back() + row.count);
    int32_t end = cu_tokens_.back();
    if (samples(row.output)) outputs_.push_back(--end);
    for (auto left = static_cast<int32_t>(row.num_scored()); left > 0; --left) {
      scored_.push_back(end - left);
    }
    for (size_t i = 0; i < row.new_blocks.size(); ++i) {
      add(new_blocks_, row.slot, num_blocks + i, row.new_blocks[i]);
    }
  }
  // Adds padding rows of `count` tokens up to `rows`; each gives logits nobody reads.
  void pad_rows(int32_t rows, int32_t count = 1) {
    for (auto s = static_cast<int32_t>(slots_.size()); s < rows; ++s) {
      slots_.push_back(-1);
      first_.push_back(0);
      cu_tokens_.push_back(cu_tokens_.back() + count);
      outputs_.push_back(cu_tokens_.back() - 1);
    }
  }
  void add_arrival(uint16_t slot, uint32_t position, int32_t index) {
    add(arrivals_, slot, position, index);
  }
  // Returns the words written. `with_ids` false: this rank needs no token ids.
  int64_t finish(const std::vector<Admission>& admissions, bool with_ids) {
    StepHeader header{};
    at_ = kHeaderWords;
    header.num_scored = static_cast<int32_t>(scored_.size());
    outputs_.insert(outputs_.end(), scored_.begin(), scored_.end());
    header.num_sequences = static_cast<int32_t>(slots_.size());
    header.num_tokens = cu_tokens_.back();
    header.num_outputs = static_cast<int32_t>(outputs_.size());
    header.num_arrivals = static_cast<int32_t>(arrivals_.size() / 3);
    header.num_new_blocks = static_cast<int32_t>(new_blocks_.size() / 3);
    header.num_admissions = with_ids ? static_cast<int32_t>(admissions.size()) : 0;
    header.slots = put(slots_);
    header.first = put(first_);
    header.cu_tokens = put(cu_tokens_);
    header.outputs = put(outputs_);
    header.arrivals = put(arrivals_);
    header.new_blocks = put(new_blocks_);
    at_ += at_ % 2;
    header.admissions = static_cast<int32_t>(at_);
    header.ids =
        header.admissions + header.num_admissions * static_cast<int32_t>(sizeof(AdmittedSlot) / 4);
    int32_t num_ids = 0;  // and words of biases
    for (int32_t i = 0; i < header.num_admissions; ++i) {
      const Admission& from = admissions[static_cast<size_t>(i)];
      const auto count = static_cast<int32_t>(from.token_ids.size());
      const AdmittedSlot admitted{from.slot, static_cast<int32_t>(from.num_prompt), num_ids, count,
          static_cast<int32_t>(from.logit_bias.size()), from.sampling};
      const int32_t end = num_ids + count + 2 * admitted.num_biases;
      CHECK(header.ids + end <= capacity_, "{} ids in one plan", end);
      std::memcpy(words_ + header.admissions + i * static_cast<int32_t>(sizeof(AdmittedSlot) / 4),
          &admitted, sizeof admitted);
      std::copy(from.token_ids.begin(), from.token_ids.end(), words_ + header.ids + num_ids);
      std::ranges::copy(
          from.logit_bias, reinterpret_cast<TokenBias*>(words_ + header.ids + num_ids + count));
      num_ids = end;
    }
    std::memcpy(words_, &header, sizeof header);
    return header.ids + num_ids;
  }

 private:
  template <typename A, typename B, typename C>
  static void add(std::vector<int32_t>& to, A a, B b, C c) {
    to.insert(
        to.end(), {static_cast<int32_t>(a), static_cast<int32_t>(b), static_cast<int32_t>(c)});
  }
  int32_t put(const std::vector<int32_t>& section) {
    CHECK(at_ + static_cast<int64_t>(section.size()) <= capacity_, "a step of over {} words",
        capacity_);
    std::copy(section.begin(), section.end(), words_ + at_);
    const auto begin = static_cast<int32_t>(at_);
    at_ += static_cast<int64_t>(section.size());
    return begin;
  }

  int32_t* words_;
  int64_t capacity_;
  int64_t at_ = 0;
  std::vector<int32_t> slots_, first_, cu_tokens_{0}, outputs_, scored_, arrivals_, new_blocks_;
};

}  // namespace millrace
