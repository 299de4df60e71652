#include "comm/mpi_world.h"

#include <mpi.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/device_comm.h"
#include "engine/base/check.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

// MPI is started for one thread at a time: every call holds the process's one mutex. The thread
// that keeps sends moving (MpiPeers) only tries it, for whoever holds it moves them as well.
using MpiMutex = std::shared_ptr<std::mutex>;

// Throws Error(kWorkerLost) with MPI's words unless `result` is MPI_SUCCESS.
void check_mpi(int result, const char* verb) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(ExitCode::kWorkerLost,
      "{} failed: {}; another rank may have ended, its log comes first", verb,
      std::string_view(text, static_cast<size_t>(length)));
}

// Unless MPI has ended already.
void free_mpi_comm(MPI_Comm comm, std::mutex& mutex) {
  const std::lock_guard lock(mutex);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) MPI_Comm_free(&comm);
}

// What a collective gathers at once, over all ranks: bounds the memory, not the message.
constexpr int64_t kScratchFloats = 1 << 20;

// A tensor-parallel group, for ranks that compute on CPUs.
class MpiGroup final : public DeviceComm {
 public:
  MpiGroup(MPI_Comm comm, MpiMutex mutex) : comm_(comm), mutex_(std::move(mutex)) {
    const std::lock_guard lock(*mutex_);
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    counts_.resize(static_cast<size_t>(size_));
    offsets_.resize(static_cast<size_t>(size_));
    scratch_.resize(static_cast<size_t>(std::max<int64_t>(kScratchFloats, size_)));
  }
  ~MpiGroup() override { free_mpi_comm(comm_, *mutex_); }

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

  MPI_Comm comm_;
  MpiMutex mutex_;
  int rank_ = 0;
  int size_ = 1;
  std::vector<int> counts_;
  std::vector<int> offsets_;
  std::vector<float> scratch_;
};

constexpr std::chrono::microseconds kProgressInterval{50};

// Messages between ranks that compute on CPUs. MPI moves a large one only while its sender is
// inside some MPI call: a stage that sends and then computes, or waits for a plan, would leave the
// next stage starving, for ever at the end of a request. A thread of its own looks in every few
// microseconds while a send is on its way.
class MpiPeers final : public PeerComm {
 public:
  MpiPeers(MPI_Comm comm, MpiMutex mutex) : comm_(comm), mutex_(std::move(mutex)) {
    thread_ = std::thread([this] { keep_sends_moving(); });
  }

  ~MpiPeers() override {
    {
      const std::lock_guard lock(wake_mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0) {
      const std::lock_guard lock(*mutex_);
      for (Send& send : sends_) {
        if (send.request != MPI_REQUEST_NULL) MPI_Request_free(&send.request);
      }
    }
    free_mpi_comm(comm_, *mutex_);
  }

  SendToken send(std::span<const uint8_t> bytes, int to, int tag) override {
    CHECK(bytes.size() <= INT_MAX, "a message of {} bytes", bytes.size());
    const std::lock_guard lock(*mutex_);
    Send send{next_token_++, MPI_REQUEST_NULL};
    check_mpi(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, tag, comm_,
                  &send.request),
        "MPI_Isend");
    check_mpi(test(send), "MPI_Test");
    sends_.push_back(send);
    if (send.request != MPI_REQUEST_NULL) {
      {
        const std::lock_guard wake_lock(wake_mutex_);
        pending_ = true;
      }
      wake_.notify_one();
    }
    return send.token;
  }

  void wait_send(SendToken token) override {
    const std::lock_guard lock(*mutex_);
    const auto it = std::find_if(
        sends_.begin(), sends_.end(), [token](const Send& send) { return send.token == token; });
    CHECK(it != sends_.end(), "send {} is not known or was waited for", token);
    check_mpi(MPI_Wait(&it->request, MPI_STATUS_IGNORE), "MPI_Wait");
    check_mpi(background_error_, "MPI_Test");
    sends_.erase(it);
  }

  void receive(std::span<uint8_t> bytes, int from, int tag) override {
    CHECK(bytes.size() <= INT_MAX, "a message of {} bytes", bytes.size());
    const std::lock_guard lock(*mutex_);
    MPI_Status status;
    const int result =
        MPI_Recv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, from, tag, comm_, &status);
    int error_class = MPI_SUCCESS;
    if (result != MPI_SUCCESS) MPI_Error_class(result, &error_class);
    CHECK(error_class != MPI_ERR_TRUNCATE, "rank {} sent more than {} bytes", from, bytes.size());
    check_mpi(result, "MPI_Recv");
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    CHECK(static_cast<size_t>(count) == bytes.size(), "rank {} sent {} bytes, {} are due", from,
        count, bytes.size());
  }

 private:
  struct Send {
    SendToken token;
    MPI_Request request;  // MPI_REQUEST_NULL once it has left
  };

  // With the mutex held.
  static int test(Send& send) {
    int done = 0;
    return MPI_Test(&send.request, &done, MPI_STATUS_IGNORE);
  }

  void keep_sends_moving() {
    std::unique_lock wake_lock(wake_mutex_);
    for (;;) {
      wake_.wait(wake_lock, [this] { return stop_ || pending_; });
      wake_.wait_for(wake_lock, kProgressInterval, [this] { return stop_; });
      if (stop_) return;
      wake_lock.unlock();
      test_all();
      wake_lock.lock();
    }
  }

  void test_all() {
    const std::unique_lock lock(*mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;  // the compute thread is in MPI and moves them
    bool left = false;
    for (Send& send : sends_) {
      if (send.request == MPI_REQUEST_NULL) continue;
      if (const int result = test(send); result != MPI_SUCCESS) background_error_ = result;
      left = left || send.request != MPI_REQUEST_NULL;
    }
    const std::lock_guard wake_lock(wake_mutex_);  // under mutex_, as in send()
    pending_ = left && background_error_ == MPI_SUCCESS;
  }

  MPI_Comm comm_;
  MpiMutex mutex_;
  // Guarded by mutex_.
  std::vector<Send> sends_;  // few: at most two per lane
  SendToken next_token_ = 0;
  int background_error_ = MPI_SUCCESS;
  // Guarded by wake_mutex_, which is taken after mutex_.
  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool pending_ = false;
  bool stop_ = false;
  std::thread thread_;
};

// mpirun; srun with PMIx; srun with PMI-2 and Hydra. SLURM_PROCID alone says nothing: a batch
// script has it too.
constexpr const char* kLaunchers[][2] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMIX_RANK", "SLURM_STEP_NUM_TASKS"}, {"PMI_RANK", "PMI_SIZE"}};

int number_in(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return -1;
  int value = -1;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  return error == std::errc() && rest == end ? value : -1;
}

struct Place {
  int rank = -1;
  int size = -1;
};

Place find_place() {
  for (const auto& [rank, size] : kLaunchers) {
    const Place place{number_in(rank), number_in(size)};
    if (place.rank >= 0 && place.size >= 1) return place;
  }
  return {};
}

}  // namespace

MpiWorld::MpiWorld() : exceptions_(std::uncaught_exceptions()) {
  int provided = MPI_THREAD_SINGLE;
  // SERIALIZED: the loop may run on another thread than main, and sends are kept moving by a
  // thread of their own; never two at once.
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
    throw Error(ExitCode::kLayout, "MPI cannot start here; run the program with mpirun");
  }
  if (provided < MPI_THREAD_SERIALIZED) {
    throw Error(ExitCode::kLayout,
        "this MPI library was built without thread support; use Open MPI 4.1 or newer");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // inherited by what is made of it
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
  MPI_Comm host_comm;
  check_mpi(
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host_comm),
      "MPI_Comm_split_type");
  MPI_Comm_rank(host_comm, &local_rank_);
  MPI_Comm_size(host_comm, &local_size_);
  MPI_Comm_free(&host_comm);
}

MpiWorld::~MpiWorld() {
  // MPI_Finalize waits for all ranks. One that leaves by an exception must not: the others may be
  // in a collective that it will never join. mpirun ends them when this process is gone.
  if (std::uncaught_exceptions() > exceptions_) return;
  const std::lock_guard lock(*mutex_);
  MPI_Finalize();
}

Bytes MpiWorld::broadcast(const Bytes& bytes, int root) const {
  CHECK(root >= 0 && root < size_, "root {} of {}", root, size_);
  const std::lock_guard lock(*mutex_);
  Bytes out = rank_ == root ? bytes : Bytes();
  uint64_t size = out.size();
  check_mpi(MPI_Bcast(&size, sizeof size, MPI_BYTE, root, MPI_COMM_WORLD), "MPI_Bcast");
  CHECK(size <= INT_MAX, "a broadcast of {} bytes", size);  // MPI counts are ints
  out.resize(size);
  check_mpi(
      MPI_Bcast(out.data(), static_cast<int>(size), MPI_BYTE, root, MPI_COMM_WORLD), "MPI_Bcast");
  return out;
}

std::unique_ptr<DeviceComm> MpiWorld::split(int color, int key) const {
  CHECK(color >= 0, "color {}", color);
  MPI_Comm group;
  {
    const std::lock_guard lock(*mutex_);
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, color, key, &group), "MPI_Comm_split");
  }
  return std::make_unique<MpiGroup>(group, mutex_);
}

std::unique_ptr<PeerComm> MpiWorld::peers() const {
  MPI_Comm copy;
  {
    const std::lock_guard lock(*mutex_);
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
  }
  return std::make_unique<MpiPeers>(copy, mutex_);
}

bool launched_by_mpi() { return launcher_rank() >= 0; }

int launcher_rank() { return find_place().rank; }

int launcher_size() { return find_place().size; }

}  // namespace millrace
