// What the launcher's environment tells, and this host's addresses.
#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "comm/link.h"
#include "comm/mpi_world.h"

namespace millrace {
namespace {

class Launcher : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK",
             "PMI_RANK", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}) {
      unsetenv(name);
    }
  }
};

TEST_F(Launcher, NoneIsNoRank) {
  setenv("SLURM_PROCID", "0", 1);  // a batch script's, without srun
  EXPECT_FALSE(launched_by_mpi());
  EXPECT_EQ(launcher_rank(), -1);
  EXPECT_EQ(launcher_size(), -1);
}

TEST_F(Launcher, MpirunAndSrun) {
  setenv("PMIX_RANK", "5", 1);
  setenv("SLURM_STEP_NUM_TASKS", "8", 1);
  EXPECT_TRUE(launched_by_mpi());
  EXPECT_EQ(launcher_rank(), 5);
  EXPECT_EQ(launcher_size(), 8);
  setenv("OMPI_COMM_WORLD_RANK", "3", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
  EXPECT_EQ(launcher_rank(), 3);
  EXPECT_EQ(launcher_size(), 4);
}

TEST_F(Launcher, NonsenseIsNoRank) {
  for (const char* bad : {"", "-1", "3x", "99999999999"}) {
    setenv("OMPI_COMM_WORLD_RANK", bad, 1);
    setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
    EXPECT_FALSE(launched_by_mpi()) << bad;
  }
}

TEST(LocalAddresses, AreNumbersAPeerCanDial) {
  EXPECT_EQ(local_addresses(/*local_only=*/true), (std::vector<std::string>{"127.0.0.1"}));
  const auto addresses = local_addresses(/*local_only=*/false);
  ASSERT_FALSE(addresses.empty());
  for (const std::string& address : addresses) {
    unsigned char raw[16];
    const bool ipv4 = inet_pton(AF_INET, address.c_str(), raw) == 1;
    EXPECT_TRUE(ipv4 || inet_pton(AF_INET6, address.c_str(), raw) == 1) << address;
    EXPECT_TRUE(addresses.size() == 1 || !address.starts_with("127.")) << address;
  }
}

}  // namespace
}  // namespace millrace
