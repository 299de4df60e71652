// A tensor-parallel group over MPI, for ranks that compute on CPUs.
#include <mpi.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <vector>

#include "comm/mpi_comm.h"
#include "engine/base/check.h"

namespace millrace {

namespace {

// What a collective gathers at once, over all ranks: bounds the memory, not the message.
constexpr int64_t kScratchFloats = 1 << 20;

class MpiGroup final : public DeviceComm {
 public:
  MpiGroup(int handle, MpiMutex mutex)
      : handle_(handle), comm_(MPI_Comm_f2c(handle)), mutex_(std::move(mutex)) {
    const std::lock_guard lock(*mutex_);
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    counts_.resize(static_cast<size_t>(size_));
    offsets_.resize(static_cast<size_t>(size_));
    scratch_.resize(static_cast<size_t>(std::max<int64_t>(kScratchFloats, size_)));
  }
  ~MpiGroup() override { free_mpi_comm(handle_, *mutex_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  // MPI_Allreduce may add in any order; gathering and adding in rank order gives the same bits on
  // every rank, whatever the message is cut into.
  void all_reduce_sum(const TensorView& x) override {
    CHECK(x.dtype == DType::kF32 && x.contiguous(), "all_reduce_sum wants contiguous f32");
    if (size_ == 1) return;
    const std::lock_guard lock(*mutex_);
    float* data = x.as<float>();
    const int64_t max_piece = static_cast<int64_t>(scratch_.size()) / size_;
    for (int64_t begin = 0; begin < x.count(); begin += max_piece) {
      const int64_t piece = std::min(max_piece, x.count() - begin);
      check_mpi(MPI_Allgather(data + begin, static_cast<int>(piece), MPI_FLOAT, scratch_.data(),
                    static_cast<int>(piece), MPI_FLOAT, comm_),
          "MPI_Allgather");
      sum_in_rank_order(data + begin, piece);
    }
  }

  void all_gather_cols(
      const TensorView& mine, std::span<const int64_t> cols, const TensorView& out) override {
    int64_t total = 0;
    CHECK(static_cast<int>(cols.size()) == size_, "{} widths for {} ranks", cols.size(), size_);
    for (const int64_t width : cols) total += width;
    CHECK(mine.dtype == DType::kF32 && mine.contiguous() && out.dtype == DType::kF32 &&
              out.contiguous() && mine.rows() == out.rows() &&
              mine.cols() == cols[static_cast<size_t>(rank_)] && out.cols() == total &&
              total <= INT_MAX,
        "all_gather_cols of [{}, {}] into [{}, {}]", mine.rows(), mine.cols(), out.rows(),
        out.cols());
    const std::lock_guard lock(*mutex_);
    const int64_t max_rows = std::max<int64_t>(1, kScratchFloats / std::max<int64_t>(1, total));
    for (int64_t begin = 0; begin < mine.rows(); begin += max_rows) {
      gather_rows(mine, cols, out, begin, std::min(max_rows, mine.rows() - begin));
    }
  }

 private:
  void sum_in_rank_order(float* out, int64_t count) const {
    std::memcpy(out, scratch_.data(), static_cast<size_t>(count) * sizeof(float));
    for (int r = 1; r < size_; ++r) {
      const float* part = scratch_.data() + r * count;
      for (int64_t i = 0; i < count; ++i) out[i] += part[i];
    }
  }

  void gather_rows(const TensorView& mine, std::span<const int64_t> cols, const TensorView& out,
      int64_t begin, int64_t rows) {
    int offset = 0;
    for (size_t r = 0; r < cols.size(); ++r) {
      counts_[r] = static_cast<int>(rows * cols[r]);
      offsets_[r] = offset;
      offset += counts_[r];
    }
    // One row is laid out as it comes; several come rank by rank and are dealt into rows.
    float* to = rows == 1 ? out.row_as<float>(begin) : scratch_.data();
    check_mpi(MPI_Allgatherv(mine.row(begin), counts_[static_cast<size_t>(rank_)], MPI_FLOAT, to,
                  counts_.data(), offsets_.data(), MPI_FLOAT, comm_),
        "MPI_Allgatherv");
    if (rows == 1) return;
    int64_t column = 0;
    for (size_t r = 0; r < cols.size(); ++r) {
      for (int64_t t = 0; t < rows; ++t) {
        std::memcpy(out.row_as<float>(begin + t) + column, to + offsets_[r] + t * cols[r],
            static_cast<size_t>(cols[r]) * sizeof(float));
      }
      column += cols[r];
    }
  }

  int handle_;
  MPI_Comm comm_;
  MpiMutex mutex_;
  int rank_ = 0;
  int size_ = 1;
  std::vector<int> counts_;
  std::vector<int> offsets_;
  std::vector<float> scratch_;
};

}  // namespace

std::unique_ptr<DeviceComm> make_mpi_group(int handle, MpiMutex mutex) {
  return std::make_unique<MpiGroup>(handle, std::move(mutex));
}

}  // namespace millrace
