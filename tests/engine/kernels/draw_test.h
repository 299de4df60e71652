// Calls of Ops::sample with inputs made on the host.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/engine/kernels/backend.h"

namespace millrace {

// One row of a call.
struct Draw {
  SamplingParams params;
  uint64_t position = 0;
  std::vector<int32_t> prompt;
  std::vector<int32_t> output;
  std::vector<TokenBias> biases = {};
  int32_t scored = -1;
};

class DrawTest : public BackendTest {
 protected:
  // As `num_shards` ranks that share the vocabulary would; `whole`: with all logits at hand.
  std::vector<SampledRow> sample(const reference::Matrix& logits, const std::vector<Draw>& draws,
      int num_shards = 1, bool whole = true) {
    std::vector<SamplingParams> params;
    std::vector<int32_t> ids;
    std::vector<TokenBias> biases{{}};  // not empty
    for (const Draw& draw : draws) {
      biases.insert(biases.end(), draw.biases.begin(), draw.biases.end());
      params.push_back(draw.params);
      ids.insert(ids.end(), draw.prompt.begin(), draw.prompt.end());
      ids.insert(ids.end(), draw.output.begin(), draw.output.end());
    }
    const auto device_params = backend_->upload(params);
    const auto device_ids = backend_->upload(ids);
    const auto device_biases = backend_->upload(biases);
    std::vector<SampleRow> rows;
    const int32_t* next = device_ids.data();
    const TokenBias* next_bias = device_biases.data() + 1;
    for (const Draw& draw : draws) {
      const auto num_prompt = static_cast<int32_t>(draw.prompt.size());
      const auto num_ids = num_prompt + static_cast<int32_t>(draw.output.size());
      const auto num_biases = static_cast<int32_t>(draw.biases.size());
      rows.push_back({device_params.data() + rows.size(), draw.position, next, num_prompt, num_ids,
          next_bias, num_biases, draw.scored});
      next += num_ids;
      next_bias += num_biases;
    }
    const auto device_rows = backend_->upload(rows);
    const Tensor device_logits = backend_->upload(logits, DType::kF32);
    const Tensor scans = scan(device_logits.view, device_rows.span(), num_shards);
    SampledRow unwritten;
    unwritten.token = unwritten.finite = unwritten.num_top = -7;
    const auto results = backend_->upload(std::vector<SampledRow>(draws.size(), unwritten));
    const auto sampled_ids = backend_->upload(std::vector<int32_t>(draws.size(), -7));
    ops_->sample(whole ? device_logits.view : TensorView(), scans.view, device_rows.span(),
        results.data(), sampled_ids.data());
    const auto got = backend_->download(results.data(), draws.size());
    const auto got_ids = backend_->download(sampled_ids.data(), draws.size());
    for (size_t r = 0; r < draws.size(); ++r) {
      EXPECT_EQ(got_ids[r], got[r].finite != 0 ? got[r].token : 0);
    }
    return got;
  }
  // Of each shard of the vocabulary, side by side as a gather leaves them.
  Tensor scan(const TensorView& logits, std::span<const SampleRow> rows, int num_shards) {
    const int64_t shard = logits.cols() / num_shards / 4 * 4;  // the last has the rest
    const int64_t cols = ops_->scan_cols(logits.rows(), shard);
    const auto width = static_cast<size_t>(cols * 4);
    std::vector<uint8_t> all(static_cast<size_t>(logits.rows() * num_shards) * width);
    for (int i = 0; i < num_shards && cols > 0; ++i) {
      const int64_t begin = i * shard;
      const int64_t end = i == num_shards - 1 ? logits.cols() : begin + shard;
      const Tensor mine = output(logits.rows(), cols, DType::kF32);
      ops_->scan_logits(
          logits.slice_cols(begin, end - begin), static_cast<int32_t>(begin), rows, mine.view);
      const auto got = backend_->download<uint8_t>(mine.view.data, all.size() / num_shards);
      for (size_t r = 0; r < rows.size(); ++r) {
        std::copy_n(got.data() + r * width, width,
            all.data() + (r * static_cast<size_t>(num_shards) + static_cast<size_t>(i)) * width);
      }
    }
    const auto bytes = backend_->upload(all);
    return {
        TensorView(bytes.data(), DType::kF32, {logits.rows(), num_shards * cols}), bytes.buffer};
  }
};

}  // namespace millrace
