#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>

#include "launch/bench/bench.h"

namespace millrace {

namespace {

// Seconds that a figure takes at least; 0 where nothing is known.
double limit_of(const Figure& figure, const DeviceLimits& limits, bool comm) {
  const double rate = comm ? limits.peer_bytes_per_s : limits.read_bytes_per_s;
  const double moving = rate > 0 ? figure.bytes / rate : 0;
  return std::max(moving, limits.flops > 0 ? figure.flop / limits.flops : 0);
}

}  // namespace

BenchReport report_figures(const std::vector<Figure>& figures, const DeviceLimits& limits,
    bool comm, const std::string& title) {
  BenchReport report{fmt::format("{}\n  {:58}{:>10}{:>9}{:>9}{:>10}{:>9}\n", title, "", "us",
                         "GB/s", "TFLOP/s", "limit us", "fraction"),
      ""};
  boost::json::array list;
  for (const Figure& figure : figures) {
    const double limit = limit_of(figure, limits, comm);
    const double fraction = figure.seconds > 0 ? limit / figure.seconds : 0;
    const double gb = figure.seconds > 0 ? figure.bytes / figure.seconds * 1e-9 : 0;
    const double tflops = figure.seconds > 0 ? figure.flop / figure.seconds * 1e-12 : 0;
    report.table += fmt::format("  {:58}{:10.1f}{:9.1f}{:9.2f}{:10.1f}{:9.2f}\n", figure.name,
        figure.seconds * 1e6, gb, tflops, limit * 1e6, fraction);
    list.push_back({{"name", figure.name}, {"us", figure.seconds * 1e6}, {"gb_per_s", gb},
        {"tflops", tflops}, {"limit_us", limit * 1e6}, {"fraction_of_limit", fraction}});
  }
  report.table += fmt::format("  limits: read {:.1f} GB/s", limits.read_bytes_per_s * 1e-9);
  if (limits.flops > 0) report.table += fmt::format(", {:.1f} TFLOP/s", limits.flops * 1e-12);
  if (comm) report.table += fmt::format(", peer copy {:.1f} GB/s", limits.peer_bytes_per_s * 1e-9);
  report.table += "\n";
  report.json = boost::json::serialize(boost::json::object{{"title", title},
      {"figures", std::move(list)}, {"read_bandwidth_gb_per_s", limits.read_bytes_per_s * 1e-9},
      {"bf16_tflops", limits.flops * 1e-12},
      {"peer_copy_gb_per_s", limits.peer_bytes_per_s * 1e-9}});
  return report;
}

}  // namespace millrace
