// Bytes, files, thread pool, status: what every room trusts.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "engine/base/bytes.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/siphash.h"
#include "engine/base/thread_pool.h"

namespace millrace {
namespace {

TEST(Bytes, RoundTripAndEveryTruncation) {
  ByteWriter out;
  out.put<uint16_t>(7);
  out.put_string("mill");
  const std::vector<int64_t> values = {1, -2, int64_t{1} << 60};
  out.put_array(std::span<const int64_t>(values));
  const Bytes bytes = out.take();

  ByteReader in(bytes);
  EXPECT_EQ(in.get<uint16_t>(), 7);
  EXPECT_EQ(in.get_string(), "mill");
  EXPECT_EQ(in.get_array<int64_t>(), values);
  EXPECT_TRUE(in.done());

  for (size_t size = 0; size < bytes.size(); ++size) {
    ByteReader torn{std::span<const uint8_t>(bytes).first(size)};
    torn.get<uint16_t>();
    torn.get_string();
    torn.get_array<int64_t>();
    EXPECT_FALSE(torn.ok()) << size;
  }
}

TEST(Bytes, ACountBeyondTheFrameTakesNoMemory) {
  ByteWriter out;
  out.put<uint32_t>(0xffffffff);
  const Bytes bytes = out.take();
  ByteReader in(bytes);
  EXPECT_TRUE(in.get_array<uint64_t>().empty());
  EXPECT_FALSE(in.ok());
  EXPECT_EQ(in.get<uint64_t>(), 0u);  // stays bad, reads zeros
}

TEST(File, NamesWhatIsWrong) {
  const auto dir = std::filesystem::temp_directory_path() / "millrace_file_test";
  std::filesystem::create_directories(dir);
  const std::string path = dir / "f";
  std::ofstream(path) << "0123456789";
  const File file(path, ExitCode::kModel);
  EXPECT_EQ(file.size(), 10u);
  std::vector<uint8_t> three(3);
  file.read_at(7, three);
  EXPECT_EQ(three[2], '9');
  try {
    file.read_at(8, three);
    FAIL() << "read past the end";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kModel);
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
  }
  EXPECT_THROW(File(dir / "none", ExitCode::kInput), Error);
  EXPECT_THROW(File(dir, ExitCode::kInput), Error);
  EXPECT_EQ(read_file(path, 10, ExitCode::kInput), "0123456789");
  EXPECT_THROW(read_file(path, 9, ExitCode::kInput), Error);
  std::filesystem::remove_all(dir);
}

TEST(ThreadPool, CoversEachIndexOnce) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 7, 1000}) {
      for (int64_t grain : {1, 3, 5000}) {
        std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_LE(end - begin, grain);
          for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)]++;
        });
        for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, ManyShortLoopsLoseNoWork) {
  ThreadPool pool(3);
  int64_t total = 0;
  for (int round = 0; round < 5000; ++round) {
    std::atomic<int64_t> sum{0};
    pool.parallel_for(16, 1, [&](int64_t begin, int64_t) { sum += begin; });
    total += sum;
  }
  EXPECT_EQ(total, 5000 * 120);
}

TEST(Hash, MixIsABijectionOnASample) {
  std::vector<uint64_t> seen;
  for (uint64_t i = 0; i < 10000; ++i) seen.push_back(mix64(i));
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_NE(hash_combine(1, 2), hash_combine(2, 1));
}

// The vectors of the paper's appendix A and of its reference code: key 00..0f, data 00, 01, ...
TEST(SipHash, IsThatOfThePaper) {
  const SipKey key = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  const std::pair<size_t, uint64_t> expected[] = {{0, 0x726fdb47dd0e0e31}, {1, 0x74f839c593dc67fd},
      {7, 0xab0200f58b01d137}, {8, 0x93f5f5799a932462}, {15, 0xa129ca6149be45e5}};
  std::vector<uint8_t> data;
  for (const auto& [size, hash] : expected) {
    while (data.size() < size) data.push_back(static_cast<uint8_t>(data.size()));
    EXPECT_EQ(siphash(key, data), hash) << size;
  }
  EXPECT_NE(random_sip_key(), random_sip_key());
}

TEST(Log, LevelsByName) {
  EXPECT_EQ(log::level_from_name("warning"), log::Level::kWarning);
  EXPECT_THROW(log::level_from_name("loud"), Error);
}

TEST(CheckDeathTest, PrintsExpressionValuesAndScope) {
  set_check_scope(3);
  EXPECT_DEATH(CHECK(1 + 1 == 3, "two is {}", 2), "1 \\+ 1 == 3: two is 2 at .*rank 3");
}

}  // namespace
}  // namespace millrace
