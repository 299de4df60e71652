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
  const std::lock_guard lock(*mutex_);
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
    const std::lock_guard lock(*mutex_);
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, color, key, &group), "MPI_Comm_split");
  }
  return make_mpi_group(MPI_Comm_c2f(group), mutex_);
}

std::unique_ptr<PeerComm> MpiWorld::peers() const {
  MPI_Comm copy;
  {
    const std::lock_guard lock(*mutex_);
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &copy), "MPI_Comm_dup");
  }
  return make_mpi_peers(MPI_Comm_c2f(copy), mutex_);
}

}  // namespace millrace
