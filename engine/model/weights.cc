#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr int64_t kPieceBytes = 64 << 20;  // of a tensor that one thread reads
constexpr int64_t kBandBytes = 4 << 20;    // read and moved to the device at a time
constexpr unsigned kMaxThreads = 8;        // as many readers saturate a disk or a PCIe link

}  // namespace

void Linear::forward(Ops& ops, const TensorView& x, const TensorView& out) const {
  for (const Part& part : parts_) {
    const int64_t n = part.weight.view.rows();
    ops.linear(x, part.weight.view, part.bias.view, out.slice_cols(part.column, n));
  }
}

void Linear::forward_gated(Ops& ops, const TensorView& x, Activation act, const TensorView& scratch,
    const TensorView& out) const {
  if (parts_.size() == 1) {
    const Part& both = parts_.front();
    return ops.gated_linear(x, both.weight.view, both.bias.view, act, scratch, out);
  }
  forward(ops, x, scratch);
  ops.gate_mul(
      scratch.slice_cols(0, out.cols()), scratch.slice_cols(out.cols(), out.cols()), act, out);
}

void Linear::forward_add_norm(Ops& ops, TpOps& tp, const TensorView& x, const TensorView& scratch,
    const TensorView& hidden, const TensorView& post, const TensorView& norm, float eps,
    const TensorView& normed) const {
  if (post.data != nullptr) {
    forward(ops, x, scratch);
    tp.reduce(scratch);
    return ops.norm_add_norm(scratch, post, hidden, norm, eps, normed);
  }
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

Tensor WeightLoader::vector(const std::string& name, Range range, float add) {
  Tensor tensor = device_.tensor(DType::kF32, {range.size}, name);
  bytes_ += tensor.buffer.bytes();
  this->add(name, range, {0, 1}, tensor.view, add);
  return tensor;
}

Tensor WeightLoader::matrix(const std::string& name, Range rows, Range cols) {
  Tensor tensor = device_.tensor(held_dtype(name, cols), {rows.size, cols.size}, name);
  matrices_.push_back(tensor.view);
  bytes_ += tensor.buffer.bytes();
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
    matrices_.push_back(part.weight.view);
    bytes_ += part.weight.buffer.bytes() + part.bias.buffer.bytes();
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

void WeightLoader::add(
    const std::string& name, Range rows, Range cols, const TensorView& to, float add) {
  const TensorInfo* info = checkpoint_.find(name);
  CHECK(info != nullptr, "{} passed the shape check and is gone", name);
  // A vector is one line, whose columns are asked for as rows.
  if (info->shape.size() == 1) {
    slices_.push_back(
        {name, info, {0, 1}, rows, TensorView(to.data, to.dtype, {1, rows.size}), add});
    return;
  }
  if (info->dtype != to.dtype && !readable_as_stored(*info, cols)) {
    log::info("{}: columns {}+{} split a {} block; this rank holds them as {}", name, cols.begin,
        cols.size, dtype_info(info->dtype).name, dtype_info(to.dtype).name);
  }
  // In pieces, so that no thread is left alone with a large one.
  const int64_t line = std::max<int64_t>(1, dtype_bytes(info->dtype, info->shape.back()));
  const int64_t most =
      checkpoint_.is_dummy() ? rows.size : std::max<int64_t>(1, kPieceBytes / line);
  for (int64_t row = 0; row < rows.size; row += most) {
    const int64_t count = std::min(most, rows.size - row);
    slices_.push_back({name, info, {rows.begin + row, count}, cols, to.slice_rows(row, count)});
  }
}

// One thread's bands: while the device takes one, the next is read.
struct WeightLoader::Staging {
  explicit Staging(Device& to) : device(to) {}
  // Room that no copy reads any longer.
  uint8_t* room(int64_t bytes) {
    if (bands[turn].bytes() < bytes) {
      bands[turn] = device.allocate_host(std::max(bytes, kBandBytes), "loading");
    }
    return bands[turn].data();
  }
  // Sends what has been written to the room.
  void send(void* to, size_t bytes) {
    device.end_copies();
    device.begin_copy(to, {bands[turn].data(), bytes});
    turn = 1 - turn;
  }

  Device& device;
  Buffer bands[2];  // host
  int turn = 0;
  std::vector<uint8_t> stored;  // what is not held as stored: a band, and a line in fp32
  std::vector<float> wide;
};

void WeightLoader::load() {
  const auto began = std::chrono::steady_clock::now();
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    try {
      Staging staging(device_);
      for (size_t i = next++; i < slices_.size(); i = next++) {
        checkpoint_.is_dummy() ? make_up(slices_[i]) : read(slices_[i], staging);
        on_tensor_();
      }
      device_.end_copies();
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
  log::info("weights: {:.1f} MiB in {:.2f} s", static_cast<double>(bytes_) / (1 << 20),
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
}

// In bands of whole rows: as stored where the device holds it so, else widened to fp32, cut and
// narrowed.
void WeightLoader::read(const Slice& slice, Staging& staging) const {
  const DType stored = slice.info->dtype;
  const bool as_stored = stored == slice.to.dtype && slice.add == 0;
  const Range whole{0, slice.info->shape.back()};
  const Range cols = as_stored ? slice.cols : whole;
  const int64_t line_bytes = dtype_bytes(stored, cols.size);
  const int64_t out_line = dtype_bytes(slice.to.dtype, slice.cols.size);
  const int64_t band =
      std::clamp<int64_t>(kBandBytes / std::max<int64_t>({1, line_bytes, out_line}), 1,
          std::max<int64_t>(1, slice.rows.size));
  if (!as_stored) {
    staging.wide.resize(static_cast<size_t>(whole.size));
    staging.stored.resize(static_cast<size_t>(band * line_bytes));
  }
  const bool is_vector = slice.info->shape.size() == 1;
  for (int64_t row = 0; row < slice.rows.size; row += band) {
    const int64_t count = std::min(band, slice.rows.size - row);
    const Range rows{slice.rows.begin + row, count};
    uint8_t* room = staging.room(band * out_line);
    uint8_t* to = as_stored ? room : staging.stored.data();
    checkpoint_.read(slice.name, is_vector ? cols : rows, is_vector ? Range{0, 1} : cols, to);
    for (int64_t i = 0; !as_stored && i < count; ++i) {
      widen_rows(TensorView(to + i * line_bytes, stored, {1, whole.size}), staging.wide.data());
      for (float& value : staging.wide) value += slice.add;
      narrow({staging.wide.data() + slice.cols.begin, static_cast<size_t>(slice.cols.size)},
          slice.to.dtype, room + i * out_line);
    }
    staging.send(slice.to.row(row), static_cast<size_t>(count * out_line));
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
