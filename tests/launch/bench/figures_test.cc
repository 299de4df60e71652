#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "launch/bench/bench.h"

namespace millrace {
namespace {

namespace json = boost::json;

constexpr DeviceLimits kLimits{.read_bytes_per_s = 4e12, .flops = 8e14, .peer_bytes_per_s = 4e11};

json::object first_figure(const Figure& figure, const DeviceLimits& limits, bool comm) {
  const BenchReport report = report_figures({figure}, limits, comm, "a shape");
  EXPECT_NE(report.table.find(figure.name), std::string::npos);
  const json::object all = json::parse(report.json).as_object();
  EXPECT_DOUBLE_EQ(all.at("read_bandwidth_gb_per_s").to_number<double>(), 4000);
  return all.at("figures").as_array().at(0).as_object();
}

TEST(Figures, TheLimitIsTheLongerOfReadingAndComputing) {
  const auto expect = [](const Figure& figure, double limit_us, double fraction) {
    const json::object made = first_figure(figure, kLimits, /*comm=*/false);
    EXPECT_DOUBLE_EQ(made.at("limit_us").to_number<double>(), limit_us);
    EXPECT_DOUBLE_EQ(made.at("fraction_of_limit").to_number<double>(), fraction);
  };
  expect({"reads", 200e-6, 4e8, 1e9}, 100, 0.5);
  expect({"computes", 400e-6, 4e8, 1.6e11}, 200, 0.5);
}

TEST(Figures, CommunicationIsHeldAgainstTheLinkBetweenTwo) {
  const json::object made = first_figure({"all-reduce", 50e-6, 4e6, 0}, kLimits, /*comm=*/true);
  EXPECT_DOUBLE_EQ(made.at("limit_us").to_number<double>(), 10);
  EXPECT_DOUBLE_EQ(made.at("fraction_of_limit").to_number<double>(), 0.2);
  EXPECT_DOUBLE_EQ(made.at("gb_per_s").to_number<double>(), 80);
}

TEST(Figures, WhatWasNotMeasuredIsNoLimit) {
  const DeviceLimits cpu{.read_bytes_per_s = 4e12};
  const json::object made = first_figure({"computes", 400e-6, 4e6, 1.6e15}, cpu, /*comm=*/false);
  EXPECT_DOUBLE_EQ(made.at("limit_us").to_number<double>(), 1);
}

}  // namespace
}  // namespace millrace
