#include "engine/model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr int64_t kBandBytes = 8 << 20;  // read and moved to the device at a time
constexpr unsigned kMaxThreads = 8;      // as many readers saturate a disk or a PCIe link

}  // namespace

void Linear::forward(Ops& ops, const TensorView& x, const TensorView& out) const {
  for (const Part& part : parts_) {
    const int64_t n = part.weight.view.rows();
    ops.linear(x, part.weight.view, part.bias.view, out.slice_cols(part.column, n));
  }
}

void Linear::forward_gated(
    Ops& ops, const TensorView& x, const TensorView& scratch, const TensorView& out) const {
  if (parts_.size() == 1) {
    const Part& both = parts_.front();
    return ops.gated_linear(x, both.weight.view, both.bias.view, scratch, out);
  }
  forward(ops, x, scratch);
  ops.silu_mul(scratch.slice_cols(0, out.cols()), scratch.slice_cols(out.cols(), out.cols()), out);
}

void Linear::forward_add_norm(Ops& ops, TpOps& tp, const TensorView& x, const TensorView& scratch,
    const TensorView& hidden, const TensorView& norm, float eps, const TensorView& normed) const {
  if (tp.size() > 1) {
    forward(ops, x, scratch);
    tp.reduce_add_norm(ops, scratch, hidden, norm, eps, normed);
    return;
  }
  forward_add(ops, x, scratch, hidden);
  if (norm.data != nullptr) ops.rms_norm(hidden, norm, eps, normed);
}

void Linear::forward_add(
    Ops& ops, const TensorView& x, const TensorView& scratch, const TensorView& to) const {
  for (const Part& part : parts_) {
    const int64_t n = part.weight.view.rows();
    ops.linear_add(x, part.weight.view, part.bias.view, scratch.slice_cols(part.column, n),
        to.slice_cols(part.column, n));
  }
}

double Linear::weight_bytes() const {
  int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.weight.buffer.bytes();
  return static_cast<double>(bytes);
}

WeightLoader::WeightLoader(
    const Checkpoint& checkpoint, Device& device, std::function<void()> on_tensor)
    : checkpoint_(checkpoint), device_(device), on_tensor_(std::move(on_tensor)) {}

Tensor WeightLoader::vector(const std::string& name, Range range) {
  Tensor tensor = device_.tensor(DType::kF32, {range.size}, name);
  add(name, range, {0, 1}, tensor.view);
  return tensor;
}

Tensor WeightLoader::matrix(const std::string& name, Range rows, Range cols) {
  Tensor tensor = device_.tensor(held_dtype(name, cols), {rows.size, cols.size}, name);
  add(name, rows, cols, tensor.view);
  return tensor;
}

DType WeightLoader::held_dtype(const std::string& name, Range cols) const {
  const TensorInfo* info = checkpoint_.find(name);
  CHECK(info != nullptr, "{} passed the shape check and is gone", name);
  return device_.weight_dtype(readable_as_stored(*info, cols) ? info->dtype : DType::kF32);
}

Linear WeightLoader::linear(std::span<const LinearSlice> slices) {
  Linear linear;
  for (size_t first = 0; first < slices.size();) {
    // The run of slices that can be one matrix: same dtype, all with or all without a bias.
    const auto dtype_of = [&](const LinearSlice& slice) {
      return held_dtype(slice.name + ".weight", slice.cols);
    };
    const DType dtype = dtype_of(slices[first]);
    const bool with_bias = slices[first].with_bias;
    size_t end = first;
    int64_t rows = 0;
    while (end < slices.size() && dtype_of(slices[end]) == dtype &&
           slices[end].with_bias == with_bias) {
      rows += slices[end++].rows.size;
    }
    Linear::Part part;
    part.column = linear.out_features_;
    part.weight = device_.tensor(dtype, {rows, slices[first].cols.size}, slices[first].name);
    if (with_bias) {
      part.bias = device_.tensor(device_.activation_dtype(), {rows}, slices[first].name + ".bias");
    }
    int64_t row = 0;
    for (const LinearSlice& slice : slices.subspan(first, end - first)) {
      CHECK(slice.cols == slices[first].cols, "matrices side by side share their input");
      add(slice.name + ".weight", slice.rows, slice.cols,
          part.weight.view.slice_rows(row, slice.rows.size));
      if (with_bias) {
        add(slice.name + ".bias", slice.rows, {0, 1},
            part.bias.view.slice_rows(row, slice.rows.size));
      }
      row += slice.rows.size;
    }
    linear.parts_.push_back(std::move(part));
    linear.out_features_ += rows;
    first = end;
  }
  return linear;
}

void WeightLoader::add(const std::string& name, Range rows, Range cols, const TensorView& to) {
  const TensorInfo* info = checkpoint_.find(name);
  CHECK(info != nullptr, "{} passed the shape check and is gone", name);
  // A vector is one line, whose columns are asked for as rows.
  if (info->shape.size() == 1) {
    slices_.push_back({name, info, {0, 1}, rows, TensorView(to.data, to.dtype, {1, rows.size})});
  } else {
    slices_.push_back({name, info, rows, cols, to});
  }
  bytes_ += dtype_bytes(to.dtype, to.count());
}

void WeightLoader::load() {
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (size_t i = next++; i < slices_.size(); i = next++) {
        checkpoint_.is_dummy() ? make_up(slices_[i]) : read(slices_[i]);
        on_tensor_();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
      next = slices_.size();
    }
  };
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (unsigned i = 1; !checkpoint_.is_dummy() && i < std::min(cores, kMaxThreads); ++i) {
    threads.emplace_back(work);
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  device_.synchronize();
  slices_.clear();
}

// In bands of whole rows: as stored where the device holds it so, else widened to fp32, cut and
// narrowed.
void WeightLoader::read(const Slice& slice) const {
  const DType stored = slice.info->dtype;
  const bool as_stored = stored == slice.to.dtype;
  if (!as_stored && !readable_as_stored(*slice.info, slice.cols)) {
    log::info("{}: columns {}+{} split a {} block; this rank holds them as {}", slice.name,
        slice.cols.begin, slice.cols.size, dtype_info(stored).name,
        dtype_info(slice.to.dtype).name);
  }
  const Range whole{0, slice.info->shape.back()};
  const Range cols = as_stored ? slice.cols : whole;
  const int64_t line_bytes = std::max<int64_t>(1, dtype_bytes(stored, cols.size));
  const int64_t band =
      std::clamp<int64_t>(kBandBytes / line_bytes, 1, std::max<int64_t>(1, slice.rows.size));
  const auto out_line = static_cast<size_t>(dtype_bytes(slice.to.dtype, slice.cols.size));
  thread_local Buffer staging;
  if (staging.bytes() < band * line_bytes) {
    staging = device_.allocate_host(std::max(band * line_bytes, kBandBytes), "loading");
  }
  std::vector<float> wide(static_cast<size_t>(as_stored ? 0 : whole.size));
  std::vector<uint8_t> narrowed(as_stored ? 0 : static_cast<size_t>(band) * out_line);
  for (int64_t row = 0; row < slice.rows.size; row += band) {
    const int64_t count = std::min(band, slice.rows.size - row);
    const Range rows{slice.rows.begin + row, count};
    const bool is_vector = slice.info->shape.size() == 1;
    checkpoint_.read(
        slice.name, is_vector ? cols : rows, is_vector ? Range{0, 1} : cols, staging.data());
    const uint8_t* from = staging.data();
    for (int64_t i = 0; !as_stored && i < count; ++i) {
      widen_rows(TensorView(staging.data() + i * line_bytes, stored, {1, whole.size}), wide.data());
      narrow({wide.data() + slice.cols.begin, static_cast<size_t>(slice.cols.size)}, slice.to.dtype,
          narrowed.data() + static_cast<size_t>(i) * out_line);
      from = narrowed.data();
    }
    device_.copy_to_device(slice.to.row(row), {from, static_cast<size_t>(count) * out_line});
  }
}

// Weights nobody trained: normal with the deviation that keeps activations in range; norms are 1.
void WeightLoader::make_up(const Slice& slice) const {
  if (slice.info->shape.size() > 1) {
    const auto inputs = static_cast<float>(slice.info->shape.back());
    device_.fill_normal(slice.to, 1.0f / std::sqrt(inputs),
        hash_combine(
            std::hash<std::string>()(slice.name), static_cast<uint64_t>(slice.rows.begin)));
    return;
  }
  const std::vector<float> ones(static_cast<size_t>(slice.cols.size), 1.0f);
  std::vector<uint8_t> bytes(static_cast<size_t>(dtype_bytes(slice.to.dtype, slice.cols.size)));
  narrow(ones, slice.to.dtype, bytes.data());
  device_.copy_to_device(slice.to.data, bytes);
}

}  // namespace millrace
