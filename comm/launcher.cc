// What the launcher's environment tells before MPI is started.
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "comm/mpi_world.h"

namespace millrace {

namespace {

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

bool launched_by_mpi() { return launcher_rank() >= 0; }

int launcher_rank() { return find_place().rank; }

int launcher_size() { return find_place().size; }

}  // namespace millrace
