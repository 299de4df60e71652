#include "engine/model/weights.h"

#include <fmt/format.h>

#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

void Linear::forward(Ops& ops, const TensorView& x, const TensorView& out) const {
  for (const Part& part : parts_) {
    const int64_t n = part.weight.view.rows();
    ops.linear(x, part.weight.view, part.bias.view, out.slice_cols(part.column, n));
  }
}

WeightLoader::WeightLoader(
    const Checkpoint& checkpoint, Device& device, std::function<void()> on_tensor)
    : checkpoint_(checkpoint), device_(device), on_tensor_(std::move(on_tensor)) {}

Tensor WeightLoader::vector(const std::string& name, Range range) {
  Tensor tensor = device_.tensor(DType::kF32, {range.size}, name);
  read_slice(name, range, {0, 1}, DType::kF32, tensor.view);
  return tensor;
}

Tensor WeightLoader::matrix(const std::string& name, Range rows, Range cols) {
  const TensorInfo* info = checkpoint_.find(name);
  CHECK(info != nullptr, "{} passed the shape check and is gone", name);
  const DType dtype = readable_as_stored(*info, cols) ? info->dtype : DType::kF32;
  Tensor tensor = device_.tensor(dtype, {rows.size, cols.size}, name);
  read_slice(name, rows, cols, dtype, tensor.view);
  return tensor;
}

DType WeightLoader::slice_dtype(const LinearSlice& slice) const {
  const TensorInfo* info = checkpoint_.find(slice.name + ".weight");
  CHECK(info != nullptr, "{} passed the shape check and is gone", slice.name);
  return readable_as_stored(*info, slice.cols) ? info->dtype : DType::kF32;
}

Linear WeightLoader::linear(std::span<const LinearSlice> slices) {
  Linear linear;
  for (size_t first = 0; first < slices.size();) {
    // The run of slices that can be one matrix: same dtype, all with or all without a bias.
    const DType dtype = slice_dtype(slices[first]);
    const bool with_bias = slices[first].with_bias;
    size_t end = first;
    int64_t rows = 0;
    while (end < slices.size() && slice_dtype(slices[end]) == dtype &&
           slices[end].with_bias == with_bias) {
      rows += slices[end++].rows.size;
    }
    Linear::Part part;
    part.column = linear.out_features_;
    part.weight = device_.tensor(dtype, {rows, slices[first].cols.size}, slices[first].name);
    if (with_bias) part.bias = device_.tensor(DType::kF32, {rows}, slices[first].name + ".bias");
    int64_t row = 0;
    for (const LinearSlice& slice : slices.subspan(first, end - first)) {
      CHECK(slice.cols == slices[first].cols, "matrices side by side share their input");
      read_slice(slice.name + ".weight", slice.rows, slice.cols, dtype,
          part.weight.view.slice_rows(row, slice.rows.size));
      if (with_bias) {
        read_slice(slice.name + ".bias", slice.rows, {0, 1}, DType::kF32,
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

void WeightLoader::read_slice(
    const std::string& name, Range rows, Range cols, DType dtype, const TensorView& to) {
  const TensorInfo* info = checkpoint_.find(name);
  CHECK(info != nullptr, "{} passed the shape check and is gone", name);
  if (info->dtype == dtype) {
    checkpoint_.read(name, rows, cols, to.data);
  } else {
    CHECK(dtype == DType::kF32);
    // Whole rows are read and widened, a band at a time, then the columns are cut out.
    const int64_t width = info->shape.size() > 1 ? info->shape[1] : 1;
    if (is_quantized(info->dtype)) {
      log::info("{}: columns {}+{} split a {} block; this rank holds them as f32", name, cols.begin,
          cols.size, dtype_info(info->dtype).name);
    }
    // A vector is one row to widen; a matrix is widened row by row.
    const int64_t lines = info->shape.size() > 1 ? rows.size : 1;
    const int64_t line = info->shape.size() > 1 ? width : rows.size;
    std::vector<uint8_t> stored(static_cast<size_t>(dtype_bytes(info->dtype, line)));
    std::vector<float> wide(static_cast<size_t>(line));
    for (int64_t i = 0; i < lines; ++i) {
      const Range row = info->shape.size() > 1 ? Range{rows.begin + i, 1} : rows;
      checkpoint_.read(name, row, {0, width}, stored.data());
      widen_rows(TensorView(stored.data(), info->dtype, {1, line}), wide.data());
      const int64_t begin = info->shape.size() > 1 ? cols.begin : 0;
      const int64_t count = info->shape.size() > 1 ? cols.size : line;
      std::memcpy(to.data + i * count * 4, wide.data() + begin, static_cast<size_t>(count) * 4);
    }
  }
  bytes_ += dtype_bytes(dtype, to.count());
  on_tensor_();
}

}  // namespace millrace
