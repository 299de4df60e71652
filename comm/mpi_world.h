// The launch plane: MPI_Init to MPI_Finalize, ranks, hosts and small broadcasts. Owned by main();
// MPI is called from the main thread and, once the loop runs, from the compute thread only. When
// MPI fails, every verb throws Error(kWorkerLost) with its words.
#pragma once

#include <memory>
#include <mutex>

#include "engine/base/bytes.h"

namespace millrace {

class DeviceComm;
class PeerComm;

class MpiWorld {
 public:
  // Throws Error(kLayout) when MPI cannot start here.
  MpiWorld();
  // Waits for all ranks to come here (MPI_Finalize), except when an exception is on its way. What
  // split() and peers() made is destroyed before. A rank that leaves alone ends its
  // process instead.
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks on this host
  int local_size() const { return local_size_; }

  // Rank `root`'s bytes on every rank; collective.
  Bytes broadcast(const Bytes& bytes, int root) const;

  // Collective: the ranks of equal `color`, ordered by `key`, as a group of the data plane.
  std::unique_ptr<DeviceComm> split(int color, int key) const;
  // Point to point between all ranks of the job, in a context of its own. Collective.
  std::unique_ptr<PeerComm> peers() const;

 private:
  std::shared_ptr<std::mutex> mutex_ = std::make_shared<std::mutex>();  // MpiMutex
  int exceptions_;                                                      // on their way at the start
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
};

// True when this process was started by mpirun or srun (environment only; MPI is not touched).
bool launched_by_mpi();
// Rank and size as the launcher's environment tells them; -1 when not launched by one.
int launcher_rank();
int launcher_size();

}  // namespace millrace
