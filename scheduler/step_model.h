// How long a step takes on one stage, learned from measured steps. A piecewise linear
// function of the step's work: its terms stand for the weights that are read, for what grows with
// tokens once the device is busy, for attention, and for what a step with prompts costs at all.
// Deterministic; one thread.
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// What a step asks of every stage.
struct StepWork {
  int32_t decode_rows = 0;
  int32_t prefill_tokens = 0;
  int64_t context = 0;  // keys read by the decode rows, summed
  int64_t pairs = 0;    // of a prefill token and a key it reads, summed

  int32_t tokens() const { return decode_rows + prefill_tokens; }
  void add_decode(int64_t position);  // of the row's one token
  void add_prefill(int64_t first, int64_t count);
};

class StepModel {
 public:
  static constexpr int kNumTerms = 7;
  using Terms = std::array<double, kNumTerms>;

  StepModel() = default;
  // What another one had learned: its weights().
  explicit StepModel(const Terms& weights) : weights_(weights) {}
  const Terms& weights() const { return weights_; }

  // Predicted seconds; 0 as long as nothing was observed. Never falls when the work grows.
  double seconds(const StepWork& work) const;
  // One measured step. Ignored when it had no tokens or no time. The newest few hundred steps
  // count; one that is far off counts little, unless many are.
  void observe(const StepWork& work, double seconds);

  // Enough was observed to plan by.
  bool ready() const { return num_observed_ >= kReadyAfter; }
  // Relative error of predictions before their step was seen, a running mean; 0 until ready.
  double error() const { return ready() ? error_ : 0; }

 private:
  static constexpr uint64_t kReadyAfter = 32;
  static Terms terms_of(const StepWork& work);
  void solve();

  Terms weights_{};
  // Normal equations of the weighted least squares, old steps fading.
  std::array<Terms, kNumTerms> products_{};
  Terms targets_{};
  uint64_t num_observed_ = 0;
  double error_ = 0;
};

}  // namespace millrace
