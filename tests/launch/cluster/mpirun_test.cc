#include "launch/cluster/launcher.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

TEST(Mpirun, LocalRanksNeedNoSshAndNoFreeCore) {
  EXPECT_EQ(joined(mpirun_arguments({.num_ranks = 8, .program = "/opt/millrace"})),
      "mpirun -np 8 --quiet --bind-to none --mca plm isolated --oversubscribe /opt/millrace "
      "worker");
}

TEST(Mpirun, RanksOfAStageStayTogetherOnAHost) {
  EXPECT_EQ(joined(mpirun_arguments({.num_ranks = 2,
                .program = "/opt/millrace",
                .hostfile = "hosts.txt",
                .extra_args = {"--mca", "btl", "tcp,self"},
                .quiet = false})),
      "mpirun -np 2 --bind-to none --hostfile hosts.txt --map-by slot --mca btl tcp,self "
      "/opt/millrace worker");
}

TEST(Mpirun, RootIsAllowedOnlyAsRoot) {
  const std::string option = "--allow-run-as-root";
  EXPECT_EQ(joined(mpirun_arguments({.as_root = false})).find(option), std::string::npos);
  EXPECT_NE(joined(mpirun_arguments({.as_root = true})).find(option), std::string::npos);
}

}  // namespace
}  // namespace millrace
