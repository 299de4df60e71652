// CpuOps: checks the shapes of each verb and deals its rows, outputs or heads to the pool. Called
// from the worker's compute thread. Nothing it computes depends on how the work was dealt.
#include "engine/kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <bit>
#include <boost/align/aligned_allocator.hpp>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

namespace millrace {

namespace {

// Work smaller than this, in multiply-adds or elements touched, is not worth waking a thread for.
constexpr int64_t kSmallWork = 32 << 10;
// Unpacked weights of one range of outputs: a share of the second-level cache.
constexpr int64_t kPanelFloats = 24 << 10;
// Rows of one task of a large product, so that few outputs still make many tasks.
constexpr int64_t kRowsPerTask = 192;
// Tokens of one sequence that share the keys they load.
constexpr int32_t kAttentionTokens = 16;

bool is_rows(const TensorView& t, int64_t rows, int64_t cols) {
  return t.dtype == DType::kF32 && t.rank == 2 && t.shape[0] == rows && t.shape[1] == cols &&
         (rows <= 1 || t.stride >= cols * 4);
}
bool is_vector(const TensorView& t, int64_t size) {
  return t.dtype == DType::kF32 && t.rank == 1 && t.shape[0] == size;
}
bool are_rows(std::initializer_list<TensorView> tensors, int64_t rows, int64_t cols) {
  return std::ranges::all_of(tensors, [&](const auto& t) { return is_rows(t, rows, cols); });
}
int64_t float_stride(const TensorView& t) { return t.stride / 4; }

// At least `floats` floats, 64-byte aligned, valid until this thread asks again. A thread runs one
// kernel at a time, so one piece each is enough.
float* thread_scratch(int64_t floats) {
  using Memory = std::vector<float, boost::alignment::aligned_allocator<float, 64>>;
  static thread_local Memory memory;
  if (memory.size() < static_cast<size_t>(floats)) memory = Memory(static_cast<size_t>(floats));
  return memory.data();
}

void check_weights(const TensorView& w) {
  CHECK(w.rank == 2 && w.dtype != DType::kI32 && w.shape[1] % dtype_info(w.dtype).block_size == 0,
      "weights [{}, {}] of {}", w.shape[0], w.shape[1], dtype_info(w.dtype).name);
}

// One call of the attention kernel.
struct AttentionTask {
  int32_t sequence;
  int32_t first_row;
  int32_t tokens;
  int32_t kv_head;
  int32_t first_head;
  int32_t heads;
};

class CpuOps final : public Ops {
 public:
  CpuOps(ThreadPool& pool, const CpuKernels& kernels) : pool_(pool), kernels_(kernels) {}

  void begin_step(const StepHeader* step, const int32_t* arrived, const SlotState& slots,
      const StepArrays& arrays, const BatchView& batch, const AttentionShape& /*shape*/) override {
    millrace::begin_step(*step, arrived, slots, arrays, batch);
  }

  void pack_weights(const TensorView& w) override {
    if (!is_quantized(w.dtype)) return;
    check_weights(w);
    const std::vector<uint8_t> stored(w.data, w.data + w.rows() * w.stride);
    const int64_t group_bytes = held_bytes(w.dtype, kPackedRows, w.cols());
    const int64_t groups = (w.rows() + kPackedRows - 1) / kPackedRows;
    run(groups, w.count(), [&](int64_t g) {
      pack_group(stored.data() + g * kPackedRows * w.stride, w.stride,
          std::min<int64_t>(kPackedRows, w.rows() - g * kPackedRows), w.dtype, w.cols(),
          w.data + g * group_bytes);
    });
  }

  void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table, float scale,
      const TensorView& out) override {
    const auto tokens = static_cast<int64_t>(ids.size());
    check_weights(table);
    CHECK(is_rows(out, tokens, table.cols()));
    for_rows(tokens, table.cols(), [&](int64_t t) {
      const int64_t row = int64_t{ids[static_cast<size_t>(t)]} - first_id;
      auto* to = out.row_as<float>(t);
      if (row < 0 || row >= table.rows()) {
        std::fill_n(to, table.cols(), 0.0f);
      } else if (is_quantized(table.dtype)) {
        widen_packed(
            table.data + row / kPackedRows * held_bytes(table.dtype, kPackedRows, table.cols()),
            table.dtype, table.cols(), row % kPackedRows, to);
      } else {
        kernels_.widen(table.row(row), table.dtype, table.cols(), to);
      }
      for (int64_t i = 0; scale != 1 && i < table.cols(); ++i) to[i] *= scale;
    });
  }

  void rms_norm(
      const TensorView& x, const TensorView& weight, float eps, const TensorView& out) override {
    CHECK(are_rows({x, out}, x.rows(), x.cols()) && is_vector(weight, x.cols()));
    for_rows(x.rows(), 2 * x.cols(), [&](int64_t t) {
      kernels_.rms_norm(
          x.row_as<float>(t), weight.as<float>(), eps, x.cols(), out.row_as<float>(t));
    });
  }

  void add_rms_norm(const TensorView& x, const TensorView& residual, const TensorView& weight,
      float eps, const TensorView& out) override {
    CHECK(are_rows({x, residual, out}, x.rows(), x.cols()) && is_vector(weight, x.cols()));
    for_rows(x.rows(), 3 * x.cols(), [&](int64_t t) {
      auto* sum = residual.row_as<float>(t);
      kernels_.add(sum, x.row_as<float>(t), x.cols());
      kernels_.rms_norm(sum, weight.as<float>(), eps, x.cols(), out.row_as<float>(t));
    });
  }

  void norm_add_norm(const TensorView& x, const TensorView& post, const TensorView& residual,
      const TensorView& weight, float eps, const TensorView& out) override {
    const int64_t cols = x.cols();
    CHECK(are_rows({x, residual}, x.rows(), cols) && is_vector(post, cols));
    CHECK(weight.data == nullptr || (is_vector(weight, cols) && is_rows(out, x.rows(), cols)));
    for_rows(x.rows(), 5 * cols, [&](int64_t t) {
      auto* sum = residual.row_as<float>(t);
      float* normed = thread_scratch(cols);
      kernels_.rms_norm(x.row_as<float>(t), post.as<float>(), eps, cols, normed);
      kernels_.add(sum, normed, cols);
      if (weight.data != nullptr) {
        kernels_.rms_norm(sum, weight.as<float>(), eps, cols, out.row_as<float>(t));
      }
    });
  }

  void sum_squares(const TensorView& x, const TensorView& sums) override {
    CHECK(is_rows(x, x.rows(), x.cols()) && is_rows(sums, x.rows(), 1));
    for_rows(x.rows(), x.cols(), [&](int64_t t) {
      const auto* row = x.row_as<float>(t);
      *sums.row_as<float>(t) = std::inner_product(row, row + x.cols(), row, 0.0f);
    });
  }

  void scale_by_rms(const TensorView& x, const TensorView& sums, int64_t count,
      const TensorView& weight, float eps) override {
    CHECK(is_rows(x, x.rows(), x.cols()) && is_rows(sums, x.rows(), 1) &&
          is_vector(weight, x.cols()));
    for_rows(x.rows(), 2 * x.cols(), [&](int64_t t) {
      const float mean = *sums.row_as<float>(t) / static_cast<float>(count);
      const float factor = 1.0f / std::sqrt(mean + eps);
      auto* row = x.row_as<float>(t);
      for (int64_t i = 0; i < x.cols(); ++i) row[i] = row[i] * factor * weight.as<float>()[i];
    });
  }

  void linear(const TensorView& x, const TensorView& w, const TensorView& bias,
      const TensorView& out) override {
    check_weights(w);
    const int64_t rows = x.rows();
    const int64_t outputs = w.rows();
    CHECK(is_rows(x, rows, w.cols()) && is_rows(out, rows, outputs),
        "[{}, {}] x [{}, {}] -> [{}, {}]", rows, x.cols(), outputs, w.cols(), out.rows(),
        out.cols());
    CHECK(bias.data == nullptr || is_vector(bias, outputs));
    if (rows == 0 || outputs == 0) return;
    if (is_quantized(w.dtype)) return block_linear(x, w, bias, out);
    const bool panels = rows > kStreamRows;
    const int64_t range = panels ? panel_outputs(w.cols()) : stream_outputs(outputs);
    const auto run_part = [&](LinearArgs& part, int64_t first) {
      part.x = x.row_as<float>(first);
      part.x_stride = float_stride(x);
      part.w_stride = w.stride;
      // By this call's path, not the part's: a last part of few rows may stream, same bits.
      if (panels) part.panel = thread_scratch(range * panel_stride(w.cols()));
      kernels_.linear(part);
    };
    run_product<LinearArgs>(w, bias, out, range, rows * outputs * w.cols(), run_part);
  }

  void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
      const HeadNorms& norms, const RopeTable& rope, const AttentionShape& shape,
      const BatchView& batch, const KvCacheView& cache) override {
    check_batch(q, shape, batch, cache);
    const int64_t dim = shape.head_dim;
    const int64_t kv_width = shape.num_kv_heads * dim;
    CHECK(are_rows({k, v}, batch.num_tokens, kv_width));
    const TensorView& table = rope.cos_sin.view;
    CHECK(table.data == nullptr || (is_rows(table, table.rows(), table.cols()) &&
                                       table.cols() <= dim && table.cols() % 2 == 0));
    for (const TensorView* norm : {&norms.q, &norms.k}) {
      CHECK(norm->data == nullptr || is_vector(*norm, dim));
    }
    sequence_of_.resize(static_cast<size_t>(batch.num_tokens));
    for (int32_t s = 0; s < batch.num_sequences(); ++s) {
      std::fill(sequence_of_.begin() + batch.cu_tokens[s],
          sequence_of_.begin() + batch.cu_tokens[s + 1], s);
    }
    for_rows(batch.num_tokens, 3 * (q.cols() + 2 * kv_width), [&](int64_t t) {
      const int32_t position = batch.positions[static_cast<size_t>(t)];
      for (int32_t h = 0; h < shape.num_heads; ++h) {
        float* head = q.row_as<float>(t) + h * dim;
        turn_head(head, norms.q, norms.eps, rope, position, dim, head);
      }
      const auto sequence = static_cast<size_t>(sequence_of_[static_cast<size_t>(t)]);
      const uint32_t block = batch.block_tables[sequence][position / batch.block_size];
      CHECK(block < cache.k.rows(), "block {} of {}", block, cache.k.rows());
      for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
        const int64_t slot = (h * batch.block_size + position % batch.block_size) * dim;
        turn_head(k.row_as<float>(t) + h * dim, norms.k, norms.eps, rope, position, dim,
            cache.k.row_as<float>(block) + slot);
        std::memcpy(cache.v.row_as<float>(block) + slot, v.row_as<float>(t) + h * dim,
            static_cast<size_t>(dim) * sizeof(float));
      }
    });
  }

  void attention(const TensorView& q, const KvCacheView& cache, const AttentionShape& shape,
      const BatchView& batch, const TensorView& out) override {
    check_batch(q, shape, batch, cache);
    CHECK(is_rows(out, batch.num_tokens, q.cols()));
    const int64_t work = plan_attention(shape, batch);
    run(static_cast<int64_t>(tasks_.size()), work, [&](int64_t i) {
      const AttentionTask& task = tasks_[static_cast<size_t>(i)];
      const int64_t dim = shape.head_dim;
      AttentionArgs args;
      args.q = q.row_as<float>(task.first_row) + task.first_head * dim;
      args.q_stride = float_stride(q);
      args.out = out.row_as<float>(task.first_row) + task.first_head * dim;
      args.out_stride = float_stride(out);
      args.positions = batch.positions.data() + task.first_row;
      args.tokens = task.tokens;
      args.heads = task.heads;
      args.head_dim = shape.head_dim;
      args.window = shape.window;
      args.scale = shape.scale;
      args.softcap = shape.softcap;
      args.k = cache.k.as<float>() + task.kv_head * batch.block_size * dim;
      args.v = cache.v.as<float>() + task.kv_head * batch.block_size * dim;
      args.block_stride = float_stride(cache.k);
      args.block_size = batch.block_size;
      args.block_table = batch.block_tables[static_cast<size_t>(task.sequence)];
      args.scratch = thread_scratch(attention_scratch_floats(task.tokens * task.heads, dim));
      kernels_.attention(args);
    });
  }

  void gate_mul(const TensorView& gate, const TensorView& up, Activation act,
      const TensorView& out) override {
    CHECK(are_rows({gate, up, out}, gate.rows(), gate.cols()));
    for_rows(gate.rows(), 4 * gate.cols(), [&](int64_t t) {
      kernels_.gate_mul(gate.row_as<float>(t), up.row_as<float>(t), gate.cols(),
          act == Activation::kGeluTanh, out.row_as<float>(t));
    });
  }

  void soft_cap(const TensorView& x, float cap) override {
    CHECK(is_rows(x, x.rows(), x.cols()) && cap > 0);
    // A few rows of many columns: dealt by columns.
    constexpr int64_t kCols = 4096;
    const int64_t pieces = (x.cols() + kCols - 1) / kCols;
    run(x.rows() * pieces, 4 * x.rows() * x.cols(), [&](int64_t i) {
      const int64_t begin = i % pieces * kCols;
      kernels_.soft_cap(
          x.row_as<float>(i / pieces) + begin, std::min(kCols, x.cols() - begin), cap);
    });
  }

  void add(const TensorView& x, const TensorView& y) override {
    CHECK(are_rows({x, y}, x.rows(), x.cols()));
    for_rows(x.rows(), x.cols(),
        [&](int64_t t) { kernels_.add(x.row_as<float>(t), y.row_as<float>(t), x.cols()); });
  }

  void gather_rows(
      const TensorView& x, std::span<const int32_t> rows, const TensorView& out) override {
    const auto count = static_cast<int64_t>(rows.size());
    CHECK(is_rows(x, x.rows(), x.cols()) && is_rows(out, count, x.cols()));
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = rows[static_cast<size_t>(i)];
      CHECK(row >= 0 && row < x.rows(), "row {} of {}", row, x.rows());
      std::memcpy(out.row(i), x.row(row), static_cast<size_t>(x.cols()) * sizeof(float));
    }
  }

  void sample(const TensorView& logits, const TensorView& /*scans*/,
      std::span<const SampleRow> rows, SampledRow* results, int32_t* ids) override {
    const auto count = static_cast<int64_t>(rows.size());
    CHECK(is_rows(logits, count, logits.cols()) && logits.cols() > 0);
    run(count, count * kSmallWork, [&](int64_t r) {
      const std::span<const float> row(logits.row_as<float>(r), static_cast<size_t>(logits.cols()));
      results[r] = sample_row(kernels_, row, rows[static_cast<size_t>(r)]);
      if (ids != nullptr) ids[r] = results[r].token;
    });
  }

 private:
  // One head of q or k: normed where there is a weight, then rotated where there is a table.
  void turn_head(const float* in, const TensorView& norm, float eps, const RopeTable& rope,
      int32_t position, int64_t dim, float* out) const {
    if (norm.data != nullptr) kernels_.rms_norm(in, norm.as<float>(), eps, dim, out);
    const float* from = norm.data != nullptr ? out : in;
    const TensorView& table = rope.cos_sin.view;
    const int64_t turned = table.data != nullptr ? table.cols() : 0;
    if (turned > 0) {
      CHECK(position >= 0 && position < table.rows(), "position {} of {}", position, table.rows());
      kernels_.rope(
          from, table.row_as<float>(position), static_cast<int32_t>(turned), rope.interleaved, out);
    }
    if (from != out) std::copy_n(from + turned, dim - turned, out + turned);
  }

  // body(i) for i in [0, count), on the pool unless the whole is small.
  template <typename Body>
  void run(int64_t count, int64_t work, const Body& body) {
    if (work <= kSmallWork || pool_.num_threads() == 1) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    pool_.parallel_for(count, 1, [&body](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }

  // The same by ranges of rows, for verbs whose rows are short.
  template <typename Body>
  void for_rows(int64_t rows, int64_t work_per_row, const Body& body) {
    const int64_t range = std::max<int64_t>(1, kSmallWork / 2 / std::max<int64_t>(1, work_per_row));
    run((rows + range - 1) / range, rows * work_per_row, [&](int64_t i) {
      for (int64_t t = i * range; t < std::min((i + 1) * range, rows); ++t) body(t);
    });
  }

  // x as integers first, then ranges of rows and groups of outputs.
  void block_linear(
      const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out) {
    const int64_t rows = x.rows();
    const int64_t k = w.cols();
    const int step = block_format(w.dtype).step;
    x_codes_.resize(static_cast<size_t>(rows * k));
    x_scales_.resize(static_cast<size_t>(rows * (k / 32)));
    x_sums_.resize(static_cast<size_t>(rows * (k / step)));
    for_rows(rows, 2 * k, [&](int64_t m) {
      kernels_.quantize_row(x.row_as<float>(m), k, step, x_codes_.data() + m * k,
          x_scales_.data() + m * (k / 32), x_sums_.data() + m * (k / step));
    });
    const auto run_part = [&](BlockLinearArgs& part, int64_t first) {
      part.x = x_codes_.data() + first * k;
      part.scale = x_scales_.data() + first * (k / 32);
      part.sum = x_sums_.data() + first * (k / step);
      kernels_.block_linear(part);
    };
    run_product<BlockLinearArgs>(
        w, bias, out, stream_outputs(w.rows()), rows * w.rows() * k / 4, run_part);
  }

  // Deals a product by `range` outputs and kRowsPerTask rows: run_part(args, first row of them).
  template <typename Args, typename RunPart>
  void run_product(const TensorView& w, const TensorView& bias, const TensorView& out,
      int64_t range, int64_t work, const RunPart& run_part) {
    const int64_t ranges = (w.rows() + range - 1) / range;
    const int64_t row_ranges = (out.rows() + kRowsPerTask - 1) / kRowsPerTask;
    run(ranges * row_ranges, work, [&](int64_t task) {
      const int64_t first = task / ranges * kRowsPerTask;
      Args part;
      part.rows = std::min(kRowsPerTask, out.rows() - first);
      part.k = w.cols();
      part.w = w.data;
      part.w_dtype = w.dtype;
      part.n_begin = task % ranges * range;
      part.n_end = std::min(part.n_begin + range, w.rows());
      part.bias = bias.as<float>();
      part.out = out.row_as<float>(first);
      part.out_stride = float_stride(out);
      run_part(part, first);
    });
  }

  static int64_t panel_outputs(int64_t k) {
    return std::max<int64_t>(4, kPanelFloats / panel_stride(k) / 4 * 4);
  }
  // A few ranges a thread: even when one of them is slowed down by a neighbour.
  int64_t stream_outputs(int64_t outputs) const {
    const int64_t ranges = 4 * pool_.num_threads();
    return std::max<int64_t>(1, (outputs / ranges + kPackedRows - 1) / kPackedRows) * kPackedRows;
  }

  static void check_batch(const TensorView& q, const AttentionShape& shape, const BatchView& batch,
      const KvCacheView& cache) {
    CHECK(
        shape.head_dim > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
    CHECK(is_rows(q, batch.num_tokens, int64_t{shape.num_heads} * shape.head_dim));
    CHECK(batch.block_size >= 16 && std::has_single_bit(static_cast<uint32_t>(batch.block_size)),
        "block size {}", batch.block_size);
    CHECK(batch.num_sequences() >= 0 &&
          batch.block_tables.size() == static_cast<size_t>(batch.num_sequences()) &&
          batch.positions.size() == static_cast<size_t>(batch.num_tokens) &&
          batch.cu_tokens.front() == 0 && batch.cu_tokens.back() == batch.num_tokens);
    for (const TensorView* t : {&cache.k, &cache.v}) {
      CHECK(t->dtype == DType::kF32 && t->rank == 4 && t->shape[1] == shape.num_kv_heads &&
            t->shape[2] == batch.block_size && t->shape[3] == shape.head_dim);
    }
    CHECK(cache.k.stride == cache.v.stride);
  }

  // Fills tasks_; returns the multiply-adds in all. A step of few sequences is cut by query head
  // as well, or some threads would idle; heads never share arithmetic, so the bits stay.
  int64_t plan_attention(const AttentionShape& shape, const BatchView& batch) {
    tasks_.clear();
    const int32_t group = shape.num_heads / shape.num_kv_heads;
    const bool few =
        int64_t{batch.num_tokens} * shape.num_kv_heads < int64_t{4} * pool_.num_threads();
    const int32_t heads = few ? 1 : group;
    int64_t keys = 0;
    for (int32_t s = 0; s < batch.num_sequences(); ++s) {
      const int32_t end = batch.cu_tokens[static_cast<size_t>(s) + 1];
      for (int32_t row = batch.cu_tokens[static_cast<size_t>(s)]; row < end;) {
        const int32_t tokens = std::min(kAttentionTokens, end - row);
        const auto last = static_cast<size_t>(row + tokens - 1);
        keys += int64_t{tokens} * (batch.positions[last] + 1);
        for (int32_t h = 0; h < shape.num_heads; h += heads) {
          tasks_.push_back({s, row, tokens, h / group, h, heads});
        }
        row += tokens;
      }
    }
    return keys * shape.num_heads * shape.head_dim * 2;
  }

  ThreadPool& pool_;
  const CpuKernels& kernels_;
  std::vector<AttentionTask> tasks_;  // of the attention in progress
  std::vector<int16_t> x_codes_;      // of the product in progress
  std::vector<float> x_scales_, x_sums_;
  std::vector<int32_t> sequence_of_;  // [T] of the rope in progress
};

}  // namespace

// x_codes_, x_scales_ and x_sums_; of each SamplerScratch what draws without penalties take.
int64_t cpu_scratch_bytes(int threads, int64_t rows, int64_t blocks, int64_t vocab) {
  return rows * blocks * 19 / 8 + threads * vocab * 12;
}

std::unique_ptr<Ops> make_cpu_ops_for(ThreadPool& pool, const CpuKernels& kernels) {
  return std::make_unique<CpuOps>(pool, kernels);
}

void widen_rows(const TensorView& from, float* to) {
  CHECK(from.rank >= 1 && from.dtype != DType::kI32);
  const int64_t rows = from.rank == 1 ? 1 : from.rows();
  const int64_t cols = from.rank == 1 ? from.shape[0] : from.count() / std::max<int64_t>(rows, 1);
  CHECK(cols % dtype_info(from.dtype).block_size == 0);
  for (int64_t r = 0; r < rows; ++r) {
    if (is_quantized(from.dtype)) {
      widen_blocks(from.row(r), from.dtype, cols, to + r * cols);
    } else {
      cpu_kernel_levels().front()->widen(from.row(r), from.dtype, cols, to + r * cols);
    }
  }
}

}  // namespace millrace
