#include "launch/gateway/origin.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(OriginGuard, ALoopbackServerAnswersForAddressesAndLocalhostAlone) {
  for (const char* bound_to : {"127.0.0.1", "localhost", "::1", "127.5.6.7"}) {
    const OriginGuard guard(bound_to, {}, {});
    for (const char* host :
        {"localhost", "LOCALHOST:8000", "127.0.0.1:8000", "10.0.0.7", "[::1]:8000", "[::1]"})
      EXPECT_TRUE(guard.host_allowed(host)) << host;
    for (const char* host : {"", "evil.example", "evil.example:8000", "localhost.evil.example",
             "127.0.0.1.evil.example", "[evil.example]", ":8000", "localhost@evil.example", "*"})
      EXPECT_FALSE(guard.host_allowed(host)) << host;
  }
}

TEST(OriginGuard, NamedHostsAreTakenAndElsewhereAnyUnlessSomeAreNamed) {
  const OriginGuard named("127.0.0.1", {"llm.example"}, {});
  EXPECT_TRUE(named.host_allowed("LLM.example:443"));
  EXPECT_FALSE(named.host_allowed("a.llm.example"));
  EXPECT_TRUE(OriginGuard("0.0.0.0", {}, {}).host_allowed("any.example"));
  EXPECT_FALSE(OriginGuard("0.0.0.0", {"llm.example"}, {}).host_allowed("any.example"));
  EXPECT_TRUE(OriginGuard("localhost", {"*"}, {}).host_allowed("any.example"));
}

TEST(OriginGuard, PagesMayAskIfTheyAreOursOrNamed) {
  const OriginGuard guard("127.0.0.1", {}, {"https://app.example"});
  EXPECT_TRUE(guard.origin_allowed("https://app.example", "localhost:8000"));
  EXPECT_TRUE(guard.origin_allowed("http://localhost:8000", "localhost:8000"));
  for (const char* origin : {"null", "", "https://app.example.evil.example", "http://app.example",
           "http://localhost:8001", "https://evil.example", "://localhost:8001"})
    EXPECT_FALSE(guard.origin_allowed(origin, "localhost:8000")) << origin;
  EXPECT_FALSE(guard.origin_named("http://localhost:8000"));
  EXPECT_TRUE(OriginGuard("127.0.0.1", {}, {"*"}).origin_named("https://any.example"));
}

}  // namespace
}  // namespace millrace
