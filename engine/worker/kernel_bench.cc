#include "engine/worker/kernel_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/worker/kv_cache.h"
#include "engine/worker/step_writer.h"
#include "engine/worker/timer.h"

namespace millrace {

namespace {

constexpr int64_t kHostPoolBytes = int64_t{128} << 20;  // of KV blocks: random numbers take time
constexpr double kDevicePoolShare = 0.6;                // of what is free
constexpr int kMaxCalls = 32;
constexpr int kMaxCacheCalls = 128;  // so that also short contexts are more than caches hold
constexpr int kFewCalls = 4;         // of what takes long

class KernelBench {
 public:
  KernelBench(Device& device, Ops& ops, const Decoder& decoder, const EngineConfig& config,
      int32_t max_position)
      : device_(device),
        ops_(ops),
        decoder_(decoder),
        config_(config),
        max_position_(max_position),
        shape_(decoder.attention_shape()),
        act_bytes_(dtype_bytes(device.activation_dtype(), 1)),
        timer_(device) {
    allocate();
  }

  std::vector<Figure> run() {
    const int32_t tokens = config_.max_num_batched_tokens;
    for (const int32_t rows : {1, 8, 64, 256}) {
      if (rows < tokens) linears(rows);
    }
    linears(std::min(tokens, 4096));
    for (const int32_t rows : {1, 256}) {
      if (rows <= config_.max_num_seqs && rows < tokens) row_verbs(rows);
    }
    row_verbs(tokens);
    for (const int32_t rows : {1, 32, 256}) {
      for (const int32_t context : {512, 1024, 8192}) decode_attention(rows, context);
      if (rows > 1) skewed_attention(rows);
    }
    prefill_attention(1, std::min(tokens, max_position_));
    if (tokens >= 2 * 2048) prefill_attention(tokens / 2048, 2048);
    if (decoder_.head().data != nullptr) {
      for (const int32_t rows : {1, 64, 256}) sampling(rows);
    }
    return std::move(figures_);
  }

 private:
  void allocate() {
    const auto make = [&](int64_t bytes) {
      buffers_.push_back(device_.allocate(bytes, "a benchmark's step"));
      return buffers_.back().data();
    };
    const int64_t tokens = config_.max_num_batched_tokens;
    const int64_t rows = config_.max_num_seqs;
    const int64_t blocks = (int64_t{max_position_} + config_.block_size - 1) / config_.block_size;
    const auto& layer = decoder_.layers().front();
    widest_ = std::max({decoder_.hidden_size(), layer.qkv.out_features(),
        layer.gate_up.out_features(), layer.down.in_features()});
    for (uint8_t** each : {&x_, &y_, &z_}) *each = make(tokens * widest_ * act_bytes_);
    device_.fill_normal(TensorView(x_, device_.activation_dtype(), {tokens * widest_}), 1, 1);
    slots_.ids = TensorView(
        make(rows * (max_position_ + 1) * 4), DType::kI32, {rows, int64_t{max_position_} + 1});
    slots_.block_tables = TensorView(make(rows * blocks * 4), DType::kI32, {rows, blocks});
    slots_.num_prompt = reinterpret_cast<int32_t*>(make(rows * 4));
    slots_.sampling = reinterpret_cast<SamplingParams*>(make(rows * sizeof(SamplingParams)));
    slots_.num_biases = reinterpret_cast<int32_t*>(make(rows * 4));
    device_.copy_to_device(reinterpret_cast<uint8_t*>(slots_.num_biases),
        std::vector<uint8_t>(static_cast<size_t>(rows) * 4));
    arrays_.ids = reinterpret_cast<int32_t*>(make(tokens * 4));
    arrays_.positions = reinterpret_cast<int32_t*>(make(tokens * 4));
    arrays_.block_tables = reinterpret_cast<const uint32_t**>(make(rows * 8));
    arrays_.output_tokens = reinterpret_cast<int32_t*>(make(rows * 4));
    arrays_.sample_rows = reinterpret_cast<SampleRow*>(make(rows * sizeof(SampleRow)));
    arrays_.padding_block = reinterpret_cast<const uint32_t*>(make(blocks * 4));
    words_ = step_words(config_, /*num_lanes=*/1, max_position_);
    upload_ = device_.allocate_host(words_ * 4, "a benchmark's upload");
    step_ = make(words_ * 4);
    sampled_ = reinterpret_cast<SampledRow*>(make(rows * sizeof(SampledRow)));
    allocate_pool();
  }

  void allocate_pool() {
    block_bytes_ =
        KvCache::bytes_per_block(device_.activation_dtype(), 1, shape_, config_.block_size);
    const int64_t most =
        device_.asynchronous()
            ? static_cast<int64_t>(static_cast<double>(device_.free_bytes()) * kDevicePoolShare)
            : kHostPoolBytes;
    const int64_t context = std::min(8192, max_position_) / config_.block_size;
    const int64_t largest = block_bytes_ * std::min(config_.max_num_seqs, 256) * context;
    pool_ = device_.allocate(std::min(most, std::max(largest, kHostPoolBytes)), "KV blocks");
    device_.fill_normal(
        TensorView(pool_.data(), device_.activation_dtype(), {pool_.bytes() / act_bytes_}), 1, 2);
  }

  // Rows [T, width] in one of the three buffers, others for every call as far as it goes.
  TensorView rows_of(uint8_t* buffer, int64_t rows, int64_t width, int call = 0) const {
    const int64_t all = config_.max_num_batched_tokens * widest_ / (rows * width);
    const int64_t offset = call % std::max<int64_t>(all, 1) * rows * width * act_bytes_;
    return {buffer + offset, device_.activation_dtype(), {rows, width}};
  }

  void add(std::string name, double bytes, double flop, int calls, bool captured,
      const std::function<void(int)>& call) {
    const int rounds = device_.asynchronous() ? 5 : 2;
    const double seconds = timer_.seconds(calls, rounds, captured, call);
    figures_.push_back({std::move(name), seconds, bytes, flop});
  }

  void linears(int64_t rows) {
    const auto layers = static_cast<int>(decoder_.layers().size());
    const bool decode = rows <= 256;
    const int calls = std::min(layers, decode ? kMaxCalls : kFewCalls);
    const auto add_linear = [&](const char* name, const Linear& linear, auto run) {
      const int64_t n = linear.out_features(), k = linear.in_features();
      const double moved = static_cast<double>(rows * (n + k) * act_bytes_);
      add(fmt::format("{} {}x{}, {} rows", name, n, k, rows), moved + linear.weight_bytes(),
          2.0 * static_cast<double>(rows * n * k), calls, decode, [&, run](int i) {
            run(decoder_.layers()[static_cast<size_t>(i)], rows_of(x_, rows, k, i),
                rows_of(y_, rows, n), n);
          });
    };
    const auto& layer = decoder_.layers().front();
    add_linear(
        "qkv", layer.qkv, [&](const auto& l, const TensorView& x, const TensorView& y, int64_t) {
          l.qkv.forward(ops_, x, y);
        });
    add_linear("o", layer.attention_out,
        [&](const auto& l, const TensorView& x, const TensorView& y, int64_t n) {
          l.attention_out.forward_add(ops_, x, y, rows_of(z_, rows, n));
        });
    add_linear("gate_up", layer.gate_up,
        [&](const auto& l, const TensorView& x, const TensorView& y, int64_t n) {
          l.gate_up.forward_gated(ops_, x, decoder_.activation(), y, rows_of(z_, rows, n / 2));
        });
    add_linear("down", layer.down,
        [&](const auto& l, const TensorView& x, const TensorView& y, int64_t n) {
          l.down.forward_add(ops_, x, y, rows_of(z_, rows, n));
        });
    if (decoder_.head().data != nullptr && rows <= 256) head(rows);
  }

  void head(int64_t rows) {
    const TensorView w = decoder_.head();
    const int64_t n = w.rows(), k = w.cols();
    const TensorView out = logits(rows, n);
    const auto bytes =
        static_cast<double>(dtype_bytes(w.dtype, n * k) + rows * (k * act_bytes_ + n * 4));
    add(fmt::format("head {}x{}, {} rows", n, k, rows), bytes,
        2.0 * static_cast<double>(rows * n * k), kFewCalls, true,
        [&](int i) { ops_.linear(rows_of(x_, rows, k, i), w, TensorView(), out); });
  }

  TensorView logits(int64_t rows, int64_t n) {
    if (logits_.bytes() < rows * n * 4) logits_ = device_.allocate(rows * n * 4, "logits");
    return {logits_.data(), DType::kF32, {rows, n}};
  }

  void row_verbs(int64_t rows) {
    const int64_t hidden = decoder_.hidden_size();
    const auto& layer = decoder_.layers().front();
    const TensorView weight = layer.attention_norm.view;
    const auto moved = [&](int64_t width) {
      return static_cast<double>(rows * width * act_bytes_);
    };
    const auto add_rows = [&](const char* name, int64_t width, auto run) {
      add(fmt::format("{}, {} rows", name, rows), moved(width), 0, kMaxCalls, true, run);
    };
    add_rows("rms_norm", 2 * hidden, [&](int i) {
      ops_.rms_norm(rows_of(x_, rows, hidden, i), weight, 1e-5f, rows_of(y_, rows, hidden, i));
    });
    add_rows("add_rms_norm", 4 * hidden, [&](int i) {
      ops_.add_rms_norm(rows_of(x_, rows, hidden, i), rows_of(z_, rows, hidden, i), weight, 1e-5f,
          rows_of(y_, rows, hidden, i));
    });
    const int64_t inner = layer.down.in_features();
    add_rows("gate_mul", 3 * inner, [&](int i) {
      const TensorView both = rows_of(x_, rows, 2 * inner, i);
      ops_.gate_mul(both.slice_cols(0, inner), both.slice_cols(inner, inner), decoder_.activation(),
          rows_of(y_, rows, inner, i));
    });
    const bool decode = rows <= config_.max_num_seqs;
    const auto count = static_cast<int32_t>(decode ? 1 : rows);
    const int32_t length = decode ? std::min(512, max_position_) : count;
    if (!fits(rows / count, length)) return;
    const BatchView batch = begin(std::vector(static_cast<size_t>(rows / count), length), count);
    const int64_t q = int64_t{shape_.num_heads} * shape_.head_dim;
    const int64_t kv = int64_t{shape_.num_kv_heads} * shape_.head_dim;
    add_rows("rope_kv_write", 2 * q + 4 * kv, [&](int i) {
      const TensorView all = rows_of(y_, rows, q + 2 * kv, i);
      ops_.rope_kv_write(all.slice_cols(0, q), all.slice_cols(q, kv), all.slice_cols(q + kv, kv),
          HeadNorms(), decoder_.rope(), shape_, batch, cache(0));
    });
  }

  bool fits(int64_t rows, int32_t context) const {
    const int64_t blocks = (context + config_.block_size - 1) / config_.block_size;
    return rows <= config_.max_num_seqs && context <= max_position_ &&
           rows * blocks * block_bytes_ <= pool_.bytes();
  }

  // The cache that call `i` reads, of the blocks that begin() gave away.
  KvCacheView cache(int i) const {
    const int64_t copies = std::max<int64_t>(1, pool_.bytes() / (num_blocks_ * block_bytes_));
    uint8_t* at = pool_.data() + i % copies * num_blocks_ * block_bytes_;
    const auto half = [&](uint8_t* data) {
      return TensorView(data, device_.activation_dtype(),
          {num_blocks_, shape_.num_kv_heads, config_.block_size, shape_.head_dim});
    };
    return {half(at), half(at + num_blocks_ * block_bytes_ / 2)};
  }

  // A step whose row s brings `count` tokens, after which it has lengths[s]. Blocks lie as decoding
  // would have dealt them: one row's are apart.
  BatchView begin(const std::vector<int32_t>& lengths, int32_t count) {
    const auto rows = static_cast<int32_t>(lengths.size());
    const int64_t width = slots_.block_tables.cols();
    std::vector<uint32_t> tables(static_cast<size_t>(rows * width));
    uint32_t next = 0;
    for (int64_t b = 0; b < width; ++b) {
      for (int64_t s = 0; s < rows; ++s) {
        if (b * config_.block_size < lengths[static_cast<size_t>(s)]) {
          tables[static_cast<size_t>(s * width + b)] = next++;
        }
      }
    }
    num_blocks_ = next;
    device_.copy_to_device(slots_.block_tables.data,
        {reinterpret_cast<const uint8_t*>(tables.data()), tables.size() * 4});
    StepWriter writer(reinterpret_cast<int32_t*>(upload_.data()), words_);
    for (int32_t s = 0; s < rows; ++s) {
      writer.add_row({static_cast<uint16_t>(s), static_cast<uint16_t>(count), Output::kLast, {}},
          static_cast<uint32_t>(lengths[static_cast<size_t>(s)] - count), 0);
    }
    const auto bytes = static_cast<size_t>(writer.finish({}, false)) * 4;
    device_.enqueue_copy_in(step_, {upload_.data(), bytes});
    BatchView batch;
    batch.num_tokens = rows * count;
    batch.block_size = config_.block_size;
    batch.cu_tokens = {step_cu_tokens(step_, rows), static_cast<size_t>(rows) + 1};
    batch.positions = {arrays_.positions, static_cast<size_t>(batch.num_tokens)};
    batch.block_tables = {arrays_.block_tables, static_cast<size_t>(rows)};
    batch.num_single = count == 1 ? rows : 0;
    batch.max_count = count;
    ops_.begin_step(
        reinterpret_cast<const StepHeader*>(step_), nullptr, slots_, arrays_, batch, shape_);
    device_.synchronize();
    return batch;
  }

  void attend(std::string name, const std::vector<int32_t>& lengths, int32_t count) {
    const BatchView batch = begin(lengths, count);
    double keys = 0, pairs = 0;
    for (const double length : lengths) {
      keys += length;
      pairs += count * (length - (count - 1) / 2.0);
    }
    const int64_t q = int64_t{shape_.num_heads} * shape_.head_dim;
    const int64_t kv = int64_t{shape_.num_kv_heads} * shape_.head_dim;
    const double bytes =
        (keys * 2 * static_cast<double>(kv) + 2.0 * batch.num_tokens * static_cast<double>(q)) *
        static_cast<double>(act_bytes_);
    const int64_t copies = pool_.bytes() / (num_blocks_ * block_bytes_);
    AttentionShape whole = shape_;  // of a layer that sees all keys
    whole.window = 0;
    const bool decode = count == 1;
    const int calls = decode && device_.asynchronous()
                          ? static_cast<int>(std::clamp<int64_t>(copies, kFewCalls, kMaxCacheCalls))
                          : kFewCalls;
    add(std::move(name), bytes, 4 * pairs * static_cast<double>(q), calls, decode, [&](int i) {
      const TensorView all = rows_of(x_, batch.num_tokens, q + 2 * kv, i);
      ops_.attention(
          all.slice_cols(0, q), cache(i), whole, batch, rows_of(y_, batch.num_tokens, q));
    });
  }

  void decode_attention(int32_t rows, int32_t context) {
    if (!fits(rows, context)) return;
    attend(fmt::format("decode attention, {} rows, context {}", rows, context),
        std::vector(static_cast<size_t>(rows), context), 1);
  }

  void skewed_attention(int32_t rows) {
    if (!fits(rows, 1024) || !fits(1, 8192)) return;  // their mean is 992
    std::vector<int32_t> lengths(static_cast<size_t>(rows), 512);
    for (size_t s = 0; s < lengths.size(); s += 16) lengths[s] = 8192;
    attend(
        fmt::format("decode attention, {} rows, context 512, every 16th 8192", rows), lengths, 1);
  }

  void prefill_attention(int32_t rows, int32_t length) {
    if (!fits(rows, length)) return;
    attend(fmt::format("prefill attention, {} x {}", rows, length),
        std::vector(static_cast<size_t>(rows), length), length);
  }

  void sampling(int32_t rows) {
    if (!fits(rows, 16)) return;
    const TensorView all = logits(rows, decoder_.vocab_size());
    begin(std::vector(static_cast<size_t>(rows), 16), 1);
    const int64_t cols = ops_.scan_cols(rows, all.cols());
    const Tensor scans = device_.tensor(DType::kF32, {rows, cols}, "scanned logits");
    const std::span<const SampleRow> draws(arrays_.sample_rows, static_cast<size_t>(rows));
    SamplingParams drawn;
    drawn.temperature = 1;  // what a call leaves behind is as good for the next
    drawn.top_k = 50;
    drawn.top_p = 0.9f;
    SamplingParams greedy;
    greedy.temperature = 0;
    for (const auto& [name, params] :
        {std::pair("greedy", greedy), std::pair("top-k and top-p", drawn)}) {
      const std::vector<SamplingParams> each(static_cast<size_t>(rows), params);
      device_.copy_to_device(slots_.sampling,
          {reinterpret_cast<const uint8_t*>(each.data()), each.size() * sizeof(SamplingParams)});
      device_.fill_normal(all, 3, 3);
      add(fmt::format("sampling {}, {} rows", name, rows), static_cast<double>(all.count()) * 4, 0,
          kFewCalls, true, [&](int) {
            if (cols > 0) ops_.scan_logits(all, 0, draws, scans.view);
            ops_.sample(all, scans.view, draws, sampled_, arrays_.ids);
          });
    }
  }

  Device& device_;
  Ops& ops_;
  const Decoder& decoder_;
  const EngineConfig& config_;
  const int32_t max_position_;
  const AttentionShape shape_;
  const int64_t act_bytes_;
  Timer timer_;
  std::vector<Figure> figures_;
  std::vector<Buffer> buffers_;                         // what the pointers below look at
  int64_t widest_ = 0;                                  // columns
  uint8_t *x_ = nullptr, *y_ = nullptr, *z_ = nullptr;  // act [T, widest]; x is random
  SlotState slots_;
  StepArrays arrays_;
  int64_t words_ = 0;
  Buffer upload_;  // host
  uint8_t* step_ = nullptr;
  SampledRow* sampled_ = nullptr;
  Buffer logits_;
  Buffer pool_;              // random KV blocks
  int64_t block_bytes_ = 0;  // keys and values of one layer
  int64_t num_blocks_ = 1;   // of the step that begin() began
};

}  // namespace

std::vector<Figure> bench_kernels(Device& device, Ops& ops, const Decoder& decoder,
    const EngineConfig& config, int32_t max_position) {
  return KernelBench(device, ops, decoder, config, max_position).run();
}

}  // namespace millrace
