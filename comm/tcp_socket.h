// What every TCP socket of the control plane is set to. Any thread.
#pragma once

namespace millrace {

// No delay for small frames; a host that vanished without a word is noticed within half a minute
// (a process that ended or was killed, at once).
void tune_tcp_socket(int fd);

}  // namespace millrace
