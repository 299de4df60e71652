// The main of `millrace worker` and of ranks > 0 in mode 3.
#pragma once

namespace millrace {

// Joins MPI, learns key and address (rank 0 from its standard input, the others from rank 0), dials
// the coordinator and runs the worker. Returns the exit code; throws Error before the link stands.
int worker_main();

}  // namespace millrace
