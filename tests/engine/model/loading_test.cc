// A rank's slices of tensors that are larger than a piece and a band.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>

#include "engine/kernels/ops.h"
#include "engine/model/decoder.h"

namespace millrace {
namespace {

// Bytes that are a function of their place; quantized blocks' scales stay small numbers.
class MadeUpCheckpoint final : public Checkpoint {
 public:
  std::map<std::string, TensorInfo> tensors;
  using Checkpoint::config_;

  const TensorInfo* find(const std::string& name) const override {
    const auto found = tensors.find(name);
    return found == tensors.end() ? nullptr : &found->second;
  }
  void read(const std::string& name, Range rows, Range cols, uint8_t* to) const override {
    const TensorInfo& info = tensors.at(name);
    if (info.shape.size() == 1) {
      cols = rows;
      rows = {0, 1};
    }
    const int64_t begin = dtype_bytes(info.dtype, cols.begin);
    const int64_t bytes = dtype_bytes(info.dtype, cols.size);
    for (int64_t r = rows.begin; r < rows.begin + rows.size; ++r) {
      for (int64_t b = begin; b < begin + bytes; ++b) *to++ = byte(info.dtype, r, b);
    }
  }

 private:
  static uint8_t byte(DType dtype, int64_t row, int64_t at) {
    if (dtype == DType::kQ8_0 && at % 34 == 1) return 0x30;  // the scale's exponent
    return static_cast<uint8_t>(row * 31 + at * 7 + (row >> 8) + (at >> 8));
  }
};

class LoadingTest : public testing::Test {
 protected:
  // The slice as the checkpoint gives it at one go.
  std::vector<uint8_t> whole(const std::string& name, Range rows, Range cols) {
    const DType dtype = checkpoint_.find(name)->dtype;
    std::vector<uint8_t> bytes(static_cast<size_t>(rows.size * dtype_bytes(dtype, cols.size)));
    checkpoint_.read(name, rows, cols, bytes.data());
    return bytes;
  }

  MadeUpCheckpoint checkpoint_;
  std::unique_ptr<Device> device_ = make_cpu_device();
  std::atomic<int> pieces_{0};
};

TEST_F(LoadingTest, LargeTensorsComeInPiecesAndBands) {
  checkpoint_.tensors["large"] = {DType::kBF16, {70'000, 1000}};  // 140 MB: three pieces
  checkpoint_.tensors["norm"] = {DType::kF32, {5000}};
  checkpoint_.tensors["wide.weight"] = {DType::kF16, {3, 4'000'000}};  // a line exceeds a band
  WeightLoader loader(checkpoint_, *device_, [&] { ++pieces_; });
  const Range rows{100, 69'800}, cols{96, 800};
  const Tensor large = loader.matrix("large", rows, cols);
  const Tensor norm = loader.vector("norm", {1000, 3000});
  const Tensor wide = loader.matrix("wide.weight", {1, 2}, {0, 4'000'000});
  loader.load();
  EXPECT_EQ(std::memcmp(large.view.data, whole("large", rows, cols).data(),
                static_cast<size_t>(large.buffer.bytes())),
      0);
  EXPECT_EQ(std::memcmp(norm.view.data, whole("norm", {1000, 3000}, {0, 1}).data(), 12'000), 0);
  EXPECT_EQ(std::memcmp(wide.view.data, whole("wide.weight", {1, 2}, {0, 4'000'000}).data(),
                static_cast<size_t>(wide.buffer.bytes())),
      0);
  EXPECT_EQ(pieces_, 3 + 1 + 1);
}

TEST_F(LoadingTest, ASplitBlockIsWidened) {
  checkpoint_.tensors["split"] = {DType::kQ8_0, {30'000, 96}};
  WeightLoader loader(checkpoint_, *device_, [&] { ++pieces_; });
  const Range rows{1, 29'999}, cols{16, 48};
  const Tensor split = loader.matrix("split", rows, cols);
  loader.load();
  ASSERT_EQ(split.view.dtype, DType::kF32);
  std::vector<uint8_t> stored = whole("split", rows, {0, 96});
  std::vector<float> line(96);
  for (int64_t row = 0; row < rows.size; ++row) {
    widen_rows(TensorView(stored.data() + row * 102, DType::kQ8_0, {1, 96}), line.data());
    ASSERT_EQ(std::memcmp(split.view.row(row), line.data() + 16, 48 * 4), 0) << row;
  }
}

TEST_F(LoadingTest, ColumnsAreDealtInWholeBlocksWhereAllRanksGetSome) {
  checkpoint_.config_.num_layers = 2;
  checkpoint_.config_.intermediate_size = 1536;
  TensorInfo& first = checkpoint_.tensors["model.layers.0.mlp.down_proj.weight"];
  TensorInfo& second = checkpoint_.tensors["model.layers.1.mlp.down_proj.weight"];
  first = second = {DType::kF16, {576, 1536}};
  EXPECT_EQ(column_multiple(checkpoint_, 2), 32);
  second.dtype = DType::kQ5_0;
  EXPECT_EQ(column_multiple(checkpoint_, 2), 32);
  second.dtype = DType::kQ6K;
  EXPECT_EQ(column_multiple(checkpoint_, 6), 256);
  EXPECT_EQ(column_multiple(checkpoint_, 7), 32);
}

}  // namespace
}  // namespace millrace
