// Point-to-point messages over MPI, for ranks that compute on CPUs.
//
// MPI moves a large message only while its sender is inside some MPI call: a stage that sends and
// then computes, or waits for a plan, would leave the next stage starving, for ever at the end of a
// request. A thread of its own looks in every few microseconds while a send is on its way.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <thread>
#include <vector>

#include "comm/mpi_comm.h"
#include "engine/base/check.h"

namespace millrace {

namespace {

constexpr std::chrono::microseconds kProgressInterval{50};

class MpiPeers final : public PeerComm {
 public:
  MpiPeers(int handle, MpiMutex mutex)
      : handle_(handle), comm_(MPI_Comm_f2c(handle)), mutex_(std::move(mutex)) {
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
    free_mpi_comm(handle_, *mutex_);
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

  int handle_;
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

}  // namespace

std::unique_ptr<PeerComm> make_mpi_peers(int handle, MpiMutex mutex) {
  return std::make_unique<MpiPeers>(handle, std::move(mutex));
}

}  // namespace millrace
