#include "comm/mpi_world.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "comm/mpi_comm.h"
#include "engine/base/check.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxPieceBytes = 1 << 30;  // MPI counts are ints

}  // namespace

void check_mpi(int result, const char* verb) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(ExitCode::kWorkerLost,
      "{} failed: {}; another rank may have ended, its log comes first", verb,
      std::string_view(text, static_cast<size_t>(length)));
}

void free_mpi_comm(int handle, std::mutex& mutex) {
  const std::lock_guard lock(mutex);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0) return;
  MPI_Comm comm = MPI_Comm_f2c(handle);
  MPI_Comm_free(&comm);
}

struct MpiWorld::Impl {
  MpiMutex mutex = std::make_shared<std::mutex>();
  int exceptions = std::uncaught_exceptions();
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
};

MpiWorld::MpiWorld() : impl_(std::make_unique<Impl>()) {
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
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &impl_->rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &impl_->size), "MPI_Comm_size");
  MPI_Comm host_comm;
  check_mpi(MPI_Comm_split_type(
                MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, impl_->rank, MPI_INFO_NULL, &host_comm),
      "MPI_Comm_split_type");
  MPI_Comm_rank(host_comm, &impl_->local_rank);
  MPI_Comm_size(host_comm, &impl_->local_size);
  MPI_Comm_free(&host_comm);
}

MpiWorld::~MpiWorld() {
  // MPI_Finalize waits for all ranks. One that leaves by an exception must not: the others may be
  // in a collective that it will never join. mpirun ends them when this process is gone.
  if (std::uncaught_exceptions() > impl_->exceptions) return;
  const std::lock_guard lock(*impl_->mutex);
  MPI_Finalize();
}

int MpiWorld::rank() const { return impl_->rank; }
int MpiWorld::size() const { return impl_->size; }
int MpiWorld::local_rank() const { return impl_->local_rank; }
int MpiWorld::local_size() const { return impl_->local_size; }

Bytes MpiWorld::broadcast(const Bytes& bytes, int root) const {
  CHECK(root >= 0 && root < impl_->size, "root {} of {}", root, impl_->size);
  const std::lock_guard lock(*impl_->mutex);
  Bytes out = impl_->rank == root ? bytes : Bytes();
  uint64_t size = out.size();
  check_mpi(MPI_Bcast(&size, sizeof size, MPI_BYTE, root, MPI_COMM_WORLD), "MPI_Bcast");
  out.resize(size);
  for (uint64_t begin = 0; begin < size; begin += kMaxPieceBytes) {
    const uint64_t piece = std::min(kMaxPieceBytes, size - begin);
    check_mpi(
        MPI_Bcast(out.data() + begin, static_cast<int>(piece), MPI_BYTE, root, MPI_COMM_WORLD),
        "MPI_Bcast");
  }
  return out;
}

void MpiWorld::barrier() const {
  const std::lock_guard lock(*impl_->mutex);
  check_mpi(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier");
}

// Takes no lock: another thread may be waiting inside MPI for the very rank that is gone.
void MpiWorld::abort(int exit_code) const {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

std::unique_ptr<DeviceComm> MpiWorld::split(int color, int key) const {
  CHECK(color >= 0, "color {}", color);
  MPI_Comm group;
  {
    const std::lock_guard lock(*impl_->mutex);
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, color, key, &group), "MPI_Comm_split");
  }
  return make_mpi_group(MPI_Comm_c2f(group), impl_->mutex);
}

std::unique_ptr<PeerComm> MpiWorld::peers() const {
  MPI_Comm copy;
  {
    const std::lock_guard lock(*impl_->mutex);
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
  }
  return make_mpi_peers(MPI_Comm_c2f(copy), impl_->mutex);
}

}  // namespace millrace
