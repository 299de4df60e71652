#include "engine/kernels/cuda/cuda_ops.h"

#include <algorithm>

#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/kernels.h"

namespace millrace {

namespace {

class CudaOps final : public Ops {
 public:
  CudaOps(CudaDevice& device, const CudaOpsLimits& limits)
      : stream_(device.stream()),
        tune_(limits.tune),
        attention_limits_{limits.shape, device.activation_dtype(), limits.max_sequences,
            limits.max_tokens, device.num_sms()},
        gemm_(stream_, limits.gemm_cache),
        attention_workspace_(device.allocate(
            cuda::AttentionLayout(attention_limits_).end, "the workspace of attention")) {}
  ~CudaOps() override { gemm_.save(); }

  void begin_step(const StepHeader* step, const int32_t* arrived, const SlotState& slots,
      const StepArrays& arrays, const BatchView& batch, const AttentionShape& shape) override {
    CHECK(batch.num_sequences() <= attention_limits_.max_sequences &&
              batch.num_tokens <= attention_limits_.max_tokens,
        "{} rows, {} tokens", batch.num_sequences(), batch.num_tokens);
    CHECK(shape == attention_limits_.shape);
    cuda::begin_step(step, arrived, slots, arrays, batch, stream_);
    if (batch.num_tokens > 0) {
      cuda::plan_attention(attention_limits_, batch, attention_workspace_.data(), stream_);
    }
  }
  void embed(std::span<const int32_t> ids, int32_t first_id, const TensorView& table, float scale,
      const TensorView& out) override {
    cuda::embed(ids, first_id, table, scale, out, stream_);
  }
  void rms_norm(
      const TensorView& x, const TensorView& weight, float eps, const TensorView& out) override {
    cuda::add_rms_norm(x, TensorView(), weight, eps, out, stream_);
  }
  void add_rms_norm(const TensorView& x, const TensorView& residual, const TensorView& weight,
      float eps, const TensorView& out) override {
    cuda::add_rms_norm(x, residual, weight, eps, out, stream_);
  }
  void norm_add_norm(const TensorView& x, const TensorView& post, const TensorView& residual,
      const TensorView& weight, float eps, const TensorView& out) override {
    cuda::norm_add_norm(x, post, residual, weight, eps, out, stream_);
  }
  void sum_squares(const TensorView& x, const TensorView& sums) override {
    cuda::sum_squares(x, sums, stream_);
  }
  void scale_by_rms(const TensorView& x, const TensorView& sums, int64_t count,
      const TensorView& weight, float eps) override {
    cuda::scale_by_rms(x, sums, count, weight, eps, stream_);
  }
  void linear(const TensorView& x, const TensorView& w, const TensorView& bias,
      const TensorView& out) override {
    if (tune_ && !capturing()) gemm_.tune(x, w, bias, out);
    gemm_.run(x, w, bias, out);
  }
  void linear_add(const TensorView& x, const TensorView& w, const TensorView& bias,
      const TensorView& scratch, const TensorView& to) override {
    if (bias.data != nullptr) return Ops::linear_add(x, w, bias, scratch, to);
    if (tune_ && !capturing()) gemm_.tune(x, w, bias, scratch);
    gemm_.run(x, w, bias, to, /*adds=*/true);
  }
  void gated_linear(const TensorView& x, const TensorView& w, const TensorView& bias,
      Activation act, const TensorView& scratch, const TensorView& out) override {
    if (!gemm_.run_gated(x, w, bias, act, out)) Ops::gated_linear(x, w, bias, act, scratch, out);
  }
  void rope_kv_write(const TensorView& q, const TensorView& k, const TensorView& v,
      const HeadNorms& norms, const RopeTable& rope, const AttentionShape& shape,
      const BatchView& batch, const KvCacheView& cache) override {
    cuda::rope_kv_write(q, k, v, norms, rope, shape, batch, cache, stream_);
  }
  void attention(const TensorView& q, const KvCacheView& cache, const AttentionShape& shape,
      const BatchView& batch, const TensorView& out) override {
    cuda::attention(
        attention_limits_, shape, q, cache, batch, attention_workspace_.data(), out, stream_);
  }
  void gate_mul(const TensorView& gate, const TensorView& up, Activation act,
      const TensorView& out) override {
    cuda::gate_mul(gate, up, act, out, stream_);
  }
  void soft_cap(const TensorView& x, float cap) override { cuda::soft_cap(x, cap, stream_); }
  void add(const TensorView& x, const TensorView& y) override { cuda::add(x, y, stream_); }
  void gather_rows(
      const TensorView& x, std::span<const int32_t> rows, const TensorView& out) override {
    cuda::gather_rows(x, rows, out, stream_);
  }
  int64_t scan_cols(int64_t rows, int64_t n) const override { return cuda::scan_cols(rows, n); }
  void scan_logits(const TensorView& logits, int32_t first_id, std::span<const SampleRow> rows,
      const TensorView& scans) override {
    cuda::scan_logits(logits, first_id, rows, scans, stream_);
  }
  void sample(const TensorView& logits, const TensorView& scans, std::span<const SampleRow> rows,
      SampledRow* results, int32_t* ids) override {
    tune_ = false;  // the first request is there
    cuda::sample(logits, scans, rows, results, ids, stream_);
  }

 private:
  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream_, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  cudaStream_t stream_;
  bool tune_;
  cuda::AttentionLimits attention_limits_;
  cuda::Gemm gemm_;
  Buffer attention_workspace_;
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(CudaDevice& device, const CudaOpsLimits& limits) {
  return std::make_unique<CudaOps>(device, limits);
}

}  // namespace millrace
