// Inside the room: how MpiWorld makes the data plane's two classes. MPI handles cross as Fortran
// integers, so that mpi.h is included by .cc files only.
//
// MPI is started for one thread at a time: every call holds the process's one mutex. The thread
// that keeps sends moving (mpi_peers.cc) only tries it, for whoever holds it moves them as well.
#pragma once

#include <memory>
#include <mutex>

#include "comm/device_comm.h"

namespace millrace {

using MpiMutex = std::shared_ptr<std::mutex>;

// Throws Error(kWorkerLost) with MPI's words unless `result` is MPI_SUCCESS.
void check_mpi(int result, const char* verb);
// Frees a communicator unless MPI has ended already.
void free_mpi_comm(int handle, std::mutex& mutex);

// Both take over the communicator.
std::unique_ptr<DeviceComm> make_mpi_group(int handle, MpiMutex mutex);
std::unique_ptr<PeerComm> make_mpi_peers(int handle, MpiMutex mutex);

}  // namespace millrace
