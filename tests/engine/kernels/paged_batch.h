// Steps and paged caches for tests, put on the device by begin_step as the executor does.
#pragma once

#include <array>
#include <bit>

#include "tests/engine/kernels/backend.h"

namespace millrace {

// What a StepHeader and its sections say.
struct TestStep {
  struct Row {
    int32_t slot, first, count;
    bool output;
    int32_t num_scored = 0;  // of the first tokens
  };
  struct Admitted {
    int32_t slot, num_prompt;
    std::vector<int32_t> ids;
    SamplingParams sampling;
    std::vector<TokenBias> biases = {};
  };
  std::vector<Admitted> admissions;
  std::vector<std::array<int32_t, 3>> new_blocks;  // slot, index in its table, block
  std::vector<std::array<int32_t, 3>> arrivals;    // slot, position, index of the id
  std::vector<Row> rows;

  int32_t num_tokens() const {
    int32_t total = 0;
    for (const Row& row : rows) total += row.count;
    return total;
  }
  std::vector<int32_t> words() const {
    StepHeader header{};
    std::vector<int32_t> words(sizeof header / 4);
    const auto begin = [&words] { return static_cast<int32_t>(words.size()); };
    header.num_sequences = static_cast<int32_t>(rows.size());
    header.num_tokens = num_tokens();
    header.num_arrivals = static_cast<int32_t>(arrivals.size());
    header.num_new_blocks = static_cast<int32_t>(new_blocks.size());
    header.num_admissions = static_cast<int32_t>(admissions.size());
    // First, as the executor's: a step of as many rows has its prefix sums in the same place.
    header.cu_tokens = begin();
    words.push_back(0);
    for (const Row& row : rows) words.push_back(words.back() + row.count);
    header.slots = begin();
    for (const Row& row : rows) words.push_back(row.slot);
    header.first = begin();
    for (const Row& row : rows) words.push_back(row.first);
    header.outputs = begin();
    int32_t end = 0;
    for (const Row& row : rows) {
      end += row.count;
      if (row.output) words.push_back(end - 1);
    }
    end = 0;
    for (const Row& row : rows) {
      for (int32_t i = 0; i < row.num_scored; ++i) words.push_back(end + i);
      header.num_scored += row.num_scored;
      end += row.count;
    }
    header.num_outputs = begin() - header.outputs;
    header.arrivals = begin();
    for (const auto& arrival : arrivals) words.insert(words.end(), arrival.begin(), arrival.end());
    header.new_blocks = begin();
    for (const auto& block : new_blocks) words.insert(words.end(), block.begin(), block.end());
    if (words.size() % 2 != 0) words.push_back(-1);
    header.admissions = begin();
    int32_t first_id = 0;
    for (const Admitted& from : admissions) {
      const auto num_ids = static_cast<int32_t>(from.ids.size());
      const auto num_biases = static_cast<int32_t>(from.biases.size());
      const AdmittedSlot slot{
          from.slot, from.num_prompt, first_id, num_ids, num_biases, from.sampling};
      first_id += num_ids + 2 * num_biases;
      words.resize(words.size() + sizeof slot / 4);
      std::memcpy(words.data() + words.size() - sizeof slot / 4, &slot, sizeof slot);
    }
    header.ids = begin();
    for (const Admitted& from : admissions) {
      words.insert(words.end(), from.ids.begin(), from.ids.end());
      for (const TokenBias& entry : from.biases) {
        words.insert(words.end(), {entry.token, std::bit_cast<int32_t>(entry.bias)});
      }
    }
    std::memcpy(words.data(), &header, sizeof header);
    return words;
  }
};

// What begin_step reads and writes.
struct StepMemory {
  TestBackend& backend;
  Tensor ids, block_tables;
  DeviceArray<int32_t> num_prompt;
  DeviceArray<SamplingParams> sampling;
  DeviceArray<TokenBias> biases;
  DeviceArray<int32_t> num_biases;
  DeviceArray<int32_t> step, token_ids, positions, output_tokens, arrived;
  DeviceArray<const uint32_t*> table_rows;
  DeviceArray<SampleRow> sample_rows;
  DeviceArray<uint32_t> padding;
  int32_t block_size;

  static constexpr int32_t kUnwritten = -9;

  StepMemory(TestBackend& on, int32_t num_slots, int32_t max_position, int32_t blocks_per_slot,
      int32_t tokens_per_block, uint32_t padding_block)
      : backend(on), block_size(tokens_per_block) {
    ids = backend.device().tensor(DType::kI32, {num_slots, max_position + 1}, "test");
    block_tables = backend.device().tensor(DType::kI32, {num_slots, blocks_per_slot}, "test");
    const auto slots = static_cast<size_t>(num_slots);
    num_prompt = backend.upload(std::vector<int32_t>(slots));
    sampling = backend.upload(std::vector<SamplingParams>(slots));
    biases = backend.upload(std::vector<TokenBias>(slots * kMaxLogitBias));
    num_biases = backend.upload(std::vector<int32_t>(slots));
    step = backend.upload(std::vector<int32_t>(1 << 17));
    const std::vector<int32_t> unwritten(kTestTokens, kUnwritten);
    token_ids = backend.upload(unwritten);
    positions = backend.upload(unwritten);
    output_tokens = backend.upload(unwritten);
    arrived = backend.upload(unwritten);
    table_rows = backend.upload(std::vector<const uint32_t*>(kTestSequences));
    sample_rows = backend.upload(std::vector<SampleRow>(kTestTokens));
    padding = backend.upload(std::vector<uint32_t>{padding_block});
  }

  SlotState slots() const {
    return {ids.view, block_tables.view, num_prompt.data(), sampling.data(), biases.data(),
        num_biases.data()};
  }
  StepArrays arrays() const {
    return {token_ids.data(), positions.data(), table_rows.data(), output_tokens.data(),
        sample_rows.data(), padding.data()};
  }
  // Uploads the step; the view is good until the next.
  BatchView upload(const TestStep& from) {
    const std::vector<int32_t> words = from.words();
    CHECK(words.size() <= step.size);
    backend.copy(step.data(), words);
    const size_t rows = from.rows.size();
    BatchView view;
    view.num_tokens = from.num_tokens();
    view.block_size = block_size;
    view.cu_tokens = {step.data() + sizeof(StepHeader) / 4, rows + 1};
    view.positions = {positions.data(), static_cast<size_t>(view.num_tokens)};
    view.block_tables = {table_rows.data(), rows};
    bool single = true;
    for (const TestStep::Row& row : from.rows) {
      single = single && row.count == 1;
      view.num_single += single ? 1 : 0;
      view.max_count = std::max(view.max_count, row.count);
    }
    return view;
  }
  void begin(Ops& ops, const BatchView& batch, const AttentionShape& shape) {
    ops.begin_step(reinterpret_cast<const StepHeader*>(step.data()), arrived.data(), slots(),
        arrays(), batch, shape);
  }
};

// A cache with its sequences: block ids dealt at random, every place that no token owns NaN.
struct PagedBatch {
  TestBackend& backend;
  AttentionShape shape;
  int32_t block_size;
  std::vector<int32_t> cu_tokens{0};
  std::vector<int32_t> positions;
  std::vector<std::vector<uint32_t>> tables;
  reference::Matrix k, v;  // [num_blocks, Hkv * block_size * D], as the device holds them
  Tensor device_k, device_v;
  std::unique_ptr<StepMemory> memory;
  BatchView view;

  // Sequence s has lengths[s] keys, of which the last counts[s] are this step's tokens.
  PagedBatch(TestBackend& on, Ops& ops, reference::Random& random,
      const std::vector<int32_t>& lengths, const std::vector<int32_t>& counts,
      const AttentionShape& attention_shape, int32_t tokens_per_block)
      : backend(on), shape(attention_shape), block_size(tokens_per_block) {
    deal_blocks(random, lengths);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int32_t p = lengths[s] - counts[s]; p < lengths[s]; ++p) positions.push_back(p);
      cu_tokens.push_back(static_cast<int32_t>(positions.size()));
    }
    const int32_t longest = *std::max_element(lengths.begin(), lengths.end());
    memory = std::make_unique<StepMemory>(backend, static_cast<int32_t>(lengths.size()), longest,
        (longest + block_size - 1) / block_size, block_size, static_cast<uint32_t>(k.rows - 1));
    upload_cache();
    view = memory->upload(first_step(lengths, counts));
    memory->begin(ops, view, shape);
  }
  PagedBatch(const PagedBatch&) = delete;

  KvCacheView cache() const { return {device_k.view, device_v.view}; }
  // Where position p of sequence s lies.
  float* slot(reference::Matrix& m, size_t s, int32_t head, int32_t p) const {
    const uint32_t block = tables[s][static_cast<size_t>(p / block_size)];
    return m.row(block) + (head * block_size + p % block_size) * shape.head_dim;
  }
  const float* slot(const reference::Matrix& m, size_t s, int32_t head, int32_t p) const {
    return slot(const_cast<reference::Matrix&>(m), s, head, p);
  }
  void upload_cache() {
    device_k = backend.upload(k);
    device_v = backend.upload(v);
    for (Tensor* t : {&device_k, &device_v}) {
      t->view = TensorView(
          t->view.data, backend.act(), {k.rows, shape.num_kv_heads, block_size, shape.head_dim});
    }
  }

 private:
  void deal_blocks(reference::Random& random, const std::vector<int32_t>& lengths) {
    int32_t total = 0;
    for (const int32_t n : lengths) total += (n + block_size - 1) / block_size;
    std::vector<uint32_t> ids;
    for (int32_t i = 0; i < total; ++i) ids.push_back(static_cast<uint32_t>(i));
    for (size_t i = ids.size() - 1; i > 0; --i) {
      std::swap(ids[i], ids[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    }
    // The last block takes what padding rows write.
    k = v = reference::Matrix(total + 1, shape.num_kv_heads * block_size * shape.head_dim, NAN);
    for (size_t s = 0; s < lengths.size(); ++s) {
      tables.emplace_back();
      for (int32_t n = 0; n < lengths[s]; n += block_size) {
        tables.back().push_back(ids.back());
        ids.pop_back();
      }
      for (int32_t p = 0; p < lengths[s]; ++p) {
        for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
          for (reference::Matrix* m : {&k, &v}) {
            float* at = slot(*m, s, h, p);
            for (int32_t d = 0; d < shape.head_dim; ++d) {
              at[d] = reference::rounded(random.normal(), backend.act());
            }
          }
        }
      }
    }
  }
  TestStep first_step(
      const std::vector<int32_t>& lengths, const std::vector<int32_t>& counts) const {
    TestStep step;
    for (size_t s = 0; s < lengths.size(); ++s) {
      const auto slot = static_cast<int32_t>(s);
      const std::vector<int32_t> ids(static_cast<size_t>(lengths[s]), 1);
      step.admissions.push_back({slot, lengths[s], ids, {}});
      for (size_t i = 0; i < tables[s].size(); ++i) {
        step.new_blocks.push_back(
            {slot, static_cast<int32_t>(i), static_cast<int32_t>(tables[s][i])});
      }
      step.rows.push_back({slot, lengths[s] - counts[s], counts[s], true});
    }
    return step;
  }
};

struct Attended {
  std::vector<double> out;
  std::vector<double> magnitude;  // of the terms of each
};
// Attention of one row (sequence s, query head h, position p).
inline Attended reference_attention(
    const PagedBatch& batch, const float* q, size_t s, int32_t h, int32_t p) {
  const AttentionShape& shape = batch.shape;
  const auto dim = static_cast<size_t>(shape.head_dim);
  const int32_t kv = h / (shape.num_heads / shape.num_kv_heads);
  const int32_t first = shape.window > 0 ? std::max(0, p - shape.window + 1) : 0;
  std::vector<double> scores;
  for (int32_t j = first; j <= p; ++j) {
    const float* key = batch.slot(batch.k, s, kv, j);
    double score = 0;
    for (size_t d = 0; d < dim; ++d) score += double{q[d]} * key[d];
    score *= shape.scale;
    scores.push_back(shape.softcap > 0 ? shape.softcap * std::tanh(score / shape.softcap) : score);
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - max);
  Attended result{std::vector<double>(dim), std::vector<double>(dim)};
  for (int32_t j = first; j <= p; ++j) {
    const float* value = batch.slot(batch.v, s, kv, j);
    const double share = scores[static_cast<size_t>(j - first)] / total;
    for (size_t d = 0; d < dim; ++d) {
      result.out[d] += share * value[d];
      result.magnitude[d] += share * std::abs(double{value[d]});
    }
  }
  return result;
}

}  // namespace millrace
