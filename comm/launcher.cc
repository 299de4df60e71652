// What the launcher's environment tells before MPI is started.
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "comm/mpi_world.h"

namespace millrace {

namespace {

// mpirun; srun with PMIx; srun with PMI-2 and Hydra. SLURM_PROCID alone says nothing: a batch
// script has it too.
struct Launcher {
  const char* rank;
  const char* size;
};
constexpr Launcher kLaunchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMIX_RANK", "SLURM_STEP_NUM_TASKS"},
    {"PMI_RANK", "PMI_SIZE"},
};

int number_in(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return -1;
  int value = -1;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  return error == std::errc() && rest == end ? value : -1;
}

const Launcher* find_launcher() {
  for (const Launcher& launcher : kLaunchers) {
    if (number_in(launcher.rank) >= 0 && number_in(launcher.size) >= 1) return &launcher;
  }
  return nullptr;
}

}  // namespace

bool launched_by_mpi() { return find_launcher() != nullptr; }

int launcher_rank() {
  const Launcher* launcher = find_launcher();
  return launcher != nullptr ? number_in(launcher->rank) : -1;
}

int launcher_size() {
  const Launcher* launcher = find_launcher();
  return launcher != nullptr ? number_in(launcher->size) : -1;
}

}  // namespace millrace
