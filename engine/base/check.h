// CHECK: a broken invariant of ours. It prints the values, where, and the scope, then ends the
// process; it is never used for what a file, the network or a client can cause.
#pragma once

#include <fmt/format.h>

#include <source_location>
#include <string>
#include <string_view>

namespace millrace {

// Prints "CHECK failed: <expression>: <message> at file:line (rank r, step s)" and aborts.
[[noreturn]] void check_failed(
    std::string_view expression, std::string_view message, std::source_location where);

// What check_failed prints besides the place: set once per process, updated per step.
void set_check_scope(int rank);
void set_check_step(uint64_t step);

}  // namespace millrace

#define CHECK(condition, ...)                                                          \
  do {                                                                                 \
    if (!(condition)) [[unlikely]] {                                                   \
      ::millrace::check_failed(                                                        \
          #condition, ::fmt::format("" __VA_ARGS__), std::source_location::current()); \
    }                                                                                  \
  } while (false)
